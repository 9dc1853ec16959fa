"""`alphapo inspect` shows the ids that training uses, and refuses what training refuses."""

from __future__ import annotations

import json
from collections import Counter
from statistics import mean

import pytest


def result(ran):
    assert ran.code == 0, ran.err
    return json.loads(ran.out.splitlines()[-1])


@pytest.fixture
def inspected(alphapo):
    return lambda *line: result(alphapo("inspect", *line, "--json", "-"))


def line_of(run):
    """The overrides of a run, without --json FILE and the like."""
    words = json.loads((run.path / "manifest.json").read_text())["command"][2:]
    return [word for word in words if "=" in word and not word.startswith("--")]


class TestIds:
    @pytest.mark.parametrize("which", ["trained", "scratch"])
    def test_they_are_those_of_the_run(self, which, request, inspected):
        """The key hashes every id of training and probe pairs; prompts.json has the prompts that generation is checked by."""
        run = request.getfixturevalue(which)
        found = inspected(*line_of(run), "--rows", "3")
        assert found["key"] == json.loads((run.path / "manifest.json").read_text())["data"]["key"]
        recorded = json.loads((run.path / "prompts.json").read_text())
        rows = recorded["prompts"] if isinstance(recorded, dict) else recorded
        shown = [pair["parts"][0] for pair in found["pairs"]]
        assert [part["name"] for part in shown] == ["prompt"] * 3
        assert [part["ids"] for part in shown] == [row["ids"] for row in rows[:3]]

    def test_what_is_trained(self, inspected, scratch):
        """The answer with its end token, once; nothing of the prompt."""
        line = [word for word in line_of(scratch) if not word.startswith("objective")]  # sft's, which reads one side
        (pair,) = inspected(*line, "--rows", "1")["pairs"]
        prompt, *answers = pair["parts"]
        assert not any(prompt["trained"])
        assert [answer["name"] for answer in answers] == ["chosen", "rejected"]
        for answer in answers:
            assert all(answer["trained"])
            assert answer["ids"].count(answer["ids"][-1]) == 1
        assert answers[0]["text"].startswith(" The ") or answers[0]["text"].startswith("The ")

    @pytest.mark.parametrize(
        ("objective", "rows", "untrained"),
        [
            ("sft", [{"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(12)], "rejected"),
            (
                "kto", [{"prompt": f"Q{n}", "completion": f"so {n}", "label": n % 2 == 0} for n in range(12)],
                "answer to another prompt",
            ),
        ],
    )  # fmt: skip
    def test_answers_without_a_gradient_are_not_trained(self, objective, rows, untrained, alphapo, tmp_path):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ran = alphapo("inspect", f"objective={objective}", "model=from_scratch", "data=jsonl", "data.path=rows.jsonl",
                      "probe.pairs=2", "--rows", "4", "--json", "-")  # fmt: skip
        found = {part["name"]: any(part["trained"]) for pair in result(ran)["pairs"] for part in pair["parts"]}
        assert found.pop("prompt") is False
        assert found.pop(untrained) is False
        assert found
        assert all(found.values())
        assert f"not trained on: {untrained}" in ran.out

    def test_turns_of_others_are_not_trained(self, inspected, tmp_path):
        rows = [
            {
                "chosen": [
                    {"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": "Which one?"},
                    {"role": "user", "content": "This"}, {"role": "assistant", "content": f"Yes {n}"},
                ],
                "rejected": [
                    {"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": f"No {n}"},
                ],
            }
            for n in range(20)
        ]  # fmt: skip
        (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = inspected(
            "model=from_scratch", "data=jsonl", "data.path=turns.jsonl", "data.trajectories=true", "probe.pairs=2"
        )
        chosen = found["pairs"][0]["parts"][1]
        assert 0 < sum(chosen["trained"]) < len(chosen["ids"])


class TestFigures:
    def test_lengths_and_bias(self, inspected, scratch):
        """All training pairs are shown, so that every figure can be counted from them."""
        found = inspected(*line_of(scratch), "--rows", "1000")
        sides: dict[str, list[list[int]]] = {name: [] for name in ("prompt", "chosen", "rejected")}
        for pair in found["pairs"]:
            for part in pair["parts"]:
                sides[part["name"]].append(part["ids"])
        for histogram in found["lengths"]:
            lengths = [len(ids) for ids in sides[histogram["name"]]]
            bins = zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False)
            assert all(sum(low <= n < high for n in lengths) == count for low, high, count in bins)
            assert sum(histogram["counts"]) == len(lengths)
        gaps = [len(c) - len(r) for c, r in zip(sides["chosen"], sides["rejected"], strict=True)]
        bias = found["length_bias"]
        assert bias["mean_gap"] == pytest.approx(mean(gaps))
        assert (bias["longer"], bias["equal"]) == (sum(g > 0 for g in gaps), sum(g == 0 for g in gaps))
        most = Counter(tuple(ids[:4]) for ids in sides["chosen"]).most_common(1)[0][1]
        assert found["openings"]["chosen"][0][1] == most

    def test_what_is_left_out_is_said(self, alphapo, tmp_path):
        same = {"prompt": "Say it.", "chosen": "It.", "rejected": "It."}
        rows = [{"prompt": f"Say {n}.", "chosen": "Yes, of course.", "rejected": "No."} for n in range(30)]
        text = "".join(json.dumps(row) + "\n" for row in [same, *rows, rows[0], rows[1]])
        (tmp_path / "rows.jsonl").write_text(text)
        ran = alphapo("inspect", "model=from_scratch", "data=jsonl", "data.path=rows.jsonl", "probe.pairs=2")
        assert "left out: both answers are the same: 1 of 33 rows, 3.0%" in ran.out
        assert "duplicates of another row, trained on: 2 of 33 rows" in ran.out
        assert "the labels favour longer answers" in ran.out
        assert "next: alphapo train model=from_scratch" in ran.err


def test_the_page(alphapo, tmp_path, pairs):
    """Every id and text of the shown pairs, markup in the data as text, and nothing from elsewhere."""
    rows = [
        {"prompt": f"<b>{n}</b>", "chosen": "<script>alert(1)</script>", "rejected": f"no & {n}"} for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("model=from_scratch", "data=jsonl", "data.path=rows.jsonl", "probe.pairs=2")
    ran = alphapo("inspect", *line, "--rows", "1", "--html", "page.html", "--json", "-")
    page = (tmp_path / "page.html").read_text()
    for part in result(ran)["pairs"][0]["parts"]:
        assert " ".join(map(str, part["ids"])) in page
    assert "<script" not in page
    assert "http" not in page
    assert "title='" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("model.path=./gone", "data=glassbox"), "model.path=./gone: no such directory"),
        (("model=from_scratch", "data=jsonl", "data.path=none.jsonl"), "none.jsonl: no such file"),
        (("objective=odpo",), "odpo"),  # reads scores, which the data lack
        (("--html", "no/such/folder.html"), "no such folder"),
    ],
)
def test_what_is_refused(line, said, alphapo):
    ran = alphapo("inspect", *line)
    assert ran.code == 2
    assert said in ran.err.splitlines()[-1]
