"""model/ of a run loads in vLLM without the project, and vLLM sees the same distribution as transformers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import Ran
from tests.fork_server import Server

pytestmark = pytest.mark.vllm

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


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_runs_model_loads_in_vllm(trained: Ran, vllm_server: Server, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alphapo_cli.data.glassbox import world

    prompts = world.instructions(4)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    line = [sys.executable, "-P", str(script), str(trained.path / "model"), json.dumps(prompts)]
    ran = vllm_server.run(line, cwd=tmp_path, env={**vllm_server.env, "HF_HUB_OFFLINE": "1"}, timeout=500)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("ROWS "))[5:])

    tokenizer = AutoTokenizer.from_pretrained(trained.path / "model")
    model = AutoModelForCausalLM.from_pretrained(trained.path / "model").eval()
    recorded = json.loads((trained.path / "prompts.json").read_text())
    assert recorded, "training keeps the ids of its first prompts"
    for prompt, row in zip(prompts, rows, strict=True):
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert row["ids"] == ids
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = logps[:-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        # float32 on both sides, about ten reductions of 128 terms: 1e-4 is far above round-off, far below a wrong weight
        assert torch.allclose(own, torch.tensor(row["logps"]), atol=1e-4)
        assert row["new"][0] == int(logps[-1].argmax())
        ends = [i for i, token in enumerate(row["new"]) if token == tokenizer.eos_token_id]
        assert ends in ([], [len(row["new"]) - 1]), "generation stops at the end token"
