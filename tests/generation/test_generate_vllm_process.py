"""The process around vLLM, with a stand-in for vLLM: what goes wrong in it is said, and nothing finished is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.data.glassbox import world
from alphapo_cli.generation.vllm_process import WORKER, plan
from tests.conftest import Ran

FAKE = Path(__file__).parent / "fake"
Go = Callable[..., Ran]


@pytest.fixture
def go(alphapo: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """`alphapo generate` of 12 answers by the stand-in, with a fault."""
    monkeypatch.syspath_prepend(FAKE)  # also where no vLLM is installed

    def line(fault: str = "", *more: str) -> Ran:
        env = {"PYTHONPATH": str(FAKE), "FAKE_VLLM": fault}
        out = ("--out", str(tmp_path / "out"))
        return alphapo("generate", "generation=vllm", "data.limit=12", *out, *more, env=env)

    return line


def outputs(folder: Path) -> list[str]:
    return [row["output"] for row in json.loads((folder / "model_outputs.json").read_text())]


def backwards(n: int = 12) -> list[str]:
    """What the stand-in says: the prompt's words from the end, without roles and beginning."""
    return [" ".join(reversed(text.split())) for text in world.instructions(n)]


def kept(folder: Path) -> int:
    return (folder / "partial.jsonl").read_bytes().count(b"\n")


def test_answers_come_back_in_their_places(go: Go, tmp_path: Path) -> None:
    ran = go()
    assert ran.code == 0, ran.err
    assert outputs(tmp_path / "out") == backwards()
    log = (tmp_path / "out" / "vllm.log").read_text()
    assert "engine settings" in log
    assert "engine settings" not in ran.err


def test_an_engine_that_does_not_start_says_why(go: Go, tmp_path: Path) -> None:
    ran = go("start")
    assert ran.code == 1
    line = ran.err.splitlines()[-1]
    assert line.startswith("alphapo: vLLM: ValueError: head size 16 is not supported")
    assert str(tmp_path / "out" / "vllm.log") in line
    assert "0 of 12 answers are kept" in line


def test_an_engine_that_dies_loses_nothing_and_the_same_line_goes_on(go: Go, tmp_path: Path) -> None:
    ran = go("die-5")
    assert ran.code == 1
    assert "vLLM ended with exit code 7: a last word" in ran.err
    assert "5 of 12 answers are kept" in ran.err
    before = (tmp_path / "out" / "partial.jsonl").read_text()
    assert go("die-3").code == 1
    assert (tmp_path / "out" / "partial.jsonl").read_text().startswith(before)
    assert kept(tmp_path / "out") == 8
    ran = go()
    assert ran.code == 0, ran.err
    assert outputs(tmp_path / "out") == backwards()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["cost"]["answers_from_earlier_starts"] == 8


def test_other_ids_in_the_engine_stop_before_the_first_token(go: Go, tmp_path: Path) -> None:
    ran = go("ids")
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("alphapo: ")]
    assert "prompt 1: token ids differ at position 1" in line
    ids = json.loads(line[line.index("generation makes ") + 17 : line.index(", the engine")])
    assert f"the engine was given {[ids[0], *ids]}" in line
    assert kept(tmp_path / "out") == 0


def test_an_interruption_takes_what_is_finished_and_ends_the_engine(
    go: Go, interrupt: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    interrupt(lambda: (out / "partial.jsonl").is_file() and kept(out) >= 3)
    began = time.monotonic()
    assert go("slow").code == 130
    assert time.monotonic() - began < 8
    assert 3 <= kept(out) < 12
    mine = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    assert not [
        pid for pid in Path(mine).read_text().split() if str(WORKER) in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert go().code == 0
    assert outputs(out) == backwards()


def test_the_engine_does_not_outlive_whoever_asked() -> None:
    """A parent that is killed can end nobody; its end of the pipe closes."""
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-P", str(WORKER), str(writing)], stdin=subprocess.PIPE, pass_fds=[writing],
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(FAKE), "FAKE_VLLM": ""},
    )  # fmt: skip
    os.close(writing)
    assert worker.stdin is not None
    job = {
        "engine": {},
        "on_cpu": {},
        "on_gpu": {},
        "adapter": None,
        "sampling": {"max_tokens": 3, "stop_token_ids": [2]},
    }
    worker.stdin.write(f'{json.dumps(job)}\n{{"id": 0, "ids": [1, 5]}}\n\n'.encode())
    worker.stdin.flush()
    said = b""
    while b"ready" not in said:
        said += os.read(reading, 4096)
    assert worker.poll() is None, "it waits for the word"
    worker.stdin.close()
    assert worker.wait(10) == 1
    os.close(reading)


class Settings:
    """A configuration of transformers with what the plan reads."""

    num_hidden_layers, num_key_value_heads, num_attention_heads, head_dim, hidden_size = 4, 2, 8, 64, 512

    def get_text_config(self) -> Settings:
        return self


def planned(longest: int, rank: int | None = None, **settings: Any) -> dict[str, Any]:
    from types import SimpleNamespace

    from alphapo_cli.generation.schema import VLLMConfig

    place = SimpleNamespace(location="somewhere", revision=None)
    subject: Any = SimpleNamespace(
        whole=place, source=place, base=None if rank is None else place, adapter_rank=rank, config=Settings(),
        dtype="float32", trust_remote_code=False, asked="somewhere",
    )  # fmt: skip
    return plan(subject, VLLMConfig(**settings), longest, {}, prefix_caching=False)


def test_the_cache_holds_every_sequence_under_way_but_not_the_machine() -> None:
    a_token = 2 * 4 * 2 * 64 * 4  # keys and values x layers x heads x size x bytes
    assert planned(1024)["on_cpu"]["kv_cache_memory_bytes"] >= 64 * 1024 * a_token
    assert planned(16)["on_cpu"]["kv_cache_memory_bytes"] == 2**28
    assert planned(20_000)["on_cpu"]["kv_cache_memory_bytes"] == 2**32
    assert planned(1_000_000)["on_cpu"]["kv_cache_memory_bytes"] >= 1_000_000 * a_token
    assert planned(1024, kv_cache_gib=0.5)["on_cpu"]["kv_cache_memory_bytes"] == 2**29


@pytest.mark.parametrize(("longest", "seqs"), [(64, 64), (9000, 64), (64, 5000)])
def test_no_prompt_is_ever_split_on_the_cpu(longest: int, seqs: int) -> None:
    own = planned(longest, max_num_seqs=seqs)["on_cpu"]
    assert own["enable_chunked_prefill"] is False
    assert own["max_num_batched_tokens"] >= max(longest, seqs)


def test_an_adapters_rank_is_rounded_up_to_one_that_vllm_has() -> None:
    assert [planned(64, rank=r)["engine"]["max_lora_rank"] for r in (1, 2, 8, 9, 100)] == [1, 8, 8, 16, 128]
    assert "enable_lora" not in planned(64)["engine"]


def test_a_signal_at_the_moment_of_reading_loses_nothing(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives when the pipe has been emptied: what was read must not be gone."""
    read = os.read

    def interrupted(file: int, size: int) -> bytes:
        part = read(file, size)
        if b'"finish"' in part:
            monkeypatch.setattr(os, "read", read)
            signal.raise_signal(signal.SIGINT)
        return part

    monkeypatch.setattr(os, "read", interrupted)
    assert go("slow").code == 130
    assert kept(tmp_path / "out") >= 1
    assert go().code == 0
    assert outputs(tmp_path / "out") == backwards()


@pytest.mark.parametrize(
    ("finish", "ids", "expected"),
    [
        ("stop", [5, 6, 2], ([5, 6], False)),
        ("stop", [5, 6, 9], ([5, 6], False)),  # an end token that only the engine knows
        ("length", [5, 6, 7], ([5, 6, 7], True)),
        ("length", [5, 6, 2], ([5, 6], False)),  # drawn as the last one that the limit allows
    ],
)
def test_how_an_answer_ended_is_what_the_engine_says(
    finish: str, ids: list[int], expected: tuple[list[int], bool]
) -> None:
    from alphapo_cli.generation.vllm_backend import VLLMBackend

    row = {"id": 0, "ids": ids, "finish": finish, "logprob": -1.5}
    assert VLLMBackend._answer(row, (2,)) == (*expected, -1.5)


def test_a_request_that_the_engine_gave_up_is_no_answer() -> None:
    from alphapo_cli.errors import AlphapoError
    from alphapo_cli.generation.vllm_backend import VLLMBackend

    with pytest.raises(AlphapoError, match="ended with 'abort' after 1 tokens"):
        VLLMBackend._answer({"id": 0, "ids": [5], "finish": "abort"}, (2,))
