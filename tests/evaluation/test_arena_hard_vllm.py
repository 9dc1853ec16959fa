"""A local model that writes Arena-Hard's judgements: by the real vLLM, and by a stand-in for the process around it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.evaluation import local_judge
from tests.evaluation.arena_world import LABELS, Arena, rows_of
from tests.evaluation.eval_world import load, one_line, write

FAKE = Path(__file__).parents[1] / "generation" / "fake"


@pytest.fixture
def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """The tiny judge knows the labels, as words."""
    monkeypatch.setattr(local_judge, "WORDS", (*local_judge.WORDS, *(f"[[{label}]]" for label in LABELS)))
    write(tmp_path / "prompt.txt", "{instruction} {output_1} {output_2} [[A>B]]")
    return Arena(tmp_path)


def judge(arena: Arena, model: Path, *more: str) -> int:
    return arena.run(
        "--judge", "vllm", f"judge.model={model}", f"judge.prompt_file={arena.folder / 'prompt.txt'}",
        "statistics.bootstrap=0", *more
    )  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv("FAKE_VLLM", "")
    return monkeypatch


@pytest.mark.slow
def test_its_texts_are_read_and_what_was_written_survives_the_engine(
    arena: Arena, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in says its prompt backwards, and so names the label at the prompt's end: A, whoever that is."""
    model = local_judge.save(arena.folder / "judge", context=1024)
    fake.setenv("FAKE_VLLM", "die-5")
    assert judge(arena, model, "judge.max_tokens=400") == 1
    assert "5 of 16 judgements are kept" in capsys.readouterr().err.splitlines()[-1]
    fake.setenv("FAKE_VLLM", "")
    assert judge(arena, model, "judge.max_tokens=400") == 0
    rows = rows_of(arena.out / "judgements.jsonl")
    assert len(rows) == len({row["key"] for row in rows}) == 16
    assert {row["finish"] for row in rows} == {"stop"}
    found = load(arena.out / "results.json")
    assert (found["arena_hard/score"], found["arena_hard/reversed"], found["arena_hard/first_shown_share"]) == (
        50,
        1,
        1,
    )
    assert (found["annotator"], found["judging"]["cost_usd"]) == ("judge", 0)


def test_questions_must_leave_room_for_the_text(
    arena: Arena, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = local_judge.save(arena.folder / "judge", context=300)
    assert judge(arena, model, "judge.max_tokens=290") == 2
    assert "16 of 16 questions leave no room for judge.max_tokens=290" in one_line(capsys.readouterr().err)
    assert not arena.out.exists()


@pytest.mark.vllm
@pytest.mark.usefixtures("warm_engines")
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_its_texts_are_the_models_own(arena: Arena) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = local_judge.save(arena.folder / "judge", context=1024)
    assert judge(arena, model, "judge.max_tokens=12", "judge.max_failed=15", "judge.dtype=float32") in (0, 1)
    tokenizer, lm = local_judge.tokenizer(), AutoModelForCausalLM.from_pretrained(model).eval()
    from alphapo_cli.evaluation.arena_hard.answers import matched, read_answers
    from alphapo_cli.evaluation.arena_hard.prompt import fill, load_template

    template = load_template(str(arena.folder / "prompt.txt"))
    pairs = matched(read_answers(arena.outputs), read_answers(arena.reference))
    rows = {(row["row"], row["switched"]): row for row in rows_of(arena.out / "judgements.jsonl")}
    assert len(rows) == 16
    for (at, switched), row in rows.items():
        base, own = pairs[at]
        shown = (own.text, base.text) if switched else (base.text, own.text)
        chat = [{"role": m.role, "content": m.content} for m in fill(template, base.instruction, *shown)]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            made = lm.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(ids) :]
        assert row["text"] == tokenizer.decode(made, skip_special_tokens=True)
        assert row["finish"] == ("stop" if 2 in made.tolist() else "length")
