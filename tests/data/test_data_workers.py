"""Several processes: the same results in the same order, the same errors, and nobody left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import parallel, tokenise
from alphapo_cli.data.parallel import automatic, in_order
from alphapo_cli.data.text_pairs import TextPair
from alphapo_cli.data.tokenise import encode_pairs
from alphapo_cli.data.truncation import TokenCounts
from alphapo_cli.errors import UsageError
from tests.data import data_tokenizers as kinds


def who(shared, chunk):
    if chunk == 3:
        raise UsageError(f"row {chunk} is broken")
    return shared, chunk, os.getpid()


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def mixed_pairs(count):
    """Plain pairs; among them ones that the template refuses, empty ones, ones that are the same once cut, long ones."""
    pairs = []
    for n in range(count):
        prompt: tuple[Any, ...] = (user(f"Name {n} fruits, please."),)
        chosen, rejected = f"Apples, pears and plums, {n}", "I do not know" + " at all" * (n % 5)
        if n % 7 == 3:
            prompt = (*prompt, assistant("Yes?"))
        elif n % 11 == 5:
            chosen = "</s>"
        elif n % 13 == 6:
            chosen, rejected = "plums " * 99 + "one", "plums " * (99 if n % 2 else 9) + "two"
        pairs.append(TextPair(prompt, (assistant(chosen),), (assistant(rejected),), row=n + 1))
    return pairs


@pytest.mark.slow
def test_encoding_in_two_processes_is_encoding_each_pair_alone(monkeypatch):
    monkeypatch.setattr(tokenise, "_CHUNK", 16)
    pairs, tokenizer, cfg = mixed_pairs(90), kinds.llama2(), DataConfig(max_length=64, workers=2)
    together = encode_pairs(pairs, tokenizer, cfg)
    sides: tuple[list[Any], ...] = ([], [], [])
    kept, counts = [], TokenCounts()
    for place, pair in enumerate(pairs):
        try:
            one = encode_pairs([pair], tokenizer, dataclasses.replace(cfg, workers=1))
        except UsageError as error:
            refused, emptied = "refuses" in str(error), "1 empty" in str(error)
            counts += TokenCounts(refused=int(refused), emptied=int(emptied), identical=int(not (refused or emptied)))
            continue
        kept.append(place)
        counts += one.counts
        for column, side in zip(sides, (one.prompt, one.chosen, one.rejected), strict=True):
            column.append(side[0])
    assert together.kept == tuple(kept)
    assert together.counts == counts
    assert min(counts.refused, counts.emptied, counts.identical, counts.truncated_pairs) > 0
    for column, side in zip(sides, (together.prompt, together.chosen, together.rejected), strict=True):
        assert [side[n].tolist() for n in range(len(side))] == [ids.tolist() for ids in column]
        assert (side.ids.dtype, side.offsets.dtype) == (np.int32, np.int64)


@pytest.mark.slow
def test_results_come_in_order_from_other_processes_up_to_the_first_error():
    results = in_order(who, "shared", list(range(6)), 2)
    found = [next(results) for _ in range(3)]
    assert [(shared, chunk) for shared, chunk, _ in found] == [("shared", n) for n in range(3)]
    assert os.getpid() not in {pid for *_, pid in found}
    with pytest.raises(UsageError, match="row 3 is broken"):
        next(results)


@pytest.mark.parametrize(("shared", "count"), [("text", 1), (lambda: None, 3)], ids=["one chunk", "not to be sent"])
def test_it_stays_here_where_processes_would_not_help(shared, count):
    found = list(in_order(who, shared, list(range(count)), 4))
    assert {pid for *_, pid in found} == {os.getpid()}


def test_small_data_stay_in_one_process():
    assert automatic(0) == automatic(parallel.SMALL - 1) == 1
    cores = len(os.sched_getaffinity(0))
    assert automatic(parallel.SMALL) == min(2, cores)
    assert automatic(10_000 * parallel.SMALL) == cores


@pytest.mark.slow
def test_a_killed_parent_leaves_nobody_behind(tmp_path):
    """SIGKILL, which nobody can catch; its workers see that it is gone."""
    program = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
        "from test_data_workers import linger\nfrom alphapo_cli.data.parallel import in_order\n"
        "if __name__ == '__main__':\n    list(in_order(linger, sys.argv[2], [1, 2], 2))\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(Path(__file__).parent), str(tmp_path)], env=environment
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    pids = [int(file.stem) for file in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(alive(pid) for pid in pids))


def linger(folder, chunk):
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(300)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
