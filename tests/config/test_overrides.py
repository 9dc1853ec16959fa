"""Texts on the command line: what is typed is what the setting holds, or the line says how to quote it."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources, quoted, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.sweep.grid import make

SOURCES = Sources()


def composed(*texts):
    return compose("train", TrainConfig, [read_line(texts, SOURCES)], SOURCES)


VERBATIM = [
    "/tmp/ü/x", "日本/語.jsonl", "/data/lr=1e-4/step=3/model", "/tmp/a b/pairs (1).jsonl", "a[1].jsonl", "~/pairs.jsonl",
    "it's.jsonl", 'say "a".jsonl', "a#b", "a&b;c", "a!b", "C:\\data\\pairs.jsonl", "s3://bucket/x?y=z", "*.jsonl", "emoji😀",
]  # fmt: skip


@pytest.mark.parametrize("text", VERBATIM)
def test_paths_are_taken_as_they_are_typed(text):
    cfg = composed(f"data.path={text}", f"model.path={text}", f"run.dir={text}")
    assert (cfg.data.path, cfg.model.path, cfg.run.dir) == (text, text, text)


NUMBERS = ["1e3", "2024_01", "007", "1.50", "-0", "+5", ".5", "5.", "1E5", "true", "True", "FALSE", "1_000.0", "inf"]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_text_that_looks_like_a_number_stays_the_text(text):
    cfg = composed(f"run.name={text}", f"data.config={text}", f"model.revision={text}", f"tracking.tags=[a,{text}, b]")
    assert (cfg.run.name, cfg.data.config, cfg.model.revision) == (text, text, text)
    assert cfg.tracking.tags == ["a", text, "b"]


def test_numbers_are_still_numbers_where_numbers_belong():
    cfg = composed("objective.beta=1e0", "trainer.max_steps=1_0", "trainer.bf16=True", "data.limit=null")
    assert (cfg.objective.beta, cfg.trainer.max_steps, cfg.trainer.bf16, cfg.data.limit) == (1.0, 10, True, None)


def test_null_takes_a_text_away_unless_it_is_quoted():
    assert composed("run.name=null").run.name is None
    assert composed("run.name='null'").run.name == "null"


ANYTHING = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(lambda t: "${" not in t)


@settings(max_examples=25)
@given(text=ANYTHING, quote=st.sampled_from("'\""))
def test_every_text_can_be_quoted(text, quote):
    assert composed(f"data.system={quoted(text, quote)}").data.system == text


@pytest.mark.parametrize(
    "values",
    [
        ("a=b.jsonl", "plain.jsonl"), ("p(1).jsonl", "plain.jsonl"), ("plain.jsonl", "s[1].jsonl", "r{2}.jsonl"),
        ("it's.jsonl", "c=d.jsonl"), ('t"u.jsonl', "x=y"), ("p(1,2).jsonl", "plain.jsonl"), ("s[1.jsonl", "plain.jsonl"), ("é=ü", "a!b=$c"),
        ("both'and\"=", "`a=b`"),
    ],
)  # fmt: skip
def test_several_odd_texts_are_refused_with_the_line_to_type(values):
    with pytest.raises(ConfigError) as found:
        read_line([f"data.path={','.join(values)}"], SOURCES)
    (again,) = shlex.split(str(found.value).partition("; as several values, type ")[2])
    cells = make(None, [again], SOURCES).cells
    assert [cell.cfg.data.path for cell in cells] == list(values)


@settings(max_examples=25)
@given(text=ANYTHING)
def test_every_text_is_taken_verbatim_or_refused_with_the_line_to_type(text):
    """Never something else: but for white space around it, null, casts and the grammar's own escapes and quotes."""
    stripped = text.strip()
    try:
        found = composed(f"data.system={text}").data.system
    except ConfigError as error:
        (again,) = shlex.split(re.split(r"as (?:one )?text, type |; as several values, type ", str(error))[1])
        found = composed(again).data.system
    if stripped.lower() == "null":
        assert found is None
    elif not stripped.startswith(("'", '"')) and "\\" not in stripped and not re.match(r"\w+\(", stripped):
        assert found == stripped


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("data.path=/tmp/a,b.jsonl", "lists several values"),
        ("data.path='/tmp/a", "not an override"),
        ("data.path={a b}", "not an override"),
        ("data.path=(a)b", "not an override"),
        ('data.system=Say "hi", then stop.', "not an override"),
        ("data.system=Don't, please", "not an override"),
        ("data.system='both', \"kinds", "not an override"),
    ],
)
def test_what_could_mean_something_else_says_what_to_type(line, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        composed(line)
    (typed,) = shlex.split(str(error.value).rpartition(" type ")[2])
    key, _, text = line.partition("=")
    assert typed.startswith(f"{key}=")
    cfg = composed(typed)
    assert text in (cfg.data.path, cfg.data.system)


def test_the_value_of_another_type_is_refused_by_its_type():
    """Taken verbatim, it then meets the schema."""
    with pytest.raises(ConfigError, match=r"objective\.beta=2#: must be a number"):
        composed("objective.beta=2#")
    with pytest.raises(ConfigError, match=r"objective=dpo=x: no such objective; did you mean 'dpo'\?"):
        composed("objective=dpo=x")


class TestSweeps:
    @pytest.mark.parametrize(
        ("line", "values"),
        [
            ("model.revision=1e3,2024_01,007", ["1e3", "2024_01", "007"]),
            ("model.revision=choice(1e3,2024_01)", ["1e3", "2024_01"]),
            ("model.revision='null',true,None", ["null", "true", "None"]),
            ("model.revision='C:\\x','it\\'s','a,b','ü'", ["C:\\x", "it's", "a,b", "ü"]),
            ("model.revision=a b,c", ["a b", "c"]),
            ("model.revision=null,x", [None, "x"]),
        ],
    )
    def test_texts_stay_what_they_are(self, line, values):
        cells = make(None, [line], SOURCES).cells
        assert [c.cfg.model.revision for c in cells] == values
        assert [c.point["model.revision"] for c in cells] == values

    def test_one_value_of_a_swept_text(self, tmp_path):
        (tmp_path / "own.yaml").write_text("grid: {model.revision: '1e3,x'}")
        cells = make(str(tmp_path / "own.yaml"), ["model.revision=2024_01"], SOURCES).cells
        assert [c.cfg.model.revision for c in cells] == ["2024_01"]
