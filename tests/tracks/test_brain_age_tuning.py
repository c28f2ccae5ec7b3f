"""A search that Ray Tune compares on validation scans: what it adds to a plan, what it may see, what it reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import age_data
import numpy as np
import pytest
import tiny
import yaml

from harness.engine.store import open_store
from harness.problems import UserError
from harness.results import leaderboard
from harness.sweep.file import VALIDATION, Sweep, load

ALPHAS = [0.001, 2.0, 300.0]
RIDGE = {"id": "regional_regression", "segmentation": None, "select": 8, "regressor": {"id": "kernel_ridge"}}


def write(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A benchmark of a table, and a sweep of it over the penalty of a kernel ridge."""
    folder.mkdir(parents=True, exist_ok=True)
    data = age_data.write_table(folder / "data", rows or age_data.people())
    base = {
        "benchmark": "table",
        "track": "brain_age",
        "data": {"card": "feature_table", "root": str(data), "with": {"split": {"by": "scan"}}},
        "methods": {"mean_age": None, "ridge": RIDGE},
        "metrics": ["mae", "rmse"],
        "training_sizes": ["all", 20],
        "importance_repeats": 2,
        "report": {"baseline": "mean_age"},
    }
    (folder / "table.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    sweep = {
        "sweep": "penalties",
        "base": "table.yaml",
        "method": "ridge",
        "space": {"regressor.alpha": {"grid": ALPHAS}},
        "objective": {"metric": "mae", "split": "validation"},
        "keep": ["ridge"],
        **changes,
    }
    (folder / "penalties.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return folder / "penalties.yaml"


def loaded(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Sweep:
    return load(write(folder, rows, **changes), [], cache=folder / "cache")


def judging(sweep: Sweep) -> dict[str, str]:
    """Title → key of the stages by which trials are compared."""
    finals = [cell.finals.get(VALIDATION) for cell in sweep.benchmark.plan.cells]
    return {stage.title: stage.key for stage in finals if stage is not None}


# ------------------------------------------------------------------------------------------- the plan


def test_trials_alone_are_scored_on_validation_scans_and_nothing_else_changes(tmp_path: Path) -> None:
    compared, plain = loaded(tmp_path / "a"), loaded(tmp_path / "b", objective={"metric": "mae"})
    assert judging(plain) == {}
    names = [trial.name for trial in compared.trials]
    titles = [f"score {name} SITE_A validation{size}" for size in ("", " (20 scans)") for name in names]
    assert list(judging(compared)) == titles
    more = {s.title for s in compared.benchmark.plan.stages} - {s.title for s in plain.benchmark.plan.stages}
    assert more == {*titles, *(title.replace("score", "predict") for title in titles)}
    fewer = {s for s in plain.benchmark.plan.stages if s.key not in {t.key for t in compared.benchmark.plan.stages}}
    assert {s.title for s in fewer} == {f"importance {name} SITE_A" for name in names}, "dear, and most are not chosen"


def test_nothing_of_test_scans_reaches_what_trials_are_compared_by(tmp_path: Path) -> None:
    rows = age_data.people()
    first = loaded(tmp_path / "first", rows)
    plan = first.benchmark.plan
    tested = {s.key for s in plan.stages if s.kind in ("ages", "features") and s.title.endswith("test")}
    assert len(tested) == 2
    for cell in plan.cells:
        if VALIDATION in cell.finals:
            assert not tested & plan.ancestors(cell.finals[VALIDATION])
            assert tested & plan.ancestors(cell.finals["scores"])
    for row in rows:
        if row["split"] == "test":
            row["age"] += 5
            row["rv_1"] += 0.1
    assert judging(loaded(tmp_path / "second", rows)) == judging(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"refit_with_validation": {"grid": [False, True]}}}, "ridge refit_with_validation=true learns from"),
        ({"objective": {"metric": "maee", "split": "validation"}}, "'maee' is not among the metrics of the base"),
        ({"objective": {"metric": "mae", "split": "train"}}, "split"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as told:
        loaded(tmp_path, **changes)
    (problem,) = told.value.problems
    assert "penalties.yaml:" in str(problem)
    assert message in str(problem)


def test_overlap_is_not_measured_on_validation_scans(tmp_path: Path) -> None:
    base = tiny.REPO / "benchmarks" / "brain_age.yaml"
    with pytest.raises(UserError, match=r"dsc is not measured for regional_regression .* on validation scans"):
        loaded(
            tmp_path,
            base=str(base),
            method="proposed",
            space={"select": {"grid": [5, 10]}},
            objective={"metric": "dsc", "split": "validation"},
            keep=[],
        )


# ------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class Done:
    sweep: Sweep
    answer: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("tuning")
    sweep = loaded(folder)
    told = tiny.run_json("sweep", "penalties.yaml", "-j", "2", "--tracking", "none", cwd=folder)
    (answer,) = told["sweeps"]
    return Done(sweep, answer, folder)


def errors(done: Done, role: str, source: str, trial: str) -> tuple[set[str], float]:
    """Who was scored, and the mean absolute error by hand."""
    store = open_store(str(done.folder / "runs" / "store"))
    cells = done.sweep.benchmark.plan.cells
    (stage,) = (c.finals[role] for c in cells if (c.method, c.source) == (trial, source))
    rows = json.loads((store.read(stage.key) / "ages.json").read_text())
    return {row["scan"] for row in rows}, float(np.mean([abs(row["predicted"] - row["age"]) for row in rows]))


def test_validation_scans_are_those_of_the_training_size(done: Done) -> None:
    dataset, name = done.sweep.benchmark.dataset, done.sweep.trials[0].name
    assert errors(done, VALIDATION, "all", name)[0] == {s.id for s in dataset.scans("SITE_A", "validation")}
    few = errors(done, VALIDATION, "20 scans", name)[0]
    learnt = next(s for s in done.sweep.benchmark.plan.stages if s.title == f"fit {name} SITE_A (20 scans)").params
    assert few == set(learnt["validation"])
    assert not few & set(learnt["train"])


def test_the_best_is_the_best_on_validation_scans(done: Done) -> None:
    answer = done.answer
    assert answer["objective"] == {"metric": "mae", "mode": "min", "split": "validation"}
    by_hand = {}
    for trial in answer["trials"]:
        name, sources = trial["name"], ("all", "20 scans")
        by_hand[name] = np.mean([errors(done, VALIDATION, source, name)[1] for source in sources])
        assert trial["objective"] == pytest.approx(by_hand[name], rel=1e-12)
        tested = np.mean([errors(done, "scores", source, name)[1] for source in sources])
        assert trial["test"] == pytest.approx(tested, rel=1e-12)
    assert answer["best"] == min(by_hand, key=lambda name: by_hand[name])
    assert len(set(by_hand.values())) == len(ALPHAS)


def test_the_report_says_what_was_chosen_and_shows_test_scans_in_its_tables(done: Done) -> None:
    folder = done.folder / "runs" / "penalties"
    board, best = leaderboard.build(folder), done.answer["best"]
    assert {row.method for row in board.rows} == {"mean_age", "ridge", *(t.name for t in done.sweep.trials)}
    for row in board.rows:
        assert row.scores["mae"].mean == pytest.approx(errors(done, "scores", "all", row.method)[1], rel=1e-12)
    assert board.chosen.startswith(f"Chosen on validation scans, of {len(ALPHAS)} trials: {best} (MAE ")
    assert "on test scans, means over training sizes)" in board.chosen
    assert any(note.startswith("chosen on validation scans") for note in board.notes)
    text = (folder / "report.html").read_text()
    assert board.chosen in text
    assert "Trials are compared on validation scans; tables are of test scans." in text
