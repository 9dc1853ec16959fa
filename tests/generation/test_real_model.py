"""The product's answers against the world's: a real instruct model, both backends, plain transformers and plain vLLM.

Greedy in float32 on both sides, so that answers part only where two tokens are tied to round-off, which the
two logits show.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import real_model
from tests.conftest import Ran, write_rows
from tests.generation.generate_world import load, outputs

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.vllm,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:You're using a"),  # tokenizer.pad, where ids are at hand
    pytest.mark.skipif(not real_model.is_there(), reason=real_model.MISSING),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ASKED = ("What is {}?", "Write one sentence about {}.", "Name three facts about {}, please.", "Why do people like {}?")
OF = (
    "the capital of France", "cats", "bread", "the moon", "chess", "rain", "Python", "a violin", "the river Nile", "tea",
    "photosynthesis", "gold", "a haiku", "snow ❄", "naïve café owners", "the number seven",
)  # fmt: skip
TEXTS = [ask.format(what) for what in OF for ask in ASKED]
NEW = 16  # tokens of an answer
# Plain vLLM on ids from apply_chat_template, without the project on its path.
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model, rows = sys.argv[1], json.load(open(sys.argv[2]))
llm = LLM(model, dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=1 << 30, max_num_seqs=8,
          max_num_batched_tokens=2048, enable_prefix_caching=False)
outs = llm.generate([{"prompt_token_ids": ids} for ids in rows], SamplingParams(temperature=0, max_tokens=int(sys.argv[3])))
json.dump([o.outputs[0].text for o in outs], open(sys.argv[4], "w"))
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(real_model.write(tmp_path_factory.mktemp("smollm2")))


@pytest.fixture(scope="module")
def plain(directory: str) -> tuple[Any, Any, list[list[int]]]:
    """Model, tokenizer, and the ids of the prompts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    return model, tokenizer, ids


@torch.no_grad()
def by_transformers(plain: tuple[Any, Any, list[list[int]]]) -> list[str]:
    """In batches of eight, padded on the left, by the model's own `generate`."""
    model, tokenizer, rows = plain
    tokenizer.padding_side = "left"
    texts: list[str] = []
    for start in range(0, len(rows), 8):
        batch = tokenizer.pad({"input_ids": rows[start : start + 8]}, return_tensors="pt")
        made = model.generate(**batch, do_sample=False, max_new_tokens=NEW)
        texts += tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def by_vllm(directory: str, rows: list[list[int]], folder: Path) -> list[str]:
    (folder / "ids.json").write_text(json.dumps(rows))
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", VLLM, directory, str(folder / "ids.json"), str(NEW), str(folder / "texts.json")]
    ran = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return list(load(folder / "texts.json"))


@torch.no_grad()
def gap(one: str, other: str, ids: list[int], model: Any, tokenizer: Any) -> tuple[float, float]:
    """Where two answers part: how far apart their tokens' logits are, and the largest logit there."""
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in (one, other))
    at = next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    logits = model(torch.tensor([[*ids, *a[:at]]])).logits[0, -1].double()
    return float((logits[a[at]] - logits[b[at]]).abs()), float(logits.abs().max())


def test_its_answers_are_the_worlds(
    directory: str, plain: Any, alphapo: Callable[..., Ran], real_cache: Path, tmp_path: Path
) -> None:
    model, tokenizer, ids = plain
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": text} for text in TEXTS])
    answers = {"plain transformers": by_transformers(plain), "plain vllm": by_vllm(directory, ids, tmp_path)}
    for backend in ("transformers", "vllm"):
        ran = alphapo(
            "generate", directory, "data=jsonl", f"data.path={file}", f"generation={backend}", "model.dtype=float32",
            "generation.temperature=0", f"generation.max_new_tokens={NEW}", "--out", str(tmp_path / backend),
            cache=real_cache,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        answers[backend] = outputs(tmp_path / backend)
    compared = [
        ("transformers", "plain transformers"), ("vllm", "plain vllm"), ("transformers", "vllm"),
        ("plain transformers", "plain vllm"),
    ]  # fmt: skip
    for one, other in compared:
        pairs = list(zip(answers[one], answers[other], ids, strict=True))
        gaps = [gap(a, b, row, model, tokenizer) for a, b, row in pairs if a != b]
        equal = len(pairs) - len(gaps)
        print(f"{one} | {other} | {equal} of {len(pairs)} | {', '.join(f'{g:.1e} of {top:.0f}' for g, top in gaps)}")
        assert equal >= 0.95 * len(pairs)
        # Round-off of float32 in the largest logit, over some hundred additions one after the other on the way there.
        assert all(distance <= 256 * torch.finfo(torch.float32).eps * top for distance, top in gaps)
