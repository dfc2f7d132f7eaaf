"""The page in a real browser: it draws without an error, answers a pointer, and fits a desk and a phone."""

import base64
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from dma_lab.evaluation.lifetimes import Lifetimes
from dma_lab.report.write import write_report

pytestmark = pytest.mark.browser
CONTROLS = ("swa", "mla", "dma_random", "gated_mha", "swa_sinks")


@pytest.fixture(scope="module")
def page(write, tmp_path_factory):
    """Every kind of figure, long notices, wide tables and long ones; one DMA run with lifetimes noted."""
    folder = tmp_path_factory.mktemp("report")
    for attention in ("mha", "dma"):
        for model, tokens in (("nano", 2_200_000), ("1m", 300_000), ("3m", 103_125), ("nano", 500_000)):
            for seed in (0, 1, 2):
                write(folder / "runs", attention, model, tokens, seed)
    for control in CONTROLS:
        write(folder / "runs", control, tokens=500_000)
    write(folder / "runs", "nsa", status="failed", reason="RuntimeError: " + "a long story " * 30)
    _note_lifetimes(next((folder / "runs").glob("*-dma-s0-2200000")))
    return write_report([folder / "runs"], folder / "report")


def _note_lifetimes(run: Path) -> None:
    position = np.arange(256)
    lived = np.minimum(position + np.array([[[64]], [[200]]]), 256).astype(np.int32)
    bounds = np.zeros((1, 256), int)
    Lifetimes(lived[:, None], bounds, bounds + 256, 64).save(run / "lifetimes.npz")


@pytest.fixture(scope="module", params=[1200, 420], ids=["desk", "phone"])
def width(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def opened(width):
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    assert chromium, "install Chromium (Debian: chromium)"
    assert driver, "install its driver (Debian: chromium-driver)"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    metrics = {"width": width, "height": 900, "pixelRatio": 1.0}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # the driver is named: Selenium has nothing to look for
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    window.set_script_timeout(60)
    yield window
    window.quit()


@pytest.fixture
def browser(opened, page):
    """The page, as it is when it was opened."""
    opened.get(page.as_uri())
    WebDriverWait(opened, 60).until(lambda w: w.execute_script("return document.body.dataset.drawn") == "yes")
    return opened


def test_it_loads_without_an_error_and_draws_every_figure_within_the_width(browser, width, page, tmp_path):
    assert browser.get_log("browser") == []
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')]"
        ".map(p => [p.id, p.querySelectorAll('.points path, .heatmaplayer image').length])"
    )
    slugs = {f"plot-{path.stem}" for path in (page.parent / "figures").glob("*.svg")}
    assert {name for name, _ in drawn} == slugs
    assert slugs >= {f"plot-{name}" for name in ("isoflop", "lifetimes-1", "loss-executed", "position", "training")}
    assert all(marks for _, marks in drawn), drawn
    # Not window.innerWidth: a phone widens that until all fits.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for plot in browser.execute_script(
        "return [...document.querySelectorAll('.plot .main-svg')].map(s => [s.getBoundingClientRect(), "
        "s.closest('.frame').getBoundingClientRect()])"
        ".map(([s, f]) => [s.left - f.left, f.right - s.right, f.bottom - s.bottom])"
    ):
        assert min(plot) >= 0, "a figure leaves its frame"
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (tmp_path / "page.png").write_bytes(base64.b64decode(shot["data"]))


def test_a_pointer_over_a_point_shows_which_run_it_is(browser):
    x, y = browser.execute_script(
        "const plot = document.getElementById('plot-loss-executed'); plot.scrollIntoView({block: 'center'});"
        "const r = plot.querySelector('.points path').getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2]"
    )
    for dx in (-3, 0):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + dx, "y": y})
    text = WebDriverWait(browser, 10).until(
        lambda w: w.execute_script(
            "return document.querySelector('#plot-loss-executed .hoverlayer .hovertext')?.textContent"
        )
    )
    assert "mha, nano, 500,000 tokens, seed " in text


def test_a_click_on_a_backend_in_the_legend_takes_it_out_of_the_figure(browser):
    state = "return document.getElementById('plot-isoflop').data.map(t => [t.name, t.visible ?? true])"
    assert {name for name, shown in browser.execute_script(state) if shown is True} == {"mha", "dma"}
    x, y = browser.execute_script(
        "const plot = document.getElementById('plot-isoflop'); plot.scrollIntoView({block: 'center'});"
        "const entry = [...plot.querySelectorAll('.legend .traces')].find(e => e.textContent.includes('dma'));"
        "const r = entry.querySelector('.legendtoggle').getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2]"
    )
    for kind in ("mousePressed", "mouseReleased"):
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    WebDriverWait(browser, 10).until(
        lambda w: {name for name, shown in w.execute_script(state) if shown is True} == {"mha"}
    )


def test_no_text_of_the_first_figure_is_small_meets_another_or_leaves_the_frame(browser):
    frame, texts = browser.execute_script(
        "const plot = document.getElementById('plot-evidence'), box = (e) => {"
        "const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };"
        "return [box(plot.closest('.frame')), [...plot.querySelectorAll('svg text')].filter(e => e.textContent.trim())"
        ".map(e => [e.textContent, box(e), parseFloat(getComputedStyle(e).fontSize)])]"
    )
    assert {text for text, _, _ in texts} >= {"mha", "dma", *CONTROLS, "training compute, executed (FLOP)"}
    assert [text for text, _, size in texts if size < 10] == []
    for text, (left, top, right, bottom), _ in texts:
        assert frame[0] <= left < right <= frame[2], text
        assert frame[1] <= top < bottom <= frame[3], text
    meeting = [
        (a, b)
        for number, (a, first, _) in enumerate(texts)
        for b, second, _ in texts[:number]
        if min(first[2], second[2]) - max(first[0], second[0]) > 1
        and min(first[3], second[3]) - max(first[1], second[1]) > 1
    ]
    assert meeting == []


def test_the_first_figure_stands_above_all_else_and_the_verdict_under_it(browser, width):
    order = browser.execute_script(
        "return ['#plot-evidence', '.verdicts', '#plot-loss-executed', '.notice'].map("
        "name => document.querySelector(name).getBoundingClientRect().top)"
    )
    assert order == [min(order), order[1], *order[2:]]
    assert order[1] < min(order[2:])
    states = browser.execute_script("return [...document.querySelectorAll('.verdicts em')].map(e => e.textContent)")
    assert len(states) == 1 + len(CONTROLS)
    assert set(states) >= {"not known"}


RUNS = "[...document.querySelectorAll('table')].find(t => t.tHead.textContent.includes('perplexity'))"


def column(browser, name):
    return browser.execute_script(
        f"const table = {RUNS}, at = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === arguments[0]);"
        "return [...table.tBodies[0].rows].map(row => row.cells[at].textContent)",
        name,
    )


def click_head(browser, name):
    browser.execute_script(
        f"[...{RUNS}.tHead.querySelectorAll('button')].find(b => b.textContent === arguments[0]).click()", name
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", float),
        ("tokens", lambda text: int(text.replace(",", ""))),
        ("loss − MHA [document interval]", lambda text: float(text.split(" ")[0])),
        ("FLOP exec.", float),
        ("rung", ["nano", "1m", "3m"].index),
        ("attention", str),
    ],
)
def test_a_click_on_a_head_sorts_by_value_up_down_and_back(browser, name, value):
    given = column(browser, name)
    numbers = sorted((text for text in given if text not in ("", "-")), key=value)
    rest = [text for text in given if text in ("", "-")]
    assert numbers != [text for text in given if text not in rest] or name in ("rung",)
    for expected in (numbers, numbers[::-1]):
        click_head(browser, name)
        shown = column(browser, name)
        assert [value(text) for text in shown[: len(numbers)]] == [value(text) for text in expected]
        assert sorted(shown[len(numbers) :]) == sorted(rest), "what is no number comes last"
    click_head(browser, name)
    assert column(browser, name) == given


def test_a_long_table_is_folded_opens_at_a_click_and_scrolls_within_itself(browser, width):
    tables = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(t => [t.tBodies[0].rows.length, !!t.closest('details'), "
        "t.checkVisibility()])"
    )
    assert {rows > 20 for rows, _, _ in tables} == {True, False}
    assert all(folded == (rows > 20) and shown == (rows <= 20) for rows, folded, shown in tables)
    assert (
        browser.execute_script(f"return {RUNS}.closest('details').querySelector('summary').textContent")
        == "All 29 rows"
    )
    browser.execute_script("document.querySelectorAll('summary').forEach(s => s.click())")
    assert all(browser.execute_script("return [...document.querySelectorAll('table')].map(t => t.checkVisibility())"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
