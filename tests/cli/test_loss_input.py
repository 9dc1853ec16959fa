"""`alphapo loss` on files as strangers write them: what JSON allows is read, what it does not is one line with its number."""

from __future__ import annotations

import gzip
import json

import pytest

ROW = {"chosen_logp": -10.0, "rejected_logp": -30.0, "chosen_tokens": 5, "rejected_tokens": 10}
GOOD = json.dumps(ROW).encode()
SIMPO = ("objective=simpo", "objective.beta=2", "objective.gamma=0.5")


@pytest.fixture
def loss(alphapo, tmp_path):
    def run(content, *overrides, name="rows.jsonl"):
        (tmp_path / name).write_bytes(content)
        return alphapo("loss", name, *overrides)

    return run


def margins(ran):
    assert (ran.code, ran.err) == (0, "")
    return [json.loads(row)["margin"] for row in ran.out.split("\n")[:-1]]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x7f"])
def test_a_line_ends_at_a_line_feed_only(loss, character):
    """All of these are legal inside a JSON string; str.splitlines would cut the row at the first three."""
    row = json.dumps(ROW | {"note": f"a{character}b"}, ensure_ascii=False).encode()
    # beta (L_w/n_w - L_l/n_l) = 2 (-2 + 3)
    assert margins(loss(row + b"\n" + row + b"\n", *SIMPO)) == [2.0, 2.0]


def test_windows_line_ends_and_blank_lines(loss):
    assert margins(loss(b"\r\n" + GOOD + b"\r\n \t\r\n" + GOOD, *SIMPO)) == [2.0, 2.0]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_byte_order_mark_is_passed_over(loss, name):
    content = b"\xef\xbb\xbf" + GOOD + b"\n"
    assert margins(loss(gzip.compress(content) if name.endswith("gz") else content, *SIMPO, name=name)) == [2.0]


LONG = "1" * 400  # beyond float64
LONGER = "1" * 5000  # beyond what Python reads as an integer
DEEP = "[" * 100_000 + "]" * 100_000
JUST = "[" * 900 + "]" * 900  # read, but too deep to be written out in full


@pytest.mark.parametrize("number", [LONG, f"-{LONG}", LONGER, "1e400", "NaN", "-Infinity", "true", "null", JUST])
def test_what_is_not_a_finite_number_is_named_shortly(loss, number):
    ran = loss(GOOD + b"\n\n" + GOOD.replace(b"-30.0", number.encode()), *SIMPO)
    assert (ran.code, ran.out) == (2, "")
    assert "rows.jsonl: line 3: rejected_logp=" in ran.fault
    assert "finite number" in ran.fault
    assert len(ran.fault) < 200


@pytest.mark.parametrize("value", [LONG, LONGER, JUST, "null"])
def test_columns_that_nobody_reads_may_hold_anything(loss, value):
    row = GOOD.replace(b"{", f'{{"more": {value}, '.encode(), 1)
    assert margins(loss(row, *SIMPO)) == [2.0]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"chosen_logp": ' + DEEP.encode(), "nested too deeply"),
        ("{'é': 1}".encode("latin-1"), "not UTF-8"),
        (GOOD.decode().encode("utf-16"), "not UTF-8"),
        (b'{"chosen_logp": -1', "broken JSON"),
        (b"3", "JSON object"),
        (b'"' + "\u2028".encode() + b'"', "JSON object"),
    ],
)
def test_a_broken_line_is_named_by_its_number(loss, line, part):
    ran = loss(GOOD + b"\n" + GOOD + b"\n\n" + line + b"\n" + GOOD, *SIMPO)
    assert (ran.code, ran.out) == (2, "")
    assert "rows.jsonl: line 4: " in ran.fault
    assert part in ran.fault


@pytest.mark.parametrize(
    "content",
    [gzip.compress(GOOD * 50)[:-9], b"\x1f\x8b\x08\x00" + b"\xff" * 40, GOOD],
    ids=["cut off", "no deflate stream", "not gzip"],
)
def test_a_damaged_gzip_file(loss, content):
    ran = loss(content, *SIMPO, name="rows.jsonl.gz")
    assert (ran.code, ran.out) == (2, "")
    assert "rows.jsonl.gz: cannot be read" in ran.fault


def test_a_result_beyond_float64_prints_no_row_at_all(loss):
    """The first row is fine; the second one's squared margin is not."""
    huge = json.dumps(ROW | {"chosen_logp": -1e200, "chosen_tokens": 1}).encode()
    line = ("objective=simpo", "objective.beta=1e200", "objective.gamma=0")
    ran = loss(GOOD + b"\n" + huge, *line)
    assert (ran.code, ran.out) == (2, "")
    assert "rows.jsonl: line 2: " in ran.fault
    assert "chosen_logp=-1e+200" in ran.fault
    assert loss(GOOD, *line).code == 0


class TestWithoutRejectedSide:
    """sft: minus the mean log-prob of the chosen side, 10/5."""

    @pytest.mark.parametrize(
        "row",
        [
            {"chosen_logp": -10.0, "chosen_tokens": 5},
            ROW | {"rejected_logp": None},
            ROW | {"rejected_logp": None, "rejected_tokens": None},
            ROW | {"rejected_tokens": None},
        ],
    )
    def test_missing_or_null(self, loss, row):
        ran = loss(json.dumps(row).encode(), "objective=sft")
        assert (ran.code, ran.err) == (0, "")
        found = json.loads(ran.out)
        assert (found["loss"], found["d_loss_d_chosen_logp"]) == (2.0, -0.2)
        assert [found[k] for k in ("rejected_reward", "margin", "d_loss_d_rejected_logp")] == [None] * 3

    def test_other_objectives_need_it(self, loss):
        ran = loss(json.dumps(ROW | {"rejected_logp": None}).encode(), *SIMPO)
        assert ran.code == 2
        assert "line 1: rejected_logp=null must be a finite number" in ran.fault


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("alpha=1", "'alpha=1': alphapo loss takes overrides of objective, objective/... and objective.* only; did you"
                    " mean 'objective.shape.alpha'?"),
        ("objective.alpha=1", "unknown key 'objective.alpha'; did you mean 'objective.shape.alpha'?"),
    ],
)  # fmt: skip
def test_a_key_at_the_wrong_place_is_refused_with_the_right_one(loss, line, part):
    ran = loss(GOOD, line)
    assert (ran.code, ran.out) == (2, "")
    assert part in ran.fault
