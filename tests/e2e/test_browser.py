"""What a reader sees: the leaderboard in MLflow's pages, and the HTML report, in a real browser without a window.

HARNESS_SCREENSHOTS=FOLDER keeps the pictures.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import pytest
import tiny
from browser import Browser, chromium
from mlflow_server import free_port

from harness.metrics.catalogue import METRICS
from harness.results import leaderboard, records
from harness.results.leaderboard import Leaderboard

METHODS = {"none": None, "histogram_matching": None, "z_score": None, "white_stripe": None}
GRID = "document.querySelectorAll('.ag-center-cols-container [role=row]')"
ROWS = """
    [...document.querySelectorAll('.ag-center-cols-container [role=row]')].map(row => {
        const number = row.getAttribute('row-index');
        const name = document.querySelector(`.ag-pinned-left-cols-container [row-index="${number}"] a`);
        const cells = [...row.querySelectorAll('[col-id]')].map(cell => [cell.getAttribute('col-id'), cell.innerText]);
        return {number: Number(number), name: name ? name.innerText : '', ...Object.fromEntries(cells)};
    }).sort((a, b) => a.number - b.number)
"""
TABLE = """
    [...document.querySelectorAll('#leaderboard table')[0].rows].map(row => [...row.cells].map(cell => cell.innerText))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which four methods have run, with MLflow."""
    chromium()
    folder = tmp_path_factory.mktemp("finished")
    tiny.write(folder, methods=METHODS)
    answer = tiny.run_json("run", "tiny.yaml", "-j", "2", cwd=folder)
    assert (answer["failed"], answer["blocked"], answer["warnings"]) == (0, 0, [])
    return folder


@pytest.fixture(scope="module")
def board(finished: Path) -> Leaderboard:
    return leaderboard.build(finished / "runs" / "tiny")


@pytest.fixture(scope="module")
def link(finished: Path) -> Iterator[str]:
    """The link that `harness ui` prints, for as long as its server runs."""
    command = [sys.executable, "-m", "harness", "ui", "--json", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=finished, env=tiny.environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        try:
            yield json.loads("".join(lines))["leaderboard"]
        finally:
            os.kill(process.pid, signal.SIGINT)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("HARNESS_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).absolute()


def mean_of(folder: Path, method: str, metric: str) -> float:
    """A method's mean over pairs of sites, worked out of the records in plain Python."""
    table = records.read(folder / "runs" / "tiny").filter(pl.col("method") == method, pl.col("metric") == metric)
    pairs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in table.filter(pl.col("value").is_not_null(), pl.col("source") != pl.col("target")).iter_rows(named=True):
        pairs.setdefault((row["source"], row["target"]), {}).setdefault(row["subject"], []).append(row["value"])
    return fmean(fmean(fmean(values) for values in subjects.values()) for subjects in pairs.values())


def test_the_link_opens_the_leaderboard_in_order(
    link: str, finished: Path, board: Leaderboard, browser: Browser, pictures: Path
) -> None:
    browser.resize(3400, 900)  # columns out of sight are not drawn
    browser.open(link)
    browser.wait_for(f"{GRID}.length == {len(METHODS)} && document.querySelector('[col-id*=wasserstein]') !== null")
    rows: list[dict[str, Any]] = browser.value(ROWS)
    means = {name: mean_of(finished, name, "dsc") for name in METHODS}
    assert [row["name"] for row in rows] == sorted(means, key=means.__getitem__, reverse=True)
    assert [row["name"] for row in rows] == [row.method for row in board.rows]
    for row in rows:
        for metric in board.metrics:
            info, mean = METRICS[metric], mean_of(finished, row["name"], metric)
            assert float(row[f"metrics.`{metric}`"]) == pytest.approx(mean, rel=1e-9), (row["name"], metric)
            assert row[f"tags.`{info.name}`"].startswith(f"{info.text(mean)} ± "), (row["name"], metric)
        assert row["metrics.`failed_cells`"] == "0"
    browser.resize(1700, 700)
    browser.screenshot(pictures / "leaderboard.png")
    elsewhere = [url for url in browser.requests if not url.startswith((link.partition("/#")[0], "data:", "blob:"))]
    assert not elsewhere, "the pages need no network"


def test_the_first_row_leads_to_report_and_tables(
    link: str, board: Leaderboard, browser: Browser, pictures: Path
) -> None:
    browser.resize(1700, 1000)
    browser.open(link)
    first = ".ag-pinned-left-cols-container [row-index='0'] a"
    run = browser.wait_for(f'(document.querySelector("{first}") || {{}}).href').partition("?")[0]
    browser.value(f'document.querySelector("{first}").click()')
    report = browser.wait_for("([...document.links].find(a => a.innerText == 'report') || {}).href")
    browser.screenshot(pictures / "row.png")
    assert "/artifacts/report.html" in report
    for address, name in ((report, "report"), (f"{run}/artifacts/leaderboard.csv", "table")):
        browser.open("about:blank")
        browser.open(address)
        listed = browser.wait_for("document.body.innerText.includes('leaderboard.md') && document.body.innerText")
        assert {"report.html", "leaderboard.csv", "figures"} <= set(listed.split("\n"))
        if name == "report":
            # Shown in a frame that may do nothing but run scripts, of which the report has none.
            assert browser.wait_for("document.querySelector('iframe').getAttribute('sandbox')") == "allow-scripts"
            deadline = time.monotonic() + 60
            while not (shown := browser.value_in_frame(TABLE)) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert [row[1] for row in shown[1:]] == [row.method for row in board.rows]
        else:
            browser.wait_for(f"document.body.innerText.includes('dsc_mean') && '{board.rows[0].method}'")
        browser.screenshot(pictures / f"artifacts-{name}.png")


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 800, False), (390, 844, True)])
def test_the_report_reads_on_desktops_and_phones(
    finished: Path, board: Leaderboard, browser: Browser, pictures: Path, width: int, height: int, phone: bool
) -> None:
    browser.resize(width, height, phone=phone)
    browser.open((finished / "runs" / "tiny" / "report.html").as_uri())
    browser.wait_for("document.readyState == 'complete'")
    head, *rows = browser.value(TABLE)
    means = {name: mean_of(finished, name, "dsc") for name in METHODS}
    assert [row[1] for row in rows] == sorted(means, key=means.__getitem__, reverse=True)
    for row, shown in zip(board.rows, rows, strict=True):
        for metric in board.metrics:
            text = shown[head.index(f"{METRICS[metric].heading} {METRICS[metric].arrow}")].split("\n")[0]
            assert text == row.scores[metric].text
            assert text.startswith(METRICS[metric].text(mean_of(finished, row.method, metric)))
    assert browser.value("document.documentElement.scrollWidth") == width, "the page is as wide as the screen"
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.value("document.images.length") > 8
    assert not [url for url in browser.requests if url.startswith("http")]
    browser.screenshot(pictures / f"report-{width}.png", whole=True)


@pytest.mark.parametrize("dark", [False, True])
def test_the_report_has_contrast(finished: Path, browser: Browser, pictures: Path, dark: bool) -> None:
    browser.dark(dark)
    browser.resize(1280, 800)
    browser.open((finished / "runs" / "tiny" / "report.html").as_uri())
    browser.wait_for("document.readyState == 'complete'")
    colours = browser.value("""
        ['body', '.soft', '.note', '.best', '.banner', 'td small'].map(name => {
            const found = document.querySelector(name);
            if (!found) return [name, null, null];
            let behind = found;
            while (getComputedStyle(behind).backgroundColor == 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            return [name, getComputedStyle(found).color, getComputedStyle(behind).backgroundColor];
        })
    """)
    browser.screenshot(pictures / f"report-{'dark' if dark else 'light'}.png")
    assert all(ink for _, ink, _ in colours), colours
    for name, ink, paper in colours:
        assert contrast(ink, paper) >= 4.5, name
    assert (luminance(colours[0][2]) < 0.1) is dark


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as accessibility guidelines define it."""
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
