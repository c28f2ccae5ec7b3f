"""The HTML report and its figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.results import exhibits, figures, html, leaderboard
from harness.results.records import no_value


class Outline(HTMLParser):
    """Tags, addresses and visible text of a page; unbalanced tags are an error."""

    EMPTY = ("meta", "img", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(folder: Path) -> Outline:
    return Outline(html.write_report(folder, folder / "report.html").read_text())


def test_report_is_one_file_without_network(page: Outline) -> None:
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    targets = {address for address in page.addresses if address.startswith("#")}
    assert "#failures" in targets


def test_names_and_errors_are_escaped(page: Outline) -> None:
    for text in ("<script>alert(1)</script>", "the <b>loss</b> is nan at step 3", "<i>kept as it is</i>"):
        assert text in page.text
    assert "b" not in page.tags


def test_report_says_what_has_to_be_said(page: Outline) -> None:
    for text in (
        "Simulated data.",
        "the best complete row is good with 80.00 ± 2.16 %",
        "91.25 ± 1.48†",
        "4 of 6 cells",
        "In-domain",
        "mean over 8 complete settings",
        "10 settings dropped",
        "too few cases for p < 0.05",
        "A→B",
        'net {"width": [8, 16]}',
        "unet",
        "1 min 1 s",
        "2025-01-31 12:00 UTC",
    ):
        assert text in page.text, text


def test_figures_lie_beside_the_report(folder: Path, page: Outline) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {
        "matrix-dsc.svg",
        "matrix-hd95.svg",
        "matrix-hd95_missing.svg",
        "matrix-wasserstein.svg",
        "critical-difference.svg",
        "histograms-A.svg",
        "panels-A-B.png",
        "curves.svg",
        "distance-performance.svg",
        "samples-good.png",
    }
    assert page.tags.count("img") == len(names)


def test_report_of_real_data_has_no_banner(build: Callable[..., Path], toy: Any) -> None:
    dataset = toy.info_of().dataset.model_copy(update={"simulated": False})
    folder = build(with_exhibits=False, dataset=dataset)
    page = Outline(html.write_report(folder, folder / "report.html").read_text())
    assert "Simulated" not in page.text
    assert "Histograms" not in page.text
    assert "Panels" not in page.text


def test_report_of_failures_only(build: Callable[..., Path], toy: Any) -> None:
    rows = [r for s, t in toy.pairs for r in no_value("failed", "boom", toy.metrics, **toy.cell("broken", s, t))]
    folder = build(rows, with_exhibits=False)
    page = Outline(html.write_report(folder, folder / "elsewhere.html").read_text())
    assert "No method has a complete row of DSC" in page.text
    assert "boom" in page.text


def test_a_curve_of_a_fit_on_all_sites_is_named() -> None:
    row = {
        "method": "m",
        "source": "",
        "target": "",
        "seed": 0,
        "stage": "fit",
        "name": "loss",
        "step": 0,
        "value": 1.0,
    }
    figure = figures.curves(pl.DataFrame([row], schema=exhibits.CURVES))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["all sites"]


def test_figures_are_deterministic(folder: Path) -> None:
    board = leaderboard.build(folder)
    assert board.ranks is not None
    first, second = (figures.svg(figures.critical_difference(board.ranks)) for _ in range(2))
    assert first == second


def test_names_with_dollars_are_no_formulas(folder: Path) -> None:
    ranks = leaderboard.build(folder).ranks
    assert ranks is not None
    renamed = {name.replace("good", "a$\\broken$ <&>"): rank for name, rank in ranks.mean_ranks.items()}
    figure = figures.critical_difference(replace(ranks, mean_ranks=renamed, groups=()))
    assert figures.svg(figure).startswith(b"<?xml")
    assert figures.png(figure).startswith(b"\x89PNG")
