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


@pytest.fixture(scope="module")
def page(write, tmp_path_factory):
    """Every kind of figure, long notices and wide tables; one DMA run with lifetimes noted."""
    folder = tmp_path_factory.mktemp("report")
    for attention in ("mha", "dma"):
        for model, tokens in (("nano", 2_200_000), ("1m", 300_000), ("3m", 103_125), ("nano", 500_000)):
            write(folder / "runs", attention, model, tokens)
    write(folder / "runs", "nsa", status="failed", reason="RuntimeError: " + "a long story " * 30)
    _note_lifetimes(next((folder / "runs").glob("*-dma-*-2200000")))
    return write_report(folder / "runs", folder / "report")


def _note_lifetimes(run: Path) -> None:
    position = np.arange(256)
    lived = np.minimum(position + np.array([[[64]], [[200]]]), 256).astype(np.int32)
    bounds = np.zeros((1, 256), int)
    Lifetimes(lived[:, None], bounds, bounds + 256, 64).save(run / "lifetimes.npz")


@pytest.fixture(params=[1280, 390], ids=["desk", "phone"])
def width(request) -> int:
    return request.param


@pytest.fixture
def browser(width, page):
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
    window.get(page.as_uri())
    WebDriverWait(window, 60).until(lambda w: w.execute_script("return document.body.dataset.drawn") == "yes")
    yield window
    window.quit()


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
    assert "mha, nano, 500,000 tokens, seed 0" in text


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
