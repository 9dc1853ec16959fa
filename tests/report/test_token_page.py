"""The token view of a measurement: what it shows, and that nothing in a text of the data can do anything."""

from __future__ import annotations

import json
from random import Random

import pytest

from alphapo_cli.report.token_page import payload, write_token_page
from tests.report.test_browser import EVIL, PHONE, WIDE, chromium, visit  # noqa: F401  (fixtures)

WORDS = ("the", "river", "violin", "planet", "of", "seven", "apples")


def measured(folder, pairs=200, seed=0):
    """The files of a measurement with generated values; the third pair's prompt and token are `EVIL`."""
    draw = Random(seed)
    rows, tokens = [], []
    for pair in range(pairs):
        row = {"pair": pair, "row": pair + 1, "set": "probe", "ches_normalised": draw.gauss(0, 1)}
        ways = []
        for side in ("chosen", "rejected"):
            count = draw.randint(3, 12)
            texts = [f"{draw.choice(WORDS)} " for _ in range(count)]
            prompt = f"Say something, number {pair}."
            if pair == 2:
                prompt, texts[0] = f"{EVIL} {prompt}", EVIL
            before, now = ([-draw.uniform(0.1, 4) for _ in range(count)] for _ in range(2))
            moved = (sum(now) - sum(before)) / count
            ways.append("down" if moved < 0 else "up")
            row[f"displacement/{side}"] = moved
            tokens.append(
                {
                    "pair": pair, "row": pair + 1, "side": side, "prompt": prompt, "ids": [0] * count, "tokens": texts,
                    "before": before, "now": now, "reward": [0.1 * (a - b) for a, b in zip(now, before, strict=True)],
                    "gradient_weight": -0.25,
                }
            )  # fmt: skip
        rows.append({**row, "quadrant": "_".join(ways)})
    for name, lines in (("measured", rows), ("tokens", tokens)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rows


RESULT = {"start": "the start", "pairs": 200, "went": "probability went 61% to others", "metrics": {}}


@pytest.fixture
def page(tmp_path):
    rows = measured(tmp_path)
    return write_token_page(tmp_path, RESULT, "a model <b>"), rows


def test_the_worst_pairs_come_first_and_no_text_is_markup(page, tmp_path):
    file, rows = page
    order = [pair["row"] for pair in payload(tmp_path)]
    assert order == [row["row"] for row in sorted(rows, key=lambda row: row["displacement/chosen"])]
    text = file.read_text()
    assert EVIL not in text
    assert "a model &lt;b&gt;" in text
    assert "Probability went 61% to others." in text
    assert all(word not in text for word in ("http://", "https://", 'src="', "@import"))  # nothing is fetched


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_opens_sorts_and_filters(page, visit, viewport, scheme):  # noqa: F811
    file, rows = page
    opened = visit(file, viewport, scheme)
    heads = opened.locator(".pair h3 span:first-child")
    worst = sorted(rows, key=lambda row: row["displacement/chosen"])
    assert heads.first.text_content() == f"row {worst[0]['row']} (probe)"
    assert opened.locator(".pair").count() == 40
    opened.select_option("#order", "rose")
    assert heads.first.text_content() == f"row {worst[-1]['row']} (probe)"
    opened.select_option("#quadrant", "down_down")
    down = [row for row in rows if row["quadrant"] == "down_down"]
    assert f"of {len(down)} pairs" in opened.locator("#count").text_content()
    opened.select_option("#quadrant", "")
    opened.fill("#search", "number 171.")
    assert opened.locator(".pair").count() == 1
    opened.fill("#search", "")
    opened.select_option("#colour", "reward")
    assert opened.locator("#unit").text_content() == "units of reward"
    opened.click("#more")
    assert opened.locator(".pair").count() == 80
    token = opened.locator(".tok").first
    token.click()
    assert "log-prob" in opened.locator(".numbers").first.text_content()
    # Coloured: not transparent where something moved.
    colours = opened.eval_on_selector_all(".tok", "all => all.map((t) => getComputedStyle(t).backgroundColor)")
    assert len(set(colours)) > 10
    # No sideways scrolling on any screen.
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.title() == "a model <b>, token by token · alphapo"
    assert opened.faults == []
