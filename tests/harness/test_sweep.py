"""Sweep files: what they may say, the trials that come of them, and what is kept of trials between sessions."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import yaml

from harness.engine.plan import Plan
from harness.home import Home
from harness.problems import UserError
from harness.sweep.file import Asha, Sweep, load
from harness.sweep.run import prepare
from harness.sweep.space import Domain, draw
from harness.sweep.trials import Journal, _halving
from harness.sweep.view import overview

ABLATIONS = sorted((tiny.REPO / "benchmarks" / "ablations").glob("*.yaml"))
TUNING = sorted((tiny.REPO / "benchmarks" / "tuning").glob("*.yaml"))
PAPER_TUNING = sorted((tiny.REPO / "benchmarks" / "paper" / "tuning").glob("*.yaml"))
PAPER_ABLATIONS = sorted((tiny.REPO / "benchmarks" / "paper" / "ablations").glob("*.yaml"))
METHODS = {"none": None, "tent": {"batch_size": 4}, "slow": {"id": "tent", "learning_rate": 1e-5}}


def write(folder: Path, **changes: Any) -> Path:
    tiny.write(folder, methods=METHODS, metrics=["dsc", "wasserstein"])
    sweep = {
        "sweep": "rates",
        "base": "tiny.yaml",
        "method": "tent",
        "space": {"learning_rate": {"grid": [0.001, 0.01]}},
        "objective": {"metric": "dsc"},
        **changes,
    }
    path = folder / "rates.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in sweep.items() if v is not None}, sort_keys=False))
    return path


def loaded(folder: Path, *overrides: str, **changes: Any) -> Sweep:
    return load(write(folder, **changes), overrides, cache=folder / "cache")


def problems(folder: Path, *overrides: str, **changes: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        loaded(folder, *overrides, **changes)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


# ------------------------------------------------------------------------------------------- mistakes


def test_every_mistake_at_once_with_its_place(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        space={"learning_rat": {"grid": [1]}, "steps": [1, 2], "epochs": {"uniform": [3, 1]}, "betas": {}},
        sampels=3,
        objective={"metric": "dcs"},
        keep=["nonee"],
        seed=-1,
    )
    text = "\n".join(found)
    assert "rates.yaml:5:3: learning_rat: there is no field 'learning_rat' of Tent; did you mean learning_rate?" in text
    assert "write {grid: [...]}" in text
    assert "uniform takes [low, high] with low < high" in text
    assert "give one of grid, choice, uniform, loguniform" in text
    assert "unknown key 'sampels'; did you mean samples?" in text
    assert "'dcs' is not among the metrics of the base; did you mean dsc?" in text
    assert "unknown row of the base 'nonee'; did you mean none?" in text
    assert "seed is -1" in text
    assert all(line.startswith("rates.yaml:") for line in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "tentt"}, "'tentt' is neither a row of the base nor a method; did you mean tent?"),
        ({"base": "tinny.yaml"}, "no such file"),
        ({"sweep": "tiny"}, "is the name of the base"),
        ({"sweep": "store"}, "is reserved"),
        ({"samples": 2}, "samples draws nothing"),
        ({"space": {"learning_rate.low": {"grid": [1]}}}, "no field 'low' below learning_rate, which has no fields"),
        ({"space": {"learning_rate": {"grid": [0.1, 0.1]}}}, "0.1 is listed twice"),
        ({"space": {"steps": {"uniform": [1.2, 1.8]}}}, "there is none from 1.2 to 1.8"),
        ({"space": {"learning_rate": {"loguniform": [0, 1]}}}, "above 0"),
        ({"objective": {"metric": "wasserstein"}}, "wasserstein is not measured for tent"),
        ({"objective": {"metric": "dsc", "split": "validation"}}, "track cross_site scores no validation scans"),
        ({"scheduler": {"asha": {"grace": 2}}}, "a trial has 2 rungs"),
        ({"set": ["task.filters.7=3"]}, "use an index below that"),
        ({"set": ["diagonal=some"]}, "diagonal is 'some'"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    found = problems(tmp_path, **changes)
    assert any(message in line for line in found), found


def test_a_bad_value_is_named_where_it_stands(tmp_path: Path) -> None:
    found = problems(tmp_path, space={"learning_rate": {"grid": [0.1, -1]}, "steps": {"grid": [1, 0]}})
    lines = (tmp_path / "rates.yaml").read_text().splitlines()
    assert len(found) == 2, "each bad value once, however many trials have it"
    assert {lines[int(line.split(":")[1]) - 1].strip() for line in found} == {"- -1", "- 0"}


def test_a_bad_combination_names_the_trial(tmp_path: Path) -> None:
    space = {"stopping": {"grid": ["fixed"]}, "fixed_epochs": {"grid": [2, 40]}}
    found = problems(tmp_path, method="harmonizing_flows", space=space)
    assert len(found) == 1
    assert "harmonizing_flows stopping=fixed fixed_epochs=40" in found[0]


# ------------------------------------------------------------------------------------------- expansion


def test_rows_are_kept_rows_and_trials(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, keep=["slow"])
    names = ["none", "slow", "tent learning_rate=0.001", "tent learning_rate=0.01"]
    assert [row.name for row in sweep.benchmark.rows] == names
    assert [row.method.batch_size for row in sweep.benchmark.rows[2:]] == [4, 4], "the base's row is the start"
    assert sweep.benchmark.spec.benchmark == "rates"
    assert (sweep.mode, sweep.benchmark.headline) == ("max", "dsc")
    assert [[(c.source, c.target) for c in rung] for rung in sweep.rungs(names[2])] == [
        [("CALTECH", "KKI")],
        [("KKI", "CALTECH")],
    ]


def test_overrides_go_where_they_belong(tmp_path: Path) -> None:
    overrides = ("space.learning_rate.grid=[0.5]", "objective.mode=min", "task.training.iterations=3")
    sweep = loaded(tmp_path, *overrides, set=["methods.tent.batch_size=2"])
    assert [trial.config for trial in sweep.trials] == [{"learning_rate": 0.5}]
    assert sweep.mode == "min"
    assert sweep.benchmark.extra["task"].method.training.iterations == 3
    assert sweep.benchmark.rows[-1].method.batch_size == 2


def test_grids_cross_and_names_tell_fields_apart() -> None:
    space = {"a.rate": Domain(grid=[1, 2]), "b": Domain(grid=["x", "y"])}
    crossed = draw(space, set(), 1, 0)
    assert crossed == [{"a.rate": a, "b": b} for a in (1, 2) for b in ("x", "y")]


def test_draws_follow_the_seed() -> None:
    space = {
        "rate": Domain(loguniform=(1e-5, 1e-1)),
        "share": Domain(uniform=(0.25, 0.75)),
        "kind": Domain(choice=["a", "b", "c"]),
        "count": Domain(uniform=(1, 4)),
        "grid": Domain(grid=[0, 1]),
    }
    drawn = draw(space, {"count"}, 200, 7)
    assert drawn == draw(space, {"count"}, 200, 7)
    assert drawn != draw(space, {"count"}, 200, 8)
    assert draw(space, {"count"}, 3, 7) == [*drawn[:3], *drawn[200:203]], "more samples keep the first ones"
    assert {c["count"] for c in drawn} == {1, 2, 3, 4}
    assert {c["kind"] for c in drawn} == {"a", "b", "c"}
    assert all(0.25 <= c["share"] <= 0.75 for c in drawn)
    below = sum(c["rate"] < 1e-3 for c in drawn) / len(drawn)
    assert 0.4 < below < 0.6, "half of the draws lie below the geometric middle"
    assert [c["grid"] for c in drawn] == [0] * 200 + [1] * 200
    assert all(float(f"{c['rate']:.4g}") == c["rate"] for c in drawn), "a name says exactly what ran"


def test_a_choice_drawn_twice_is_one_trial(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, space={"steps": {"choice": [1, 2]}}, samples=20)
    assert sorted(trial.config["steps"] for trial in sweep.trials) == [1, 2]


def test_integers_stay_integers(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, space={"steps": {"loguniform": [1, 64]}, "learning_rate": {"uniform": [0, 1]}}, samples=5)
    assert all(isinstance(trial.config["steps"], int) for trial in sweep.trials)
    assert len(sweep.trials) == 5


# ------------------------------------------------------------------------------------------- ablations


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda path: path.stem)
def test_the_ablations_resolve(file: Path, tmp_path: Path) -> None:
    sweep = load(file, [], cache=tmp_path)
    ids = {"mad_ad": "mad_ad", "reflect": "reflect", "brain_age": "regional_regression"}
    assert sweep.method == next((ids[name] for name in ids if file.stem.startswith(name)), "harmonizing_flows")
    assert sweep.spec.sweep == f"ablation_{file.stem}"
    assert 2 <= len(sweep.trials) <= 12
    assert sweep.defaults.keys() <= sweep.spec.space.keys()


@pytest.mark.parametrize("file", PAPER_ABLATIONS, ids=lambda path: path.stem)
def test_the_published_ablations_can_be_planned_without_their_data(file: Path, tmp_path: Path) -> None:
    home = Home.of(tmp_path / "runs", tracking="none")
    (sweep,) = prepare([file], [], home, None, to_run=False)
    assert sweep.spec.sweep == f"paper_ablation_{file.stem}"
    view = overview(sweep, home, 2)
    assert len(view.trials) == len(sweep.trials) > 1
    assert view.missing, "says which data there would have to be"
    with pytest.raises(UserError, match="no data folder is named"):
        prepare([file], [], home, None)


@pytest.mark.parametrize("file", [*TUNING, *PAPER_TUNING], ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_searches_choose_on_validation_scans_beside_the_defaults(file: Path, tmp_path: Path) -> None:
    home = Home.of(tmp_path / "runs", tracking="none")
    (sweep,) = prepare([file], [], home, None, to_run=False)
    assert sweep.spec.objective.split == "validation"
    assert sweep.spec.sweep == f"{'paper_' if file in PAPER_TUNING else ''}tuning_{file.stem}"
    rows = {row.name: row.method for row in sweep.benchmark.rows}
    defaults = rows[sweep.spec.method].model_dump()["regressor"]
    assert all(rows[trial.name].model_dump()["regressor"] != defaults for trial in sweep.trials)
    assert file.stem == f"brain_age_{sweep.spec.method}"


def test_the_file_in_the_guide_is_one(tmp_path: Path) -> None:
    text = (tiny.REPO / "docs" / "sweeps.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "rates.yaml").write_text(text.replace("../benchmarks", str(tiny.REPO / "benchmarks")))
    sweep = load(tmp_path / "rates.yaml", [], cache=tmp_path)
    assert len(sweep.trials) == 3 * 5
    assert {row.name for row in sweep.benchmark.rows} == {"none", "histogram_matching", *(t.name for t in sweep.trials)}


def test_defaults_are_what_the_base_has(tmp_path: Path) -> None:
    folder = tiny.REPO / "benchmarks" / "ablations"
    assert load(folder / "margin.yaml", [], cache=tmp_path).defaults == {"guidance.margin": 5.0}
    assert load(folder / "head.yaml", [], cache=tmp_path).defaults == {"harmonizer.head": "plain"}


def test_ablations_share_what_they_can(tmp_path: Path) -> None:
    assert {path.stem for path in ABLATIONS} == {
        "components", "couplings", "guidance", "head", "margin", "stopping", "threshold",
        "mad_ad_gamma", "mad_ad_score", "mad_ad_steps", "reflect_score", "reflect_size", "reflect_steps",
        "brain_age_features", "brain_age_k", "brain_age_regression", "brain_age_segmentation",
    }  # fmt: skip
    folder = tiny.REPO / "benchmarks" / "ablations"
    late = [name for name in (path.stem for path in ABLATIONS) if name.endswith(("gamma", "score", "steps"))]
    for name, shared in (
        ("stopping", {"train", "fit", "adapt"}),
        ("couplings", {"train"}),
        ("head", {"train"}),
        *((name, {"fit"}) for name in late),
        *((f"brain_age_{name}", {"segment"}) for name in ("features", "k", "regression")),
    ):
        sweep = load(folder / f"{name}.yaml", [], cache=tmp_path)
        plan = sweep.benchmark.plan
        one = Plan.of("one", [cell for cell in plan.cells if cell.method == sweep.trials[-1].name])
        assert all(plan.counts()[kind] == one.counts()[kind] > 0 for kind in shared), name
    couplings = load(folder / "couplings.yaml", [], cache=tmp_path).benchmark.plan
    fits = [stage.params["part"] for stage in couplings.stages if stage.kind == "fit"]
    assert fits.count("flow") == 3 * fits.count("harmonizer")


# ------------------------------------------------------------------------------------------- between sessions


def test_the_journal_survives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new")
    journal.report("a", 1, 0.5)
    journal.report("b", 1, math.nan)
    with journal.path.open("a") as file:
        file.write('\n{"trial": "a", "ru')
    again = Journal(tmp_path / "new")
    assert again.reports["a"] == {1: 0.5}
    assert math.isnan(again.reports["b"][1])
    again.end("a", "stopped")
    assert Journal(tmp_path / "new").ended == {"a": "stopped"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray_session")  # which settles Ray's environment before anything imports it
def test_the_scheduler_remembers_earlier_sessions(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for name, value in (("a", 0.9), ("b", 0.8)):
        journal.report(name, 1, value)
        journal.end(name, "finished")

    def decision(scheduler: Any, value: float) -> str:
        trial = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, trial)
        answer: str = scheduler.on_trial_result(None, trial, {"rung": 1, "objective": value})
        return answer

    assert decision(_halving(Asha(), "max", 4, journal), 0.5) == "STOP"
    assert decision(_halving(Asha(), "max", 4, journal), 0.95) == "CONTINUE"
    assert decision(_halving(Asha(), "min", 4, journal), 0.5) == "CONTINUE"
    assert decision(_halving(Asha(), "max", 4, Journal(tmp_path / "none")), 0.5) == "CONTINUE"
