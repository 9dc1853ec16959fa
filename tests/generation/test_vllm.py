"""model/ of a run loads in vLLM without the project, and vLLM sees the same distribution as transformers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Ran
from tests.fork_server import Server
from tests.training.test_sharded import torchrun

# Imports nothing of the project: what it loads is what any user of vLLM loads.
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
model, prompts = sys.argv[1], json.loads(sys.argv[2])
llm = LLM(model, dtype="float32", max_model_len=64, enforce_eager=True, kv_cache_memory_bytes=1 << 28,
          max_num_seqs=8, max_num_batched_tokens=1024)
outs = llm.chat([[{"role": "user", "content": p}] for p in prompts],
                SamplingParams(temperature=0, max_tokens=12, prompt_logprobs=0))
rows = [{"ids": o.prompt_token_ids, "new": list(o.outputs[0].token_ids),
         "logps": [next(iter(d.values())).logprob for d in o.prompt_logprobs[1:]]} for o in outs]
print("ROWS " + json.dumps(rows))
"""


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def in_vllm(model: Path, prompts: list[str], server: Server, folder: Path) -> list[dict[str, Any]]:
    """Ids, log-probs of the prompt and greedy answers."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    line = [sys.executable, "-P", str(script), str(model), json.dumps(prompts)]
    ran = server.run(line, cwd=folder, env={**server.env, "HF_HUB_OFFLINE": "1"}, timeout=500)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = next(line for line in ran.stdout.splitlines() if line.startswith("ROWS "))
    return list(json.loads(rows[5:]))


def assert_the_same(model: Path, prompts: list[str], rows: list[dict[str, Any]]) -> None:
    """What vLLM saw is what transformers sees."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model).eval()
    for prompt, row in zip(prompts, rows, strict=True):
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert row["ids"] == ids
        with torch.no_grad():
            logps = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = logps[:-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        # float32 on both sides, about ten reductions of 128 terms: 1e-4 is far above round-off, far below a wrong weight
        assert torch.allclose(own, torch.tensor(row["logps"]), atol=1e-4)
        assert row["new"][0] == int(logps[-1].argmax())
        ends = [i for i, token in enumerate(row["new"]) if token == tokenizer.eos_token_id]
        assert ends in ([], [len(row["new"]) - 1]), "generation stops at the end token"


def test_a_runs_model_loads_in_vllm(trained: Ran, vllm_server: Server, tmp_path: Path) -> None:
    from alphapo_cli.data.glassbox import world

    prompts = world.instructions(4)
    rows = in_vllm(trained.path / "model", prompts, vllm_server, tmp_path)
    assert json.loads((trained.path / "prompts.json").read_text()), "training keeps the ids of its first prompts"
    assert_the_same(trained.path / "model", prompts, rows)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_model_of_a_sharded_run_loads_in_vllm(shared_cache: Path, vllm_server: Server, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from alphapo_cli.data.glassbox import world

    line = ("trainer.max_steps=2", "trainer.learning_rate=1e-3", "trainer.warmup_ratio=0")
    ran = torchrun(2, "train", *TINY[1:], *line, "sharding.mode=fsdp", cwd=tmp_path, cache=shared_cache)
    assert ran.code == 0, ran.err[-3000:]
    model = ran.path / "model"
    start = load_file(next((shared_cache / "base").glob("*/model.safetensors")))
    moved = [name for name, p in load_file(model / "model.safetensors").items() if not torch.equal(p, start[name])]
    assert len(moved) > len(start) / 2, "its weights are those that were trained"
    prompts = world.instructions(4)
    assert_the_same(model, prompts, in_vllm(model, prompts, vllm_server, tmp_path))
