"""What `alphapo generate` says of answers and settings that nobody meant, and the date that templates write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.thoughts import split_thoughts
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.generation import notes
from alphapo_cli.generation.parity import check_template
from alphapo_cli.generation.thinking import Thinking, answer_text
from tests.conftest import BARE, SCRATCH, Ran, write_rows
from tests.data import data_tokenizers as kinds
from tests.generation.generate_world import chat_model, load, outputs

Alphapo = Callable[..., Ran]
HERE = ("generation=transformers", "data.limit=4")


def test_many_cut_answers_are_a_warning_with_what_to_type(alphapo: Alphapo) -> None:
    cut = alphapo("generate", *HERE, "generation.max_new_tokens=2")
    assert "alphapo: warning: 4 of 4 answers are cut by the limit of 2 tokens" in cut.err
    assert "generation.max_new_tokens=4" in cut.err
    assert len(load(cut.path / "summary.json")["warnings"]) == 1
    whole = alphapo("generate", *HERE)
    assert "warning" not in whole.err


def metrics(**values: float) -> dict[str, float]:
    return {"answers": 8, "share_cut": 0.5, "share_empty": 0, "share_thinking": 0, **values}


def test_half_is_not_many_and_any_empty_or_thinking_answer_is_said() -> None:
    assert notes.of_answers(metrics(), 16, Thinking()) == []
    (empty,) = notes.of_answers(metrics(share_empty=1 / 8), 16, Thinking())
    assert empty.startswith("1 of 8 answers are empty")
    (thought,) = notes.of_answers(metrics(share_thinking=1), 16, Thinking())
    assert thought.startswith("8 of 8 answers hold a thought (<think>)")
    assert "data.chat_template_kwargs.enable_thinking=false is how some templates leave it out" in thought
    (known,) = notes.of_answers(metrics(share_thinking=1), 16, Thinking(True, "thinking=false"))
    assert (
        "leaves it out with data.chat_template_kwargs.thinking=false (of run and sweep: prompts.chat_template" in known
    )
    (unknown,) = notes.of_answers(metrics(share_thinking=1), 16, Thinking(True))
    assert "the chat template opens it and knows neither enable_thinking nor thinking" in unknown


def test_a_thought_is_one_also_where_the_prompt_opened_it_or_nothing_closed_it() -> None:
    assert notes.thinks("assistant\n", "<think>Well</think>Apples")
    assert notes.thinks("assistant\n<think>\n", "Well, let me")
    assert notes.thinks("assistant\n", "Well</think>Apples")
    assert notes.thinks("assistant\n", "<|begin_of_thought|>Well<|end_of_thought|>Apples")
    assert not notes.thinks("assistant\n", "The tag `<think>` opens a thought")
    assert not notes.thinks("assistant\n", "I think so")


@pytest.mark.parametrize(("begin", "end"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_special_tokens_around_a_thought_stay_so_that_it_can_be_taken_away(begin: str, end: str) -> None:
    tokenizer = kinds.with_template("{{ messages[0]['content'] }}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", begin, end]})
    ids = tokenizer(f"{begin}Well, hm{end} Apples<|end|>", add_special_tokens=False)["input_ids"]
    text = answer_text(tokenizer, ids)
    assert text == f"{begin}Well, hm{end} Apples"
    assert split_thoughts(text).answer == "Apples"
    assert answer_text(tokenizer, tokenizer("Apples<|end|>", add_special_tokens=False)["input_ids"]) == "Apples"


def test_a_temperature_next_to_zero_is_zero(alphapo: Alphapo) -> None:
    greedy, next_to = (alphapo("generate", *HERE, f"generation.temperature={t}") for t in ("0", "1e-7"))
    assert next_to.code == 0, next_to.err
    assert outputs(next_to.path) == outputs(greedy.path)
    assert next_to.path == greedy.path  # the same generation


@pytest.mark.parametrize(
    ("command", "setting"), [("generate", "temperature=0"), ("run", "temperature=0"), ("generate", "top_k=1")]
)
def test_greedy_copies_are_refused(command: str, setting: str, alphapo: Alphapo, tmp_path: Path) -> None:
    ran = alphapo(command, "generation=transformers", f"generation.{setting}", "generation.samples=3")
    assert (ran.code, ran.out) == (2, "")
    assert "greedy answers to a prompt are all the same; type generation.samples=1" in ran.fault
    assert not (tmp_path / "runs").exists()


def test_the_date_is_a_setting_of_training_and_generation() -> None:
    tokenizer = kinds.with_template(kinds.DATED)
    prompt = ({"role": "user", "content": "Name three fruits"},)
    cfg = DataConfig(date="2031-05-04")
    ids = encode_prompt(prompt, tokenizer, cfg)
    assert "04 May 2031" in tokenizer.decode(ids)
    check_template([prompt], [ids], tokenizer, cfg)


@pytest.mark.slow
def test_generation_has_the_date_of_its_run(alphapo: Alphapo, tmp_path: Path, pairs: dict[str, Path]) -> None:
    model = chat_model(tmp_path / "model", template=kinds.DATED, num_hidden_layers=1, max_position_embeddings=1024)
    line = ("train", *SCRATCH, *BARE, f"model.path={model}", "data=jsonl", f"data.path={pairs['plain']}")
    ran = alphapo(*line, "model=glassbox", "data.date=2031-05-04", "data.max_unknown=1", "probe.samples=0")
    assert ran.code == 0, ran.err
    assert load(ran.path / "summary.json")["data"]["template_date"] == "2031-05-04"
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "Name three fruits"}])
    more = ("data=jsonl", f"data.path={file}", "generation=transformers", "generation.max_new_tokens=2")
    made = alphapo("generate", str(ran.path), *more)
    assert made.code == 0, made.err
    assert load(made.path / "summary.json")["data"]["template_date"] == "2031-05-04"
    other = alphapo("generate", str(ran.path), *more, "data.date=2024-07-26")
    assert other.code == 2
    assert "token ids differ" in other.fault
    wrong = alphapo("generate", str(ran.path), *more, "data.date=4.5.2031")
    assert wrong.code == 2
    assert "must be a day in ISO form" in wrong.fault


def test_typed_special_tokens_are_counted_and_the_setting_is_the_runs(
    alphapo: Alphapo, scratch: Ran, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "Name <|user|> fruits"}, {"instruction": "Why"}])
    line = (
        "generate", str(scratch.path), "data=jsonl", f"data.path={file}", "generation=transformers",
        "generation.max_new_tokens=2",
    )  # fmt: skip
    parsed = alphapo(*line)
    assert "note: 1 of 2 prompts spell special tokens" in parsed.err
    assert "<|user|> (1), read as tokens; data.special_tokens_in_text=escape" in parsed.err
    escaped = alphapo(*line, "data.special_tokens_in_text=escape")
    assert escaped.code == 0, escaped.err
    assert "read as text" in escaped.err
    assert escaped.path != parsed.path
    refused = alphapo(*line, "data.special_tokens_in_text=refuse")
    assert refused.code == 2
    assert "line 1: spells a special token" in refused.fault
