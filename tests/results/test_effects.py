"""Oracles in the leaderboard, and the figures of components, stopping rules, distance, samples and ablations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from harness.results import effects, exhibits, html, leaderboard, pictures, terminal
from harness.results.ablation import ablation
from harness.results.exhibits import Panel
from harness.results.runinfo import MethodInfo, SweepDomain, SweepInfo, SweepObjective, SweepTrial


def variants(toy: Any, *, oracle: str = "") -> tuple[MethodInfo, ...]:
    """The toy's methods, with `good` and `worse` as variants of one method."""
    found = []
    for method in toy.info_of().methods:
        same = method.name in ("good", "worse")
        found.append(method.model_copy(update={"id": "flows" if same else method.id, "oracle": method.name == oracle}))
    return tuple(found)


class TestOracles:
    @pytest.fixture
    def board(self, build: Callable[..., Path], toy: Any) -> leaderboard.Leaderboard:
        """`good`, the best complete row, is an oracle."""
        return leaderboard.build(build(methods=variants(toy, oracle="good")))

    def test_it_stands_last_without_a_position(self, board: leaderboard.Leaderboard) -> None:
        assert board.rows[-1].method == "good"
        assert board.rows[-1].position is None
        assert [row.position for row in board.rows[:-1]] == list(range(1, len(board.rows)))

    def test_it_enters_no_rank_test_or_best(self, board: leaderboard.Leaderboard) -> None:
        assert all("good" not in board.best(metric) for metric in board.metrics)
        assert board.ranks is not None
        assert "good" not in board.ranks.mean_ranks
        assert "good" not in board.ranks.available_ranks
        assert all("good" not in (c.method, c.reference) for c in board.comparisons)

    def test_others_rank_as_if_it_were_not_there(
        self, board: leaderboard.Leaderboard, build: Callable[..., Path], toy: Any
    ) -> None:
        rows = [record for record in toy.all_records() if record.method != "good"]
        methods = tuple(m for m in toy.info_of().methods if m.name != "good")
        without = leaderboard.build(build(rows=rows, methods=methods))
        assert board.ranks == without.ranks

    def test_the_notes_say_so(self, board: leaderboard.Leaderboard) -> None:
        assert any(note.startswith("oracle") and note.endswith("good") for note in board.notes)
        last = [line for line in terminal.to_markdown(board).splitlines() if line.startswith("|")][-1]
        assert last.startswith("|  | good (oracle) |"), "named as one, and without a position"


def test_the_baseline_claims_no_traits(folder: Path) -> None:
    baseline = next(row for row in leaderboard.build(folder).rows if row.method == "none")
    assert terminal.trait_mark(baseline, "source_free") == "–"


def test_components(build: Callable[..., Path], toy: Any) -> None:
    board = leaderboard.build(build(methods=variants(toy)))
    [(method, rows)] = effects.families(board)
    assert method == "flows"
    figure = effects.components(board, rows)
    lengths = [bar.get_width() for bar in figure.axes[0].patches]
    assert lengths == pytest.approx([60, 70, 80]), "baseline first, then the variants, the best last"
    assert any("in-domain 95.00" in text.get_text() for text in figure.axes[0].texts)


def points(method: str, stage: str, name: str, values: list[float], target: str = "B") -> list[dict[str, Any]]:
    base = {"method": method, "source": "A", "target": target, "seed": 0, "stage": stage, "name": name}
    return [{**base, "step": step, "value": value} for step, value in enumerate(values)]


def adaptation() -> list[dict[str, Any]]:
    rows = []
    for method, chosen in (("good", 2.0), ("worse", 1.0)):
        for target in "BC":
            rows += points(method, "adapt", "bpd", [3.0, 2.5, 2.0], target)
            rows += points(method, "adapt", "source_bpd", [2.2] * 3, target)
            rows += points(method, "trace", "entropy", [0.3, 0.2, 0.25], target)
            rows += points(method, "trace", "dsc", [0.7, 0.72, 0.71], target)
            rows += points(method, "apply", "chosen_step", [chosen], target)
    return rows


def test_stopping() -> None:
    figure = effects.stopping(pl.DataFrame(adaptation(), schema=exhibits.CURVES), ["good", "worse"])
    left, right = figure.axes[0], figure.axes[1]
    bold = [line for line in left.lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(bold[0].get_ydata(), [0.8, 0.3, -0.2])
    marks = {line.get_label(): line.get_xdata() for line in left.lines if line.get_linestyle() == "None"}
    assert {rule: list(steps) for rule, steps in marks.items()} == {"good": [2, 2], "worse": [1, 1]}
    assert right.get_ylabel() == "entropy, nats"
    gain = [line for axis in figure.axes[2:] for line in axis.lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(gain[0].get_ydata(), [0, 2, 1], atol=1e-9)


def test_distance_against_performance(folder: Path) -> None:
    board = leaderboard.build(folder)
    figure = effects.distance_against_performance(board, "wasserstein", "dsc")
    names = {text.get_text() for text in figure.axes[0].texts}
    assert "adapter" not in names, "it has no images"
    assert {"none", "good", "worse"} <= names


def test_samples() -> None:
    plain = np.zeros((6, 5), np.uint8)
    shown = [
        Panel("m", source, target, "s", 0, input=plain, harmonised=plain + 9)
        for source in "ABC"
        for target in "ABC"
        if source != target
    ]
    figure = pictures.samples(shown)
    assert len(figure.axes) == 4 * 4, "a line for each target below that of the sources, and a column for raw slices"
    assert sum(bool(axis.images) for axis in figure.axes) == 3 + 3 + 6


def sweep(kind: str) -> SweepInfo:
    listed = kind in ("grid", "choice")
    values = (0.1, 0.3) if listed else ()
    space = {"rate": SweepDomain.model_validate({"type": kind, "values": values, "low": 0.01, "high": 1.0})}
    trials = (
        SweepTrial(name="good", config={"rate": 0.1}, state="finished", objective=0.80),
        SweepTrial(name="worse", config={"rate": 0.3}, state="stopped", objective=0.70),
    )
    return SweepInfo(
        method="flows", base="x.yaml", objective=SweepObjective(metric="dsc", mode="max"), space=space, trials=trials,
        defaults={"rate": 0.1},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["grid", "loguniform"])
def test_ablation(build: Callable[..., Path], toy: Any, kind: str) -> None:
    board = leaderboard.build(build(methods=variants(toy, oracle="good"), sweep=sweep(kind)))
    axis = ablation(sweep(kind), board).axes[0]
    marks = {line.get_marker(): line for line in axis.lines if line.get_marker() in ("o", "D")}
    heights = {marker: float(mark.get_ydata()[0]) for marker, mark in marks.items()}
    assert heights == pytest.approx({"D": 80, "o": 70}), "an oracle is a diamond"
    assert marks["o"].get_markerfacecolor() == "white", "stopped trials are open points"
    assert "default" in {text.get_text() for text in axis.texts}
    assert axis.get_xscale() == ("log" if kind == "loguniform" else "linear")


def test_the_report_shows_all_of_it(build: Callable[..., Path], toy: Any, tmp_path: Path) -> None:
    folder = build(methods=variants(toy), sweep=sweep("grid"))
    exhibits.write_curves(folder, adaptation())
    page = html.write_report(folder, tmp_path / "report.html").read_text()
    for title in ("Ablation", "Components", "Stopping rules", "Distance and performance", "Harmonised samples"):
        assert f"<h2>{title}</h2>" in page
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {"ablation", "components-flows", "stopping-flows", "distance-performance", "samples-good"} <= names
