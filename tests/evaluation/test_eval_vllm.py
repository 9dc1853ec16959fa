"""A local model as a judge: the protocol's questions in, log-probs out; by the real vLLM, and by a stand-in for faults."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from alphapo_cli.data.glassbox import world as glassbox
from alphapo_cli.evaluation.judges import prompt, protocol
from alphapo_cli.generation.vllm_process import VLLMProcess
from tests.evaluation.eval_world import alphapo, load, one_line, write
from tests.evaluation.local_judge import WORDS, save, tokenizer
from tests.fork_server import Server

FAKE = Path(__file__).parents[1] / "generation" / "fake"
N = 24
KEY = "sk-a-key-of-this-test-0123456789"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """outputs.json and reference.json: drawn answers to the embedded world's instructions, two of them the same."""
    for name, quality in (("outputs", 0.8), ("reference", 0.4)):
        rng = random.Random(name)
        rows = [
            {"instruction": text, "output": glassbox.draw_answer(rng, glassbox.parse(text), quality).text(), "generator": name}
            for text in glassbox.instructions(N)
        ]  # fmt: skip
        for row in rows[:2]:
            row["output"] = "sure , nothing ."
        write(tmp_path / f"{name}.json", rows)
    return tmp_path


# Random weights give the two names some of the probability; whether it is enough for a verdict is not the point here.
ANY = "judge.min_mass=0"


def judge(world: Path, model: Path, *more: str) -> int:
    return alphapo(
        "eval", world / "outputs.json", "--reference", world / "reference.json", "--judge", "vllm",
        f"judge.model={model}", "statistics.bootstrap=0", ANY, "--out", world / "out", *more
    )  # fmt: skip


def journal(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "out" / "judgements.jsonl").read_text().splitlines()]


def questions(world: Path) -> dict[str, list[int]]:
    """instruction -> token ids of the question, from the texts: template filled, model's coin, chat template, ids."""
    base = {row["instruction"]: row["output"] for row in load(world / "reference.json")}
    found = {}
    for row in load(world / "outputs.json"):
        shown = [base[row["instruction"]], row["output"]]
        if protocol.is_switched(row["instruction"]):
            shown.reverse()
        messages = prompt.fill(prompt.load_template(None), row["instruction"], *shown)
        chat = [{"role": m.role, "content": m.content} for m in messages]
        found[row["instruction"]] = tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return found


def preferences(world: Path, logits: dict[str, list[float]]) -> list[float]:
    """1 + P(the model's output), from each question's scores of all words; 1.5 for equal outputs."""
    base = {row["instruction"]: row["output"] for row in load(world / "reference.json")}
    found = []
    for row in load(world / "outputs.json"):
        scores = logits[row["instruction"]]
        first = 1 / (1 + math.exp(scores[WORDS.index("M")] - scores[WORDS.index("m")]))
        switched = protocol.is_switched(row["instruction"])
        same = row["output"] == base[row["instruction"]]
        found.append(1.5 if same else 1 + (first if switched else 1 - first))
    return found


@pytest.mark.vllm
@pytest.mark.usefixtures("warm_engines")
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_preferences_are_the_models_own_log_probs(world: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = save(world / "judge")
    assert judge(world, model) == 0
    lm = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        logits = {text: lm(torch.tensor([ids])).logits[0, -1] for text, ids in questions(world).items()}
    rows = load(world / "out" / "annotations.json")
    expected = preferences(world, {text: row.tolist() for text, row in logits.items()})
    # float32 on both sides, some hundred terms a sum: preferences agree to far better than 1e-4.
    assert [row["preference"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert len({round(x, 2) for x in expected}) > 5
    for row in rows[2:]:
        top = row["preference_raw_completion"]["top_logprobs"]
        own = logits[row["instruction"]].log_softmax(-1).sort(descending=True)
        assert [token for token, _ in top] == [WORDS[i] for i in own.indices[:20].tolist()]
        assert [logprob for _, logprob in top] == pytest.approx(own.values[:20].tolist(), abs=1e-3)
    results = load(world / "out" / "results.json")
    assert results["judging"]["requests"] == N - 2
    assert results["judging"]["cost_usd"] == 0
    assert len(journal(world)) == N - 2


@pytest.fixture
def server(tmp_path: Path, vllm_server: Server) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with the tiny judge on a free port of this machine; its base URL."""
    model = save(tmp_path / "served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "server.py"
    script.write_text(
        "import runpy\nrunpy.run_module('vllm.entrypoints.openai.api_server', run_name='__main__', alter_sys=True)\n"
    )
    line = [
        sys.executable, "-P", str(script), "--model", str(model), "--served-model-name", "judge",
        "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--dtype", "float32", "--enforce-eager",
        "--kv-cache-memory-bytes", str(1 << 27), "--max-num-seqs", "16",
    ]  # fmt: skip
    with (tmp_path / "server.log").open("wb") as log:
        process = vllm_server.popen(line, env=vllm_server.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        else:
            raise AssertionError("the server did not come up")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.vllm
@pytest.mark.usefixtures("warm_engines")
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_real_server_judges_as_the_same_model_without_one(
    world: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """End to end over HTTP: key, questions, log-probs, annotations; and a wrong key."""
    assert judge(world, save(world / "judge")) == 0
    local = load(world / "out" / "annotations.json")
    line = (
        "eval", world / "outputs.json", "--reference", world / "reference.json", "--judge", "openai",
        f"judge.base_url={server}", "judge.model=judge", "judge.api_key_env=JUDGE_KEY", "judge.top_logprobs=20",
        "statistics.bootstrap=0", ANY, "--out", world / "served-out",
    )  # fmt: skip
    monkeypatch.setenv("JUDGE_KEY", "wrong-key-0123456789")
    assert alphapo(*line) != 0
    said = capsys.readouterr().err
    assert "401" in said
    assert "wrong-key" not in said
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert alphapo(*line) == 0, capsys.readouterr().err
    served = load(world / "served-out" / "annotations.json")
    assert [row["preference"] for row in served] == pytest.approx([row["preference"] for row in local], abs=1e-4)
    assert load(world / "served-out" / "results.json")["judging"]["requests"] == N - 2
    assert not [p for p in (world / "served-out").rglob("*") if p.is_file() and KEY in p.read_text(errors="ignore")]


# ------------------------------------------------------------------------------------------- a stand-in for faults


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.syspath_prepend(FAKE)  # also where no vLLM is installed
    monkeypatch.setenv("FAKE_VLLM", "")
    return monkeypatch


def stood_in(ids: list[int]) -> list[float]:
    """The stand-in's log-probs, as tests/generation/fake/vllm makes them."""
    return [-1.0 - (7 * token + len(ids)) % 5 for token in range(len(WORDS))]


@pytest.mark.slow
def test_what_was_judged_survives_the_engine(
    world: Path, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(world / "judge")
    fake.setenv("FAKE_VLLM", "die-7")
    assert judge(world, model, "judge.top_logprobs=20") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "vLLM ended with exit code 7: a last word" in said
    assert f"7 of {N - 2} judgements are kept" in said
    before = (world / "out" / "judgements.jsonl").read_text()
    fake.setenv("FAKE_VLLM", "")
    assert judge(world, model) == 0
    assert (world / "out" / "judgements.jsonl").read_text().startswith(before)
    assert len(journal(world)) == N - 2
    scores = {text: stood_in(ids) for text, ids in questions(world).items()}
    rows = load(world / "out" / "annotations.json")
    assert [row["preference"] for row in rows] == pytest.approx(preferences(world, scores))
    assert judge(world, model) == 0
    assert "complete" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interruption_keeps_what_was_judged(
    world: Path, fake: pytest.MonkeyPatch, interrupt: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    model, kept = save(world / "judge"), world / "out" / "judgements.jsonl"
    fake.setenv("FAKE_VLLM", "slow")
    interrupt(lambda: kept.is_file() and len(journal(world)) >= 3)
    leave, took = VLLMProcess.__exit__, []

    def timed(*arguments: Any) -> None:
        began = time.monotonic()
        leave(*arguments)
        took.append(time.monotonic() - began)

    fake.setattr(VLLMProcess, "__exit__", timed)
    assert judge(world, model) == 130
    assert took[0] < 2  # the engine is ended; left to itself it would need 0.2 s for each of the others
    assert 3 <= len(journal(world)) < N - 2
    assert f"interrupted: {len(journal(world))} of {N - 2} judgements are kept" in capsys.readouterr().err
    fake.setenv("FAKE_VLLM", "")
    assert judge(world, model) == 0
    assert load(world / "out" / "results.json")["n_total"] == N


def test_both_orders(world: Path, fake: pytest.MonkeyPatch) -> None:
    assert judge(world, save(world / "judge"), "judge.both_orders=true") == 0
    assert len(journal(world)) == 2 * (N - 2)


def test_questions_longer_than_the_context_are_counted(
    world: Path, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [len(ids) for ids in list(questions(world).values())[2:]]
    context = sorted(lengths)[-3]  # this one leaves no room for an answer, nor do two longer ones
    long = sum(length >= context for length in lengths)
    model = save(world / "judge", context)
    assert judge(world, model) == 2
    said = one_line(capsys.readouterr().err)
    assert f"{long} of {N - 2} questions are longer than its context of {context} tokens" in said
    assert not (world / "out").exists()
    assert judge(world, model, f"judge.max_failed={long}") == 0
    assert load(world / "out" / "results.json")["n_total"] == N - long


def test_models_that_cannot_judge(world: Path, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(world / "mute", template=None)
    for line, part in (
        ([f"judge.model={model}"], f"judge.model={model}: its tokenizer has no chat template"),
        ([f"judge.model={world / 'nothing'}"], "no such directory"),
        (["judge.model=null"], "needs judge.model=NAME"),
    ):
        assert judge(world, model, *line) == 2
        assert part in one_line(capsys.readouterr().err)
    real = importlib.util.find_spec
    fake.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else real(name, *a))
    assert judge(world, model) == 2
    assert "pip install 'alphapo[vllm]'" in one_line(capsys.readouterr().err)
