"""Figures of the anomaly track: curves, maps with thresholds, and the steps to a map."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from anomaly_results import ODD, SETTINGS, write_folder
from report_page import Page

from harness.results import anomaly_figures, anomaly_pictures, detections, html
from harness.results.detections import Detection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("home"), with_exhibits=True)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(html.write_report(folder, folder / "report.html").read_text())


def test_figures_of_the_track_lie_beside_the_report(folder: Path, page: Page) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {
        "critical-difference.svg",
        "score-cost.svg",
        "precision-recall.svg",
        "maps-T2-1.png",
        "maps-FLAIR-1.png",
        "steps-good.png",
        "curves.svg",
    }
    assert page.tags.count("img") == len(names)


def test_curves_have_a_plot_for_each_setting_and_the_prevalence(folder: Path) -> None:
    curves = detections.read_precision_recall(folder)
    assert anomaly_figures.prevalence(curves) == 0.05
    assert anomaly_figures.prevalence(curves.filter(pl.col("recall") < 1)) is None
    figure = anomaly_figures.precision_recall(curves, list(SETTINGS), ["good", ODD])
    shown = [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]
    assert shown == ["T2", "FLAIR"]
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [0.05]
    best = [line.get_xydata()[0].tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert best == [[0.8, 0.6]] * 2, "of Dice 0.64, 0.69, 0.33 and 0.10"


def test_sixteen_methods_look_different() -> None:
    names = [str(number) for number in range(16)]
    assert len({(look["color"], str(look["ls"])) for look in anomaly_figures.looks(names).values()}) == 16


def detection(values: np.ndarray, threshold: float, best: float) -> Detection:
    image = np.ones(values.shape, np.uint8)
    return Detection("m", "s", "a", 0, threshold, best, image, values > 0, values.astype(np.float16))


def test_thresholds_meet_maps_of_half_precision() -> None:
    flat = detection(np.full((4, 4), 0.3), float(np.nextafter(np.float32(0.3).astype(np.float64), 1)), 0.3)
    fixed, best = anomaly_pictures.called(flat)
    assert not fixed.any(), "the threshold lies just above every score, though both round to one number"
    assert best.all(), "the best threshold is a score that is called"
    values = np.array([[0.0, 0.2, 0.4, 0.9]])
    fixed, best = anomaly_pictures.called(detection(values, 0.3, 0.9))
    assert fixed.tolist() == [[False, False, True, True]]
    assert best.tolist() == [[False, False, False, True]]
    assert not anomaly_pictures.called(detection(values, math.inf, math.nan))[1].any()


def test_colours_end_at_twice_the_best_threshold_or_at_what_is_there() -> None:
    values = np.linspace(0, 1, 1001).reshape(1, -1)
    assert anomaly_pictures.colour_top([detection(values, 0.5, 0.2)]) == pytest.approx(0.4)
    assert anomaly_pictures.colour_top([detection(values, 0.5, 0.8)]) == 1, "nothing is higher"
    assert anomaly_pictures.colour_top([detection(values, 0.5, math.nan)]) == pytest.approx(0.995, abs=2e-3)
    assert anomaly_pictures.colour_top([detection(np.zeros((2, 2)), 0.5, 0.0)]) == 1


def test_rows_of_pictures_are_parted_evenly() -> None:
    assert anomaly_pictures.evenly("abcdefghijk", 10) == [list("abcde"), list("fghijk")]
    assert anomaly_pictures.evenly("abc", 10) == [list("abc")]
    assert anomaly_pictures.evenly("", 10) == []


def test_a_slice_without_brain_or_map_is_drawn() -> None:
    dark = np.zeros((8, 8), np.uint8)
    none = np.zeros((8, 8), np.float16)
    shown = [Detection("good", "T2", "a", 0, math.inf, math.nan, dark, dark > 0, none)]
    shown.append(Detection(ODD, "T2", "b", 1, 0.0, 0.0, dark, dark > 0, np.full((8, 8), np.inf, np.float16), dark))
    figure = anomaly_pictures.panels(shown, ["good", ODD])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("no map") == 2
    assert texts[:3] == ["input", "good", "0 to 1"]
