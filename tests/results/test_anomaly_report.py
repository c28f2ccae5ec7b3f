"""The report and the leaderboard of the anomaly track: every number shown is that of `anomaly_results`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from anomaly_results import (
    BASES,
    HIGH,
    LIFT,
    LOW,
    ODD,
    REMARK,
    SEEDS,
    SETTINGS,
    SHIFTS,
    STEP,
    info_of,
    table_of,
    value_of,
    write_folder,
)
from report_page import Page
from rich.console import Console

from harness.results import detections, html, leaderboard, records, terminal
from harness.results.leaderboard import Leaderboard, Row
from harness.results.published import Published
from harness.results.records import Record
from harness.results.runinfo import SweepDomain, SweepInfo, SweepObjective, SweepTrial

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(rows=…, with_exhibits=…, **changes of run.json) → a results folder."""

    def write(rows: list[Record] | None = None, *, with_exhibits: bool = False, **changes: Any) -> Path:
        return write_folder(tmp_path_factory.mktemp("home"), rows, with_exhibits=with_exhibits, **changes)

    return write


@pytest.fixture(scope="module")
def folder(make: Make) -> Path:
    return make(with_exhibits=True)


@pytest.fixture(scope="module")
def board(folder: Path) -> Leaderboard:
    return leaderboard.build(folder)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(html.write_report(folder, folder / "report.html").read_text())


def per_cent(value: float) -> str:
    return f"{100 * value:.2f}"


def row_of(board: Leaderboard, method: str) -> Row:
    return next(row for row in board.rows if row.method == method)


def over_seeds(method: str, setting: str, shift: float = 0.0, processing: str = "raw") -> str:
    """Mean ± population SD of the two seeds."""
    values = [value_of(method, setting, seed, processing) + shift for seed in SEEDS]
    return f"{per_cent(float(np.mean(values)))} ± {per_cent(float(np.std(values)))}"


# ------------------------------------------------------------------------------------------- numbers


def test_every_setting_shows_the_records_mean_and_spread_over_seeds(page: Page) -> None:
    table = page.table("settings")
    assert table[0] == ["method", "T2", "FLAIR", "mean"], "the benchmark's order, and the headline first"
    assert page.summaries["settings"][0] == "global max Dice % ↑"
    assert [row[0] for row in table[1:]] == ["good", ODD, "floor", "broken", "lost"]
    for row in table[1:4]:
        for cell, setting in zip(row[1:3], SETTINGS, strict=True):
            low, high = (value_of(row[0], setting, 0) + STEP / 2 + end for end in (-LOW, HIGH))
            assert cell == f"{over_seeds(row[0], setting)} {per_cent(low)} to {per_cent(high)}"
        mean = BASES[row[0]] + STEP / 2
        assert row[3] == f"{per_cent(mean)} ± 0.50", "the SD over seeds of the mean over settings"


def test_the_best_complete_value_of_a_column_is_bold_and_a_bound_never_is(page: Page) -> None:
    bold = {}
    for number, metric in enumerate(page.summaries["settings"]):
        classes, table = page.classes["settings"][number], page.table("settings", number)
        bold[metric] = [[row[0] for row, of in zip(table, classes, strict=True) if of[c] == "best"] for c in (1, 2, 3)]
    ranked = [["broken"], ["good"], ["good"]]
    assert bold == {
        "global max Dice % ↑": ranked,
        "shared max Dice % ↑": ranked,
        "oracle max Dice % ↑": [[], [], []],
        "bin-weighted max Dice % ↑": ranked,
        "Dice at threshold % ↑": ranked,
        "oracle gap % ↓": [[], [], []],
        "AUROC % ↑": ranked,
    }, "broken lacks a seed of FLAIR, and of the mean"


def test_intervals_of_subjects_are_of_the_mean_over_seeds(page: Page, board: Leaderboard) -> None:
    assert board.anomaly is not None
    entry = board.anomaly.entry("dice_operating", "good", "T2")
    assert entry is not None
    assert entry.low is not None
    assert entry.high is not None
    middle = value_of("good", "T2", 0) + STEP / 2 - 0.2
    assert middle - 0.03 <= entry.low < middle < entry.high <= middle + 0.02
    table = page.table("settings", page.summaries["settings"].index("Dice at threshold % ↑"))
    assert table[1][1] == f"{per_cent(middle)} ± 0.50 {per_cent(entry.low)} to {per_cent(entry.high)}"


def test_a_seed_without_an_interval_leaves_none(make: Make) -> None:
    rows = [replace(record, low=None, high=None) if record.seed else record for record in table_of(info_of())]
    found = leaderboard.build(make(rows)).anomaly
    assert found is not None
    entry = found.entry("max_dice_global", "good", "T2")
    assert entry is not None
    assert (entry.low, entry.interval_text) == (None, "")


def test_meanings_of_maximum_dice_stand_side_by_side(page: Page) -> None:
    table = page.table("dice")
    assert table[0] == ["method", "global %", "shared %", "oracle %", "at threshold %", "gap %"]
    mean = BASES["good"] + STEP / 2
    expected = [mean, mean - 0.05, mean + 0.08, mean - 0.2, mean - 0.07]
    assert table[1] == ["good", *(f"{per_cent(value)} ± 0.50" for value in expected)]
    for metric in ("max_dice_global", "max_dice_shared", "max_dice_oracle", "dice_operating", "dice_gap"):
        assert f"({metric}):" in page.text("dice"), "each is explained in a line"


def test_bins_run_from_small_to_large_and_the_two_averages_differ(page: Page) -> None:
    assert len(page.tables["sizes"]) == len(SETTINGS)
    over, heads, first, *_ = page.table("sizes")
    assert over == ["method", "area in pixels", "area in mm²", "all slices"]
    bins = ["small (n = 10)", "medium (n = 5)", "large (n = 0)", "bin-weighted"]
    assert heads == [*bins, *bins, "pooled"]
    small, medium = (over_seeds("good", "T2", shift) for shift in (-0.09, 0.05))
    recorded = over_seeds("good", "T2", SHIFTS["max_dice_bin_weighted"])
    derived = over_seeds("good", "T2", (10 * -0.09 + 5 * 0.05) / 15)
    assert first == ["good", small, medium, "–", recorded, small, medium, "–", derived, over_seeds("good", "T2")]
    assert "are different numbers" in page.text("sizes")
    best = [row for row, classes in enumerate(page.classes["sizes"][0]) if "best" in classes]
    assert [page.table("sizes")[row][0] for row in best] == ["broken"], "which is complete in T2"
    best = [row for row, classes in enumerate(page.classes["sizes"][1]) if "best" in classes]
    assert [page.table("sizes", 1)[row][0] for row in best] == ["good"], "as broken lacks a seed"


def test_processing_is_compared_by_the_headline(page: Page) -> None:
    table = page.table("processing")
    assert table[0] == ["method", "raw", "common"]
    mean = BASES["good"] + STEP / 2
    assert table[1] == ["good", f"{per_cent(mean)} ± 0.50", f"{per_cent(mean + LIFT)} ± 0.50"]
    row = ["good"]
    for name in ("raw", "common"):
        value = value_of("good", "FLAIR", 0, name) + STEP / 2
        shown = over_seeds("good", "FLAIR", processing=name)
        row.append(f"{shown} {per_cent(value - LOW)} to {per_cent(value + HIGH)}")
    assert page.table("processing", 2)[1] == row


def test_costs_have_their_own_table_and_enter_no_rank(page: Page, board: Leaderboard) -> None:
    table = page.table("costs")
    assert table[0] == ["method", "parameters", "evaluations", "time", "memory"]
    assert table[1] == ["good", "5.00 M", "500", "24.6 ms", "2.00 GiB"]
    assert table[5] == ["lost", "failed", "failed", "failed", "failed"]
    assert "parameters" not in " ".join(page.table("leaderboard")[0])
    assert not {"evaluations", "max_dice_binned"} & {c.metric for c in board.comparisons}
    assert board.ranks is not None
    assert board.ranks.metrics == ("auroc", "dice_operating", "max_dice_global")
    assert board.ranks.left_out == ("lost",)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("seconds_per_slice", 1.5, "1.5 s"),
        ("seconds_per_slice", 0.0004, "0.4 ms"),
        ("evaluations", 1000.0, "1000"),
        ("evaluations", 250.5, "250.5"),
        ("parameters", 0.0, "0"),
        ("peak_memory", None, "–"),
    ],
)
def test_costs_carry_their_unit(metric: str, value: float | None, text: str) -> None:
    from harness.results.anomaly_tables import cost_text

    assert cost_text(metric, value) == text


# ------------------------------------------------------------------------------------------- order, words, gaps


def test_the_leaderboard_is_of_the_first_processing(make: Make, board: Leaderboard) -> None:
    assert board.rows[0].scores["max_dice_global"].mean == pytest.approx(BASES["good"] + STEP / 2)
    other = leaderboard.build(make(processing=("common", "raw")))
    assert other.rows[0].scores["max_dice_global"].mean == pytest.approx(BASES["good"] + STEP / 2 + LIFT)
    assert "processing of the maps before they are scored: common; scored apart, in the report: raw" in other.notes


def test_words_are_of_settings(page: Page, board: Leaderboard) -> None:
    assert board.notes[0] == (
        "mean ± SD over settings (T2, FLAIR); population SD; seeds are averaged within a setting first"
    )
    for said in ("source→target", "in-domain", "source and target", "source, target", "pairs of sites"):
        assert said not in page.text()
    assert board.rows[0].scores["max_dice_global"].text == f"{per_cent(BASES['good'] + STEP / 2)} ± 2.00"
    assert any("(setting, metric" in note for note in leaderboard.build_from(info_of(), whole()).notes)


def whole() -> pl.DataFrame:
    """Records of the methods that have some of everything."""
    return records.to_frame(table_of(info_of(), ("floor", "good", ODD)))


def test_traits_and_sections_of_the_other_track_are_absent(page: Page) -> None:
    assert page.table("leaderboard")[0][:2] == ["#", "method"]
    assert not {"matrices", "histograms", "samples", "panels", "distance"} & page.sections
    assert {"settings", "dice", "sizes", "processing", "costs", "precision-recall", "maps", "steps"} <= page.sections
    assert {link.removeprefix("#") for link in page.links} <= page.sections, "every link leads somewhere"


def test_the_other_track_has_none_of_these(build: Callable[..., Path], toy: Any) -> None:
    other = build(with_exhibits=False)
    page = Page(html.render(leaderboard.build(other), [], 1))
    assert not {"settings", "dice", "sizes", "processing", "costs"} & page.sections
    assert "source→target pairs" in page.text("leaderboard")
    assert leaderboard.build(other).anomaly is None
    assert "by_setting" not in leaderboard.build(other).as_json()


def test_failed_cells_are_shown_where_they_are_missing(page: Page, board: Leaderboard) -> None:
    broken, lost = page.table("settings")[4:6]
    assert broken[2] == f"{per_cent(value_of('broken', 'FLAIR', 0))}† 83.00 to 108.00 1 of 2 cells"
    mean = (value_of("broken", "T2", 0) + STEP / 2 + value_of("broken", "FLAIR", 0)) / 2
    assert broken[3] == f"{per_cent(mean)} ± 0.50† 3 of 4 cells", "the SD is of the setting that has both seeds"
    assert lost[1:] == ["failed", "failed", "failed"]
    assert page.classes["settings"][0][4][2] == "bad"
    sizes = {row[0]: row for row in page.table("sizes", 1)[2:]}
    assert sizes["lost"][1:] == ["failed", "failed", "failed"], "two units and the average of all slices"
    assert sizes["broken"][1] == f"{per_cent(value_of('broken', 'FLAIR', 0) - 0.09)}†"
    assert "the <b>loss</b> is nan" in page.text("failures")
    assert board.failed_cells == 5
    assert board.best("max_dice_global") == {"good"}


def test_what_the_run_showed_of_a_method_is_a_footnote(page: Page, board: Leaderboard) -> None:
    assert board.notes[-1] == REMARK
    assert REMARK in page.text("leaderboard")


def test_deviations_are_footnotes_and_stand_with_the_method(page: Page, board: Leaderboard) -> None:
    line = "departs from its publication: good (LPIPS <i>without</i> weights; smaller network)"
    assert line in board.notes
    assert line in page.text("leaderboard")
    assert "Departs from its publication:" in page.text("protocol")
    assert "smaller network" in page.text("protocol")


def test_no_text_becomes_a_tag(page: Page, make: Make) -> None:
    assert not {"script", "b", "i", "iframe", "link"} & set(page.tags)
    assert ODD in page.text("settings")
    odd = "'\"><img src=x onerror=alert(1)>"
    rows = [replace(record, target=odd) if record.target == "T2" else record for record in table_of(info_of())]
    other = make(rows, sites=("healthy", odd, "FLAIR"))
    harmed = Page(html.write_report(other, other / "report.html").read_text())
    assert harmed.table("settings")[0][1] == odd
    assert "img" not in harmed.tags[: harmed.tags.index("section")]


def test_one_setting_and_one_seed_have_no_spread(make: Make) -> None:
    one = make(sites=("healthy", "T2"), seeds=(0,), processing=("raw",))
    board = leaderboard.build(one)
    score = row_of(board, "good").scores["max_dice_global"]
    value = value_of("good", "T2", 0)
    assert (score.text, score.sd) == (per_cent(value), None)
    assert (score.low, score.high) == (pytest.approx(value - LOW), pytest.approx(value + HIGH))
    assert board.notes[0] == "one setting, T2"
    page = Page(html.write_report(one, one / "report.html").read_text())
    assert page.table("settings")[0] == ["method", "T2"]
    assert page.table("settings")[2][1] == f"{per_cent(value)} {per_cent(value - LOW)} to {per_cent(value + HIGH)}"
    assert "processing" not in page.sections
    assert "too few for a test" in page.text("summary")


def test_one_setting_of_several_seeds_has_their_spread(make: Make) -> None:
    board = leaderboard.build(make(sites=("healthy", "T2")))
    assert row_of(board, "good").scores["max_dice_global"].text == over_seeds("good", "T2")
    assert board.notes[0] == "one setting, T2: mean ± population SD over seeds"


def test_empty_exhibits_and_nothing_but_failures_do_not_break(make: Make) -> None:
    rows = table_of(info_of(), ("lost",))
    bare = make(rows)
    page = Page(html.write_report(bare, bare / "report.html").read_text())
    assert "No method has a complete row of global max Dice" in page.text()
    assert not {"precision-recall", "maps", "steps", "costs"} & page.sections
    empty = make()
    detections.write_precision_recall(empty, [])
    detections.write_detections(empty, [])
    detections.write_pictures(empty, [])
    page = Page(html.write_report(empty, empty / "report.html").read_text())
    assert not {"precision-recall", "maps", "steps"} & page.sections
    assert "score-cost.svg" in {path.name for path in (empty / "figures").iterdir()}


# ------------------------------------------------------------------------------------------- terminal, JSON, sweeps


def test_the_terminal_shows_settings_meanings_and_costs(board: Leaderboard) -> None:
    out = io.StringIO()
    terminal.show(board, Console(file=out, width=100, force_terminal=False))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "2 settings, anomaly" in text
    assert "global max Dice % ↑ by setting, ± SD over seeds" in text
    assert "what is called maximum Dice, %, mean over settings" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["good", "5.00", "M", "500", "24.6", "ms", "2.00", "GiB"] in lines
    assert ["good", *over_seeds("good", "T2").split(), *over_seeds("good", "FLAIR").split()] in lines
    assert "SF" not in text.split()


def test_columns_that_do_not_fit_the_terminal_are_named(board: Leaderboard) -> None:
    out = io.StringIO()
    terminal.show(board, Console(file=out, width=50, force_terminal=False))
    text = " ".join(out.getvalue().split())
    assert "mean over settings; no room for shared, oracle, at threshold, gap" in text


def test_json_has_every_setting_processing_and_bin(board: Leaderboard) -> None:
    found = json.loads(json.dumps(board.as_json(), allow_nan=False))
    assert found["settings"] == ["T2", "FLAIR"]
    entry = next(
        e for e in found["by_setting"]
        if (e["metric"], e["method"], e["setting"], e["processing"]) == ("auroc", "good", "FLAIR", "common")
    )  # fmt: skip
    assert entry["value"] == pytest.approx(value_of("good", "FLAIR", 0, "common") + STEP / 2 + SHIFTS["auroc"])
    sizes = next(s for s in found["sizes"] if (s["method"], s["setting"]) == ("good", "T2"))
    assert [b["n"] for b in sizes["bins"]] == [10, 5, 0]
    assert "max_dice_binned" not in found["metrics"], "a mean over bins says nothing"
    assert "max_dice_binned" not in terminal.to_csv(board).splitlines()[0]


def test_published_numbers_and_sweeps_stand_beside(make: Make) -> None:
    trials = tuple(
        SweepTrial(name=name, config={"width": width}, state="finished", objective=BASES[name])
        for name, width in (("good", 8), (ODD, 4))
    )
    sweep = SweepInfo(
        method="good",
        base="tumours",
        objective=SweepObjective(metric="max_dice_global", mode="max"),
        space={"width": SweepDomain(type="grid", values=(4, 8))},
        trials=trials,
    )
    swept = make(sweep=sweep, published="S2")
    table = [Published("good", "S2", "max_dice_global", 0.5, None, "as printed")]
    page = Page(html.write_report(swept, swept / "report.html", table).read_text())
    ours = BASES["good"] + STEP / 2
    assert page.table("published")[1][:5] == [
        "good", "global max Dice %", per_cent(ours), "50.00", f"+{per_cent(ours - 0.5)}",
    ]  # fmt: skip
    assert "Ours are means over settings." in page.text("published")
    assert page.table("ablation")[1] == ["good", "8", "finished", per_cent(BASES["good"])]
    assert "ablation.svg" in {path.name for path in (swept / "figures").iterdir()}
