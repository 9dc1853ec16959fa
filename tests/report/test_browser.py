"""The report in headless Chromium: it works offline, on a desk and on a phone, in light and in dark."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np
import pytest

from alphapo_cli.data.glassbox import world
from alphapo_cli.plots.sweep_curves import SweepCurve, value_colours
from alphapo_cli.report.write import write_report, write_run, write_runs
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.stages import missing_shapes
from alphapo_cli.sweep.directory import SweepDirectory
from tests.crafted_sweep import ALPHA, craft, shape_rows

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
FIGURES = ("outcome", "advantage", "chosen", "rejected", "trajectory", "quadrants", "gradient", "kl", "frontier",
           "length", "explorer")  # fmt: skip
EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def chromium():
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'alphapo[test]'")
    with sync_api.sync_playwright() as playwright:
        # Chromium's own sandbox refuses to run as root.
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a page; anything that it says or asks for beyond its own file is kept in `page.faults`."""
    contexts = []

    def open_page(html, viewport=WIDE, scheme="light"):
        phone = viewport is PHONE
        context = chromium.new_context(
            viewport=viewport,
            color_scheme=scheme,
            is_mobile=phone,
            has_touch=phone,
            device_scale_factor=2 if phone else 1,
        )
        contexts.append(context)
        faults = []

        def only_the_file(route):
            if route.request.url == html.as_uri():
                return route.continue_()
            faults.append(f"asked for {route.request.url}")
            return route.abort()

        context.route("**/*", only_the_file)
        page = context.new_page()
        page.faults = faults
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append("dialog"), dialog.dismiss()))
        page.goto(html.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def report(folder, *line, **how):
    return write_report(SweepDirectory(craft(folder, *line, **how)), pictures=False).html


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """Five alphas, two seeds: alpha = 1 lost a seed, and answers try to be markup."""

    def change(cell, made):
        alpha = cell.point[ALPHA]
        made.win, made.fall = 0.7 - 0.2 * alpha, -0.1 - 0.2 * abs(alpha) - 0.05 * cell.point["seed"]
        if alpha == 0.5:
            made.answers = dict.fromkeys(world.instructions(24), EVIL)
        if alpha == 1 and cell.point["seed"] == 1:
            made.state, made.reason, made.steps = "failed", EVIL, (0, 4)

    return report(tmp_path_factory.mktemp("sweep"), f"{ALPHA}=-1,-0.5,0,0.5,1", "seed=0,1", change=change)


def lines(page, figure, kind=""):
    """How many curves of a figure are drawn in full."""
    return page.locator(f'[data-figure="{figure}"] path.line{kind}:not(.off)').count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_opens_without_a_fault_and_every_figure_is_there(visit, html, viewport, scheme, tmp_path):
    page = visit(html, viewport, scheme)
    for figure in FIGURES:
        marks = page.locator(f'[data-figure="{figure}"] svg [data-p]')
        assert marks.count() >= 4, figure
        box = page.locator(f'[data-figure="{figure}"] svg').bounding_box()
        assert box["x"] >= 0, figure
        assert box["x"] + box["width"] <= viewport["width"], figure
        assert box["height"] >= 120, figure
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.locator(".answer").count() == 3 * 4  # three prompts: the start and three alphas
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.faults == []


def test_a_page_that_asks_for_more_would_be_noticed(visit, tmp_path):
    (tmp_path / "page.html").write_text('<img src="https://example.org/x.png"><script>lost()</script>')
    page = visit(tmp_path / "page.html")
    page.wait_for_timeout(200)
    assert any("example.org" in fault for fault in page.faults)
    assert any(fault.startswith("error: ") for fault in page.faults)


def test_no_axis_label_hangs_out_of_its_figure(visit, html):
    for viewport in (WIDE, PHONE):
        page = visit(html, viewport)
        outside = page.evaluate("""() => [...document.querySelectorAll('.plot svg')].flatMap((svg) => {
            const frame = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter((text) => {
                const box = text.getBoundingClientRect();
                return box.left < frame.left - 1 || box.right > frame.right + 1;
            }).map((text) => text.textContent);
        })""")
        assert outside == []


def test_picking_alphas(visit, html):
    page = visit(html)
    assert lines(page, "chosen", ":not(.thin)") == 5
    page.get_by_role("button", name="0.5", exact=True).click()
    assert lines(page, "chosen", ":not(.thin)") == 1
    assert page.locator('[data-figure="chosen"] path.line.off').count() == 4
    assert {h.inner_text() for h in page.locator(".answer h4").all()} == {"before training", "alpha = 0.5"}
    page.get_by_role("button", name="−1", exact=True).click()
    assert lines(page, "chosen", ":not(.thin)") == 2
    assert lines(page, "rejected", ":not(.thin)") == 2
    assert page.locator('button[aria-pressed="true"]').all_inner_texts() == ["−1", "0.5"]
    page.get_by_role("button", name="All", exact=True).click()
    assert lines(page, "chosen", ":not(.thin)") == 5
    assert page.faults == []


def test_picking_on_a_phone(visit, html):
    page = visit(html, PHONE)
    page.get_by_role("button", name="−0.5", exact=True).tap()
    assert lines(page, "trajectory") == 1
    assert page.faults == []


def test_seeds_are_drawn_when_asked_for(visit, html):
    page = visit(html)
    before = lines(page, "chosen", ".thin")
    page.get_by_role("button", name="Seeds").click()
    assert lines(page, "chosen", ".thin") == before + 10
    assert page.locator('[data-figure="chosen"] .cross').count() == 1  # where the failed seed ended


def test_pointing_at_a_dot_names_it_and_lifts_its_curves(visit, html):
    page = visit(html)
    tip = page.locator("#tip")
    assert not tip.is_visible()
    dot = page.locator('[data-figure="kl"] circle[data-p="4"]')
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.is_visible()
    assert "alpha = 1" in tip.inner_text()
    assert "0.2" in tip.inner_text()  # the KL at its end

    def opacity(point):
        found = page.locator(f'[data-figure="chosen"] path.line[data-p="{point}"]:not(.thin)').first
        return found.evaluate("node => node.getAnimations().forEach(a => a.finish()) || getComputedStyle(node).opacity")

    assert (opacity(4), opacity(0)) == ("1", "0.1")
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    assert page.faults == []


def test_the_theme_follows_the_system_until_the_reader_chooses(visit, html):
    def look(page):
        ink, paper = (page.evaluate(f"getComputedStyle(document.body).{part}") for part in ("color", "backgroundColor"))
        zero = page.locator('[data-figure="kl"] circle[data-p="2"]').get_attribute("fill")
        return ink, paper, zero

    light, dark = look(visit(html, scheme="light")), look(visit(html, scheme="dark"))
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page = visit(html, scheme="light")
    button = page.locator("#theme")
    button.click()
    assert (button.inner_text(), look(page)) == ("Light", light)
    button.click()
    assert (button.inner_text(), look(page)) == ("Dark", dark)
    page.reload()
    assert look(page) == dark
    page.locator("#theme").click()
    assert (page.locator("#theme").inner_text(), look(page)) == ("Auto", light)
    page.emulate_media(color_scheme="dark")
    wait_until(page, lambda: look(page) == dark)  # the style turns at once, the drawings with the event
    assert look(page) == dark


def test_any_metric(visit, html):
    page = visit(html)
    select = page.locator("#metric")
    offered = select.locator("option").all_inner_texts()
    assert {"displacement/chosen", "entropy/chosen", "train/loss", "glassbox/length"} <= set(offered)
    for metric in offered:
        select.select_option(metric)
        assert lines(page, "explorer") >= 5, metric
        assert len(page.locator("#meaning").inner_text()) > 20
    assert page.faults == []


def test_sorting_a_table(visit, html):
    page = visit(html)

    def column():
        cells = page.locator("#numbers table.sortable tbody tr td:nth-child(2)").all()
        return [float(c.get_attribute("data-value")) for c in cells]

    head = page.get_by_role("columnheader", name="true win rate")
    head.click()
    assert column() == sorted(column())
    head.click()
    assert column() == sorted(column(), reverse=True)


def test_more_prompts(visit, html):
    page = visit(html)
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    assert page.locator(".prompt").count() == 24


def test_answers_that_look_like_markup_are_text(visit, html):
    page = visit(html)
    page.get_by_role("button", name="0.5", exact=True).click()
    assert page.locator(".answer p", has_text="onerror").count() == 3
    assert "onerror" in page.locator("td.words").first.inner_text()
    assert page.title() == "alpha sweep · alphapo"
    assert page.locator("img").count() == 0
    assert page.faults == []


def wait_until(page, reached):
    """As Playwright's wait_for_function, whose text the page's own policy does not let it evaluate twice."""
    for _ in range(100):
        if reached():
            return
        page.wait_for_timeout(50)


def test_a_narrower_window_redraws(visit, html):
    page = visit(html)
    svg = page.locator('[data-figure="chosen"] svg')
    before = svg.bounding_box()["width"]
    page.set_viewport_size({"width": 480, "height": 800})
    wait_until(page, lambda: svg.bounding_box()["width"] != before)
    assert svg.bounding_box()["width"] < before
    assert page.evaluate("document.documentElement.scrollWidth") <= 480


ODD: dict[str, Any] = {
    "methods": (("objective=dpo,simpo,alphapo_ratio", "seed=0,1"), None, None),
    "two keys": ((f"{ALPHA}=-1,0,1", "objective.gamma_beta_ratio=0,0.25,0.5"), "alpha", None),
    "seeds": (("seed=0,1",), None, None),
    "numbers": (("trainer.learning_rate=1e-6,1e-5,1e-4",), None, None),
    "long names": (("data.system=short,'a text that goes on and on and on until nobody reads it any more'",), None, None),
    "states": ((f"{ALPHA}=0,0.5,1,1.5,2",), "alpha",
               {0: "failed", 0.5: "running", 1: "stopped", 1.5: None, 2: "interrupted"}),
    "nothing": ((f"{ALPHA}=0,1",), "alpha", {0: None, 1: None}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_sweeps(odd, visit, tmp_path):
    line, name, states = ODD[odd]

    def change(cell, made):
        if states:
            made.state = states[cell.point[ALPHA]]
            made.samples = False

    html = report(tmp_path, *line, name=name, change=change)
    for viewport in (WIDE, PHONE):
        page = visit(html, viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        drawn = page.locator("[data-figure] svg").count()
        assert drawn == 0 if odd == "nothing" else drawn >= 6
        chips = page.locator("#picker button[data-value]")
        if chips.count():
            chips.first.click()
        assert page.faults == []


@pytest.mark.parametrize(("many", "viewport", "scheme"), [(1, PHONE, "dark"), (3, WIDE, "light")], ids=["one", "three"])
def test_pages_of_runs(visit, html, viewport, scheme, many, tmp_path):
    cells = sorted((html.parent / "cells").iterdir())[:many]
    written = write_runs(cells, tmp_path).html
    page = visit(written, viewport, scheme)
    figures = page.locator('[data-figure="steps"]').all()
    assert len(figures) >= (8 if many == 1 else 10)
    for figure in figures:
        keys = figure.get_attribute("data-keys").split()
        drawn = figure.locator("path.line:not(.off)").count()
        assert drawn == (len(keys) if many == 1 else many), keys
        ticks = figure.locator("svg text.tick[text-anchor=middle]").all_text_contents()
        assert all(tick.isdigit() for tick in ticks), ticks  # there is no half step
    assert page.locator(".answer").count() >= 3 * (1 + many)
    if viewport is WIDE:
        assert page.evaluate("(t => t.scrollWidth <= t.clientWidth)(document.querySelector('#numbers .scroll'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.faults == []


def test_a_table_of_numbers_is_not_cut_on_a_desk(visit, html):
    page = visit(html)
    assert page.evaluate("(t => t.scrollWidth <= t.clientWidth)(document.querySelector('#numbers .scroll'))")


def test_light_pages_have_the_colours_of_the_pictures(visit, html):
    page = visit(html, scheme="light")
    place = {float(text.replace("−", "-")): n for n, text in enumerate(page.locator(".chip").all_inner_texts())}
    cells = [SweepCurve(alpha, str(alpha)) for alpha in place]
    colour_of = value_colours(cells)
    for cell in cells:
        red, green, blue = (round(255 * part) for part in colour_of(cell)[:3])
        drawn = page.locator(f'[data-figure="kl"] circle[data-p="{place[cell.alpha]}"]').get_attribute("fill")
        found = [int(part) for part in drawn.removeprefix("rgb(").removesuffix(")").split()]
        # matplotlib has 256 steps of a scale, the page as many as there are colours.
        assert np.abs(np.array(found) - (red, green, blue)).max() <= 6, (cell.alpha, drawn)


def test_the_origin_is_in_the_figure_of_advantages(visit, html):
    page = visit(html)
    zero = page.locator('[data-figure="advantage"] circle[data-p="2"]')
    assert zero.count() == 1
    rule = page.locator('[data-figure="advantage"] line.rule').all()
    heights = {line.get_attribute("y1") for line in rule if line.get_attribute("y1") == line.get_attribute("y2")}
    assert zero.get_attribute("cy") in heights


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """Three alphas whose pairs have scores, with their reward shapes. Read it, never write to it."""

    def change(cell, made):
        made.files = {"probe.jsonl": shape_rows()}

    folder = craft(tmp_path_factory.mktemp("shapes") / "alpha", f"{ALPHA}=-1,0,2", change=change)
    notes: list[str] = []
    missing_shapes.refresh(
        [RunDirectory(path) for path in sorted((folder / "cells").iterdir())], notes.append, pictures=False
    )
    assert notes == []
    return folder


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_sweep_has_a_panel_for_each_value(visit, shaped, viewport):
    page = visit(write_report(SweepDirectory(shaped), pictures=False).html, viewport, "dark")
    assert page.locator('[data-figure="scores"] .small').count() == 3
    assert page.locator('[data-figure="fields"] .small svg').count() == 3
    assert page.locator('[data-figure="fields"] path.line').count() == 3  # the paths of the means
    assert page.locator('[data-figure="fields"] path.arrow').count() == 3 * 81
    page.locator('button[data-value="2"]').click()
    assert page.locator('[data-figure="scores"] .small').count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    inside = page.locator("#reward-shape svg").evaluate_all(
        "(all) => all.every((s) => s.getBoundingClientRect().right <= innerWidth)"
    )
    assert inside
    assert page.faults == []


def test_arrows_point_down_the_loss(visit, shaped):
    """Of SimPO both scores are pulled alike: on the page, where the axes may differ, along the descent in data."""
    run = next(path for path in (shaped / "cells").iterdir() if "alpha: 0.0" in (path / "config.yaml").read_text())
    page = visit(write_runs([run], run).html)
    assert page.locator('[data-figure="weights"] circle').count() >= 20  # five pairs, two sides, both ends
    for by in ("s", "p"):
        assert page.locator(f'[data-figure="field"][data-by="{by}"] path.arrow').count() == 169
    d = page.locator('[data-figure="field"][data-by="s"] path.arrow').first.get_attribute("d")
    (x0, y0), (x1, y1) = (tuple(map(float, part.split())) for part in d[1:].split("L")[:2])
    assert x1 > x0  # the chosen score rises
    assert y1 > y0  # down the page: the rejected score falls
    assert page.faults == []


def test_on_a_phone_a_runs_numbers_and_settings_are_read_without_scrolling_aside(visit, tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1")
    html = write_run(next((tmp_path / "cells").iterdir()))
    page = visit(html, PHONE)
    assert page.locator("table.listed tr").count() > 6
    assert page.locator("table.keys tr").count() > 1
    hidden = page.evaluate("""() => [...document.querySelectorAll('table.listed, table.keys')]
        .filter((table) => table.offsetParent && table.parentElement.scrollWidth > table.parentElement.clientWidth + 1)
        .map((table) => table.className)""")
    assert hidden == []
    assert page.faults == []


@pytest.mark.parametrize("viewport", [WIDE, PHONE])
def test_the_word_at_the_best_step_is_whole_at_either_end_of_training(viewport, visit, tmp_path):
    craft(tmp_path, f"{ALPHA}=0,1")
    page = visit(write_run(next((tmp_path / "cells").iterdir())), viewport)
    for step in ("0.02", "0.98"):
        page.evaluate(f"""() => {{
            const holder = document.querySelector('[data-keys="glassbox/true_win_rate"]');
            const last = Math.max(...CELLS.flatMap((cell) => curveOf(cell, "glassbox/true_win_rate").map((p) => p[0])));
            DATA.marks = [{{ step: {step} * last, word: "best win rate: step 1,024" }}];
            stepsFigure(holder);
        }}""")
        cut = page.evaluate("""() => {
            const svg = document.querySelector('[data-keys="glassbox/true_win_rate"] svg').getBoundingClientRect();
            const word = [...document.querySelectorAll('[data-keys="glassbox/true_win_rate"] text.word')]
                .find((text) => text.textContent.startsWith("best win rate")).getBoundingClientRect();
            return [word.left - svg.left, svg.right - word.right];
        }""")
        assert min(cut) >= 0
    assert page.faults == []


def test_on_a_desk_the_outcomes_of_runs_are_read_without_scrolling_aside(visit, tmp_path):
    craft(tmp_path, f"{ALPHA}=-1,0,1")
    page = visit(
        write_runs(sorted((tmp_path / "cells").iterdir()), tmp_path / "page").html, {"width": 1280, "height": 900}
    )
    assert "in these units" in page.locator("#numbers").inner_text()
    room = page.locator("#numbers .scroll").first.evaluate("(box) => box.clientWidth - box.scrollWidth")
    assert room >= 0
    assert page.faults == []
