"""The report of the brain-age track: what a reader finds, in words, tables and figures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from age_results import (
    AGES,
    ODD,
    REGIONS,
    SITES,
    errors_text,
    info_of,
    predictions_of,
    table_of,
    write_exhibits,
    write_folder,
)
from report_page import Page
from rich.console import Console

from harness.metrics.catalogue import METRICS
from harness.results import age_figures, age_regions, ages, html, leaderboard, terminal
from harness.results.anomaly_figures import looks
from harness.results.figures import both_ends
from harness.results.published import Published


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("home") / "ages", with_exhibits=True)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(html.write_report(folder, folder / "report.html").read_text())


def written(folder: Path) -> set[str]:
    return {path.name for path in (folder / "figures").iterdir()}


# ------------------------------------------------------------------------------------------- tables


def test_accuracy_has_both_kinds_of_r2_and_counts_scans(page: Page) -> None:
    head, first, *rest = page.table("accuracy")
    assert head == [
        "method", "scans", "MAE weeks ↓", "bias weeks", "RMSE weeks ↓", "R² ↑", "R² Pearson ↑", "in 95 % interval %",
        "DSC % ↑",
    ]  # fmt: skip
    assert first[:2] == ["good", "14"]
    assert first[2].startswith(errors_text("good"))
    assert first[3].startswith("+0.05")
    assert first[-1].startswith("85.00")
    assert [row[0] for row in rest] == [ODD, "broken", "floor", "lost"]
    assert rest[2][6] == "–", "the correlation of a constant"
    assert rest[3][1:] == ["–", "failed", "failed", *["failed"] * 3, "–", "–"]
    assert page.table("accuracy", 1)[1][2].startswith(errors_text("good", "20 scans"))
    assert page.classes["accuracy"][0][1][2] == "best"
    assert page.classes["accuracy"][0][1][3] == "", "a bias is never best"


def test_training_sizes_rise_and_gaps_are_marked(page: Page) -> None:
    table = page.table("sizes")
    assert table[0] == ["method", "20 scans", "all scans"]
    assert table[1][1].startswith(errors_text("good", "20 scans"))
    assert table[1][2].startswith(errors_text("good"))
    assert table[3][0] == "broken"
    assert table[3][1].endswith("1 of 2 cells")
    assert page.classes["sizes"][0][3][1] == "bad"
    assert page.summaries["sizes"] == ["MAE weeks ↓", "RMSE weeks ↓", "R² ↑", "R² Pearson ↑", "DSC % ↑"]


def test_sex_and_age_count_their_scans(page: Page) -> None:
    over = page.table("sex")[0]
    assert over == ["method", "female (7 scans of 6 people)", "male (7 scans of 6 people)"]
    heads = page.table("age")[0]
    assert heads[1] == "31–33 (n = 2)"
    assert len(page.table("age")[1]) == 8


def test_gaps_name_scans_and_mark_what_leaves_the_interval(page: Page) -> None:
    head, first, *_ = page.table("gaps")
    assert head == ["place", "scan", "person", "sex", "age", "predicted", "gap", "in own SD"]
    assert first == ["1", "s12", "p10", "male", "43.0", "42.3", "−0.70", "−1.4"]
    assert page.classes["gaps"][0][1][-1] == ""
    assert len(page.tables["gaps"]) == 4, "a table for each method that predicted anything"


def test_the_leaderboard_shows_what_is_ranked(page: Page) -> None:
    table = page.table("leaderboard")
    assert table[0] == ["#", "method", "MAE weeks ↓", "RMSE weeks ↓", "DSC % ↑", "rank", "failed"]
    assert table[1][2].startswith(errors_text("good"))
    assert table[3][-1] == "1/4"
    spread = page.table("leaderboard", 1)
    assert spread[0][1:] == ["SD of MAE weeks", "SD of RMSE weeks", "SD of R²", "SD of R² Pearson", "SD of DSC %"]


def test_warnings_stand_before_everything(folder: Path, page: Page) -> None:
    assert "About these data." in page.text("")
    assert "<i>2</i> people are on both sides" in page.text("")
    out = io.StringIO()
    terminal.show(leaderboard.build(folder), Console(file=out, width=100))
    assert out.getvalue().splitlines()[1] == "data: <i>2</i> people are on both sides of the split"


def test_no_text_becomes_a_tag(page: Page) -> None:
    assert not {"script", "b", "i"} & set(page.tags)
    assert ODD in page.text("accuracy")


def test_sections_are_those_of_the_track(page: Page) -> None:
    own = {"accuracy", "sizes", "sex", "age", "predictions", "gaps", "importance", "features"}
    assert own <= page.sections
    assert not {"settings", "dice", "matrices", "histograms", "samples", "panels", "costs"} & page.sections
    assert {link.removeprefix("#") for link in page.links} <= page.sections, "every link leads somewhere"
    for said in ("source→target", "in-domain", "source and target", "pairs of sites"):
        assert said not in page.text()
    assert "over cases: site and person" in page.text("ranks")


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    own = write_folder(tmp_path, published="dHCP")
    table = [Published("good", "dHCP", "mae", 0.2, None, ""), Published("good", "dHCP", "r2", 0.9, None, "")]
    found = Page(html.write_report(own, own / "report.html", table).read_text())
    assert [row[:2] for row in found.table("published")[1:]] == [["good", "MAE weeks"], ["good", "R²"]]
    assert "Ours are of the scored scans." in found.text("published")


# ------------------------------------------------------------------------------------------- what lacks


def test_one_source_seed_and_sex_leave_their_sections_out(tmp_path: Path) -> None:
    sites = ("all", *SITES)
    info = info_of(sites=sites, seeds=(0,))
    girls = [row for row in predictions_of(info, unit="years") if row.sex == "F"]
    own = write_folder(tmp_path, predictions=girls, sites=sites, seeds=(0,))
    found = Page(html.write_report(own, own / "report.html").read_text())
    assert not {"sizes", "sex", "age", "importance", "features"} & found.sections
    assert found.table("accuracy")[0][2] == "MAE years ↓"
    assert found.table("leaderboard")[0][2] == "MAE years ↓"
    assert "gap is predicted less true age, in years" in found.text("gaps")
    assert written(own) == {"critical-difference.svg", "predicted-true.svg", "age-gaps.svg"}


def test_nothing_but_failures_does_not_break(tmp_path: Path) -> None:
    own = write_folder(tmp_path, table_of(info_of(), ("lost",)), predictions=[])
    found = Page(html.write_report(own, own / "report.html").read_text())
    assert "No method has a complete row of MAE" in found.text()
    assert found.table("accuracy")[-1] == ["lost", "–"]
    out = io.StringIO()
    terminal.show(leaderboard.build(own), Console(file=out, width=100))
    assert "failed" in out.getvalue()


def test_other_tracks_have_none_of_it(tmp_path: Path) -> None:
    from harness.results.records import Record, to_frame

    rows = [
        Record("x", "cross_site", name, 0, "A", "B", "p", "", "mae", value, "weeks")
        for name, value in (("floor", 1.0), ("good", 0.5))
    ]
    info = info_of(track="cross_site", sites=("A", "B"), dataset={"id": "d", "name": "d", "simulated": False})
    board = leaderboard.build_from(info, to_frame(rows), ages.NONE)
    assert board.ages is None
    assert "ages" not in board.as_json()
    found = Page(html.render(board, [], 2))
    assert not {"accuracy", "sizes", "sex", "age"} & found.sections


# ------------------------------------------------------------------------------------------- terminal


def test_the_terminal_shows_sizes_sex_and_age(folder: Path) -> None:
    out = io.StringIO()
    terminal.show(leaderboard.build(folder), Console(file=out, width=100))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "ages  Toy, 1 site, brain_age" in text
    assert "MAE weeks ↓ by training scans" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["good", *errors_text("good", "20 scans").split(), *errors_text("good").split()] in lines
    assert ["method", "female", "(7)", "male", "(7)"] in lines
    assert ["31–33", "33–35", "35–37", "37–39", "39–41", "41–43", "43–45"] in lines
    by_age = next(line for line in lines[::-1] if line[:1] == ["good"])
    assert len(by_age) == 8, "without what stands after ±"


def test_columns_that_do_not_fit_are_named(folder: Path) -> None:
    out = io.StringIO()
    terminal.show(leaderboard.build(folder), Console(file=out, width=50))
    assert "no room for 37–39 (2), 39–41 (2), 41–43 (2), 43–45 (2)" in " ".join(out.getvalue().split())


# ------------------------------------------------------------------------------------------- figures


def test_figures_lie_beside_the_report(folder: Path, page: Page) -> None:
    assert written(folder) == {
        "critical-difference.svg",
        "training-size.svg",
        "error-by-age.svg",
        "predicted-true.svg",
        "age-gaps.svg",
        "importance-good.svg",
        "importance-map-good.png",
        "features.svg",
        "curves.svg",
    }
    assert page.tags.count("img") == len(written(folder))


def test_every_scan_is_a_point_on_one_scale(folder: Path) -> None:
    tables, rows = leaderboard.build(folder).ages, ages.read(folder).predictions
    assert tables is not None
    figure = age_figures.predicted_against_true(rows.filter(source="all"), tables, ["good", "floor"])
    for axis, name in zip(figure.axes, ("good", "floor"), strict=True):
        points = np.concatenate([scatter.get_offsets() for scatter in axis.collections])
        own = rows.filter(source="all", method=name, seed=0)
        known = own.select("age", "predicted").to_numpy()
        assert np.allclose(np.sort(points, 0), np.sort(known, 0))
        assert axis.get_xlim() == axis.get_ylim()
        assert axis.get_xlim()[0] < AGES.min()
    assert f"MAE {errors_text('good')}" in figure.axes[0].texts[0].get_text()


def test_gaps_are_sorted_and_their_ends_named(folder: Path) -> None:
    tables, rows = leaderboard.build(folder).ages, ages.read(folder).predictions
    assert tables is not None
    figure = age_figures.gaps(rows.filter(source="all"), tables, ["good"])
    axis = figure.axes[0]
    drawn = [line.get_ydata() for line in axis.lines[1:]]
    assert sum(map(len, drawn)) == len(AGES)
    assert (np.diff(drawn[0]) >= 0).all()
    assert [text.get_text() for text in axis.texts] == ["s12", "s9", "s11"]


def test_what_would_flatten_the_others_is_left_out_and_said(folder: Path, page: Page) -> None:
    assert age_figures.far_off({"a": 1.0, "b": 1.1, "c": 2.6}) == ["c"]
    assert age_figures.far_off({"a": 1.0, "b": 3.0}) == []
    assert age_figures.far_off({}) == []
    assert "Left out, as they would flatten the others: floor; the table has them." in page.text("age")
    tables = leaderboard.build(folder).ages
    assert tables is not None
    figure = age_figures.error_by_age(tables, ["good"], looks(["good"]))
    shown = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    entry = tables.entry("mae", "good", kind="age", group="31–33")
    assert entry is not None
    assert shown[0] == pytest.approx(entry.value)
    assert len(shown) == 7


def test_more_scans_are_drawn_to_the_right(folder: Path) -> None:
    board = leaderboard.build(folder)
    figure = age_figures.training_size(board, ["good", "lost"], looks(["good", "lost"]))
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "MAE weeks  (↓ better)", "R²  (↑ better)", "DSC %  (↑ better)",
    ]  # fmt: skip
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["20", "all"]
    line = figure.axes[0].lines[0]
    assert line.get_ydata()[0] > line.get_ydata()[1]


def test_bars_run_from_the_most_important_region(folder: Path) -> None:
    rows = ages.read_importance(folder)
    figure = age_regions.importance_bars(rows, {("relational volume", "brainstem"): 0.91}, "weeks")
    axis = figure.axes[0]
    assert axis.get_title(loc="left") == "relational volume"
    assert axis.get_xlabel() == "rise of the squared error, weeks²"
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == [both_ends(REGIONS[1], 46), REGIONS[0], REGIONS[2]]
    assert names[0].endswith("left GM"), "what tells regions apart is kept"
    assert [text.get_text() for text in axis.texts] == ["1.00", "0.25   |r| 0.91", "−0.01"]


def test_regions_are_coloured_by_their_share(folder: Path, page: Page) -> None:
    slices = ages.read_atlas(folder)
    colours = age_regions.coloured(slices[0].labels, {1: 1.0, 2: 0.25, 3: -0.1, 300: 1.0})
    alpha = colours[..., 3]
    assert (alpha[slices[0].labels == 0] == 0).all()
    assert (alpha[slices[0].labels == 3] == 0).all(), "no importance, no colour"
    assert alpha[slices[0].labels == 1].min() > alpha[slices[0].labels == 2].max() > 0
    figure = age_regions.importance_map(ages.read_importance(folder), slices)
    titles = [axis.get_title() for axis in figure.axes[:6]]
    assert titles == ["sagittal", "coronal", "axial", "", "", ""]
    assert len(figure.axes[0].images) == 2
    assert "what has none is not coloured. <b>s3</b>, 34 weeks." in page.text("importance"), "said once for all slices"
    assert figure.axes[0].images[0].get_array().shape == (12, 10), "cut to the head and a margin"


def test_features_are_drawn_against_age(folder: Path) -> None:
    figure = age_regions.features(ages.read_feature_values(folder), ages.read_correlations(folder), "weeks")
    axis = figure.axes[0]
    assert (axis.get_title(loc="left"), axis.get_ylabel(), axis.get_xlabel()) == (
        "brainstem", "relational volume", "true age, weeks",
    )  # fmt: skip
    assert len(axis.collections[0].get_offsets()) == len(AGES) - 1, "one is undefined"
    assert [text.get_text() for text in axis.texts] == ["|r| 0.91"]


def test_importance_without_labels_has_no_map(tmp_path: Path) -> None:
    own = write_folder(tmp_path, with_exhibits=False)
    write_exhibits(own)
    rows = ages.read_importance(own).with_columns(label=pl.lit(None, pl.Int64()))
    ages.write_importance(own, [ages.Importance(**row) for row in rows.iter_rows(named=True)])
    html.write_report(own, own / "report.html")
    assert "importance-good.svg" in written(own)
    assert "importance-map-good.png" not in written(own)


def test_a_name_is_cut_in_its_middle() -> None:
    assert both_ends("short", 10) == "short"
    cut = both_ends("anterior temporal lobe left", 12)
    assert (len(cut) <= 12, cut[-4:], "…" in cut) == (True, "left", True)
    assert METRICS["r2"].digits == 3
