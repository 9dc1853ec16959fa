"""Peak memory of a probe at a vocabulary of 128k, without and with mass accounting, each in a fork of one process.

python -m tests.probe.peak_memory     # prints both, in MiB, as JSON
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.probe.mass_report import MassMoved
from alphapo_cli.probe.probe import Probe
from alphapo_cli.probe.token_values import TokenLogs
from alphapo_cli.runtime.distributed import Processes
from tests import tiny

VOCAB = 131_072
CHUNK = 16 << 20  # 32 rows of logits: as many as a batch has positions whose distributions are compared


def peak(lm: Any, mass: bool) -> float:
    """MiB of a process that measures the probe twice, the second time with mass accounting or without."""
    pairs = tiny.token_pairs(16, seed=1, vocab=VOCAB, scale=0.5)
    policy, logs = PolicyModel(lm, layout="packed", chunk_bytes=CHUNK), TokenLogs()
    probe = Probe(
        policy, tiny.objective("objective=simpo"), pairs, batch_size=8, pad_id=tiny.PAD, processes=Processes(),
        reference=None, observer=logs,
    )  # fmt: skip
    with torch.no_grad():  # so that tokens fall
        for weight in lm.parameters():
            weight.mul_(0.7)
    probe.measure(policy, None, MassMoved(pairs, logs, 3, [2], policy.chunk_bytes) if mass else None)
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def forked(lm: Any, mass: bool) -> float:
    """`peak` of a fork, which shares what has been loaded."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(start, json.dumps(peak(lm, mass)).encode())
        os._exit(0)
    os.close(start)
    with os.fdopen(end) as file:
        text = file.read()
    os.waitpid(child, 0)
    return float(json.loads(text))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no other threads
    model = tiny.model("llama tied", vocab=VOCAB)
    print(json.dumps({"chunk": CHUNK / 2**20, "without": forked(model, False), "with": forked(model, True)}))
