"""Generation sees the ids that training saw, or says where they differ and stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.text_pairs import PromptContext
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.parity import check_engine, check_run, check_template
from alphapo_cli.generation.run_settings import RecordedPrompts, RunRecord
from tests.conftest import BARE, SCRATCH, TINY, Ran, run_here, write_rows
from tests.data import data_tokenizers as kinds

Alphapo = Callable[..., Ran]
USER = ({"role": "user", "content": "Name three fruits, please."},)


@pytest.fixture
def run(trained: Ran, tmp_path: Path) -> Path:
    """A copy of a run, to be changed."""
    return shutil.copytree(trained.path, tmp_path / "copy", ignore=shutil.ignore_patterns("wandb", "samples"))


def refused(ran: Ran, *parts: str) -> None:
    assert (ran.code, ran.out) == (2, ""), ran.err
    for part in parts:
        assert part in ran.fault


def template_of(run: Path) -> Path:
    return run / "model" / "chat_template.jinja"


def without_checksums(run: Path) -> None:
    """As a run of an earlier version, or a directory that somebody else made."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["files"], summary["checksum"]
    (run / "summary.json").write_text(json.dumps(summary))


def test_another_template_is_found_with_both_lists_and_the_place(run: Path, alphapo: Alphapo, tmp_path: Path) -> None:
    recorded = json.loads((run / "prompts.json").read_text())[0]["ids"]
    bos, user = recorded[:2]
    file = template_of(run)
    file.write_text(file.read_text().replace("'<s>'", "'<s> <s>'"))  # a second BOS
    line = ("generate", str(run), "generation=transformers", "data.limit=2")
    refused(alphapo(*line), "the model is not the one that the run", "chat_template.jinja")
    without_checksums(run)
    refused(
        alphapo(*line), "differ at position 1", "'<user>' against '<s>'", f"training saw {recorded}",
        f"generation makes {[bos, bos, user, *recorded[2:]]}",
    )  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_template_settings_of_the_run_hold_and_others_are_found(
    alphapo: Alphapo, scratch: Ran, pairs: dict[str, Path]
) -> None:
    """A system prompt that training did not have; the run's own tokenizer takes any."""
    line = ("generate", str(scratch.path), "generation=transformers", f"data.path={pairs['plain']}", "data.limit=2")
    short = "generation.max_new_tokens=2"
    assert alphapo(*line, short).code == 0
    refused(alphapo(*line, short, "data.system=Be brief."), "token ids differ at position 1", "'<|system|>'")
    refused(alphapo(*line, short, "data.template=plain"), "leave data.template=auto")


@pytest.mark.parametrize(
    "left", [None, "[]", "null", "{}", '[{"prompt": "a", "ids": []}]', '[{"prompt": "a", "ids": ["b"]}]']
)
def test_a_run_that_recorded_nothing_is_not_trusted(left: str | None, run: Path, alphapo: Alphapo) -> None:
    """Unless the line says so, and then it is said. Of a directory without checksums, as another's may be."""
    without_checksums(run)
    if left is None:
        (run / "prompts.json").unlink()
    else:
        (run / "prompts.json").write_text(left)
    line = ("generate", str(run), "generation=transformers", "data.limit=2", "generation.max_new_tokens=2")
    refused(
        alphapo(*line),
        "prompts.json (the ids that training saw) cannot be read",
        "so nothing can be compared",
        str(run / "model"),
        "generation.accept_unverified_prompts=true",
    )
    if left in (None, "[]"):
        accepted = alphapo(*line, "generation.accept_unverified_prompts=true")
        assert accepted.code == 0, accepted.err
        assert "nothing can be compared with what training saw" in accepted.err


def test_prompts_that_training_had_cut_are_recognised(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, alphapo: Alphapo
) -> None:
    line = ("train", *TINY, *BARE, "data.max_prompt_length=5", "trainer.max_steps=1", "probe.samples=0")
    ran = run_here(line, tmp_path_factory.mktemp("cut"), shared_cache)
    recorded = json.loads((ran.path / "prompts.json").read_text())
    assert {len(row["ids"]) for row in recorded} == {5}
    again = alphapo("generate", str(ran.path), "generation=transformers", "data.limit=2")
    assert again.code == 0, again.err


def test_a_header_that_training_counts_to_the_answer_is_fed_to_generation(
    alphapo: Alphapo, pairs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `alphapo generate`, which takes the setting over from the run, and by the answers sampled during training."""
    from alphapo_cli.modeling.sampling import sample
    from alphapo_cli.probe import sampled_answers

    fed: list[list[int]] = []

    def noted(lm: Any, ids: list[list[int]], *more: Any, **settings: Any) -> Any:
        fed.extend(ids)
        return sample(lm, ids, *more, **settings)

    monkeypatch.setattr(sampled_answers, "sample", noted)
    data = ("data=jsonl", f"data.path={pairs['plain']}")
    counted = ("data.completion_includes_header=true", "data.second_end_token=true")
    ran = alphapo("train", *SCRATCH, *BARE, *data, *counted, "probe.samples=2", "probe.max_new_tokens=2")
    assert ran.code == 0, ran.err
    tokens = json.loads((ran.path / "model" / "tokenizer.json").read_text())["added_tokens"]
    header = next(token["id"] for token in tokens if token["content"] == "<|assistant|>")
    recorded = json.loads((ran.path / "prompts.json").read_text())
    assert {ids[-1] for ids in (*fed, *(row["ids"] for row in recorded))} == {header}
    made = alphapo(
        "generate", str(ran.path), "generation=transformers", *data, "data.limit=2", "generation.max_new_tokens=2"
    )
    assert made.code == 0, made.err
    config = (made.path / "config.yaml").read_text()
    assert "completion_includes_header: true" in config
    refused(alphapo("generate", str(ran.path), *data, counted[1]), "data.second_end_token: concerns training pairs")


@pytest.fixture(params=[kinds.bpe, kinds.llama2, kinds.chatml], ids=["template BOS", "both BOS", "no BOS"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_our_ids_are_the_templates_own(tokenizer: Any) -> None:
    ids = encode_prompt(USER, tokenizer, DataConfig())
    check_template([USER], [ids], tokenizer, DataConfig())
    doubled = [ids[0], *ids]
    with pytest.raises(UsageError) as error:
        check_template([USER, USER], [ids, doubled], tokenizer, DataConfig())
    assert "prompt 2: token ids differ at position 1" in str(error.value)
    assert str(ids) in str(error.value)
    assert str(doubled) in str(error.value)


def test_a_template_that_writes_the_date_has_the_day_of_training() -> None:
    tokenizer = kinds.with_template(kinds.DATED)
    ids = encode_prompt(USER, tokenizer, DataConfig())
    assert "26 Jul 2024" in tokenizer.decode(ids)
    check_template([USER], [ids], tokenizer, DataConfig())


def test_a_bos_that_only_the_tokenizer_writes_is_no_difference() -> None:
    tokenizer = kinds.with_template(kinds.BARE)
    own = tokenizer.apply_chat_template(list(USER), add_generation_prompt=True, return_dict=False)
    ids = encode_prompt(USER, tokenizer, DataConfig())
    assert ids == [tokenizer.bos_token_id, *own]
    check_template([USER], [ids], tokenizer, DataConfig())
    with pytest.raises(UsageError, match="position 0"):
        check_template([USER], [[tokenizer.bos_token_id, *ids]], tokenizer, DataConfig())


def record(ids: list[int], max_length: int = 64, max_prompt_length: int | None = None) -> RunRecord:
    return RunRecord((RecordedPrompts(USER, tuple(ids)),), "files", max_length, max_prompt_length)


def test_a_system_prompt_is_not_taken_for_a_cut() -> None:
    """What is missing at the beginning may be training's cut only where training cuts."""
    tokenizer = kinds.bpe()
    bare = encode_prompt(USER, tokenizer, DataConfig())
    system = DataConfig(system="Be brief.")
    longer = encode_prompt(USER, tokenizer, system)
    assert longer[-(len(bare) - 1) :] == bare[1:], "the shape of a cut"
    with pytest.raises(UsageError, match="position 1"):
        check_run(record(bare), tokenizer, system)
    check_run(record([bare[0], *bare[-4:]], max_prompt_length=5), tokenizer, DataConfig())
    with pytest.raises(UsageError):
        check_run(record([bare[0], *bare[-5:-1]], max_prompt_length=5), tokenizer, DataConfig())


def test_the_engine_must_be_given_our_ids() -> None:
    tokenizer = kinds.bpe()
    check_engine(3, [0, 7, 8], [0, 7, 8], tokenizer)
    with pytest.raises(
        UsageError, match=r"prompt 3: token ids differ at position 2 \(8 against the end|against the end"
    ):
        check_engine(3, [0, 7, 8], [0, 7], tokenizer)


SCHEMA = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def test_tools_and_other_context_are_compared_too() -> None:
    tokenizer = kinds.with_template(kinds.TOOLS)
    context = PromptContext("Be brief.", {"tools": [SCHEMA]})
    ids = encode_prompt(USER, tokenizer, DataConfig(), context)
    check_template([USER], [ids], tokenizer, DataConfig(), [context])
    with pytest.raises(UsageError, match="prompt 1: token ids differ"):
        check_template([USER], [encode_prompt(USER, tokenizer, DataConfig())], tokenizer, DataConfig(), [context])
    recorded = RunRecord((RecordedPrompts(USER, tuple(ids), context),), "files", 4096, None)
    check_run(recorded, tokenizer, DataConfig())
    with pytest.raises(UsageError, match=r"training prompt 1: .*data\.chat_template_kwargs"):
        check_run(recorded, tokenizer, DataConfig(chat_template_kwargs={"mood": "good"}))


@pytest.mark.slow
def test_a_run_on_tools_generates_with_what_it_was_trained_on(alphapo: Alphapo, scratch: Ran, tmp_path: Path) -> None:
    """Recorded with its tools and arguments; generation takes the arguments over, and says what it does not use."""
    model = shutil.copytree(scratch.path / "model", tmp_path / "model")
    (model / "chat_template.jinja").write_text(kinds.TOOLS)
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {n}?"}], "tools": json.dumps([SCHEMA]), "system": "Be brief.",
         "chosen": [{"role": "assistant", "content": None, "tool_calls": [call]}],
         "rejected": [{"role": "assistant", "content": f"Nothing {n}"}]}
        for n in range(10)
    ]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    short = [*BARE, "trainer=small", "trainer.threads=1", "trainer.use_cpu=true", "trainer.max_steps=1", "data=jsonl"]
    line = (
        "train",
        *short,
        "objective=simpo",
        f"model.path={model}",
        "data.path=rows.jsonl",
        "data.chat_template_kwargs.mood=good",
    )
    ran = alphapo(*line, "trainer.per_device_train_batch_size=4")
    assert ran.code == 0, ran.err
    recorded = json.loads((ran.path / "prompts.json").read_text())[0]
    assert recorded["context"] == {"system": "Be brief.", "arguments": {"tools": [SCHEMA]}}
    generate = (
        "generate",
        str(ran.path),
        "generation=transformers",
        "generation.max_new_tokens=2",
        "data.path=rows.jsonl",
    )
    made = alphapo(*generate, "data.limit=2")
    assert made.code == 0, made.err
    assert "not in the text" not in made.err
    summary = json.loads((made.path / "summary.json").read_text())
    assert (summary["data"]["rows_read"], summary["data"]["not_rendered"]) == (2, {})
    refused(alphapo(*generate, "data.limit=2", "data.chat_template_kwargs.mood=bad"), "token ids differ")
    (ran.path / "model" / "chat_template.jinja").write_text(kinds.TOOLS.replace("{{ tools | tojson }}", "some"))
    without_checksums(ran.path)
    refused(alphapo(*generate), "training prompt 1: token ids differ")
    bare = write_rows(
        tmp_path / "bare.jsonl",
        [{"messages": [*rows[0]["prompt"], *rows[0]["rejected"]], "name": "x", "tools": [SCHEMA]}],
    )
    (model / "chat_template.jinja").write_text(kinds.BARE)
    noted = alphapo(
        "generate", str(model), "generation=transformers", "generation.max_new_tokens=2", f"data.path={bare}"
    )
    assert noted.code == 0, noted.err
    for note in (
        "1 of 1 conversations end with an answer",
        "columns not used: name (1)",
        "not in the text of the prompts: tools (1)",
    ):
        assert note in noted.err
