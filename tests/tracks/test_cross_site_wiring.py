"""Parts, scopes, steps, oracles, generalizers and ages: how they are wired, run and traced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_methods

from harness.api import Method
from harness.data import arrays
from harness.data.card import load_card
from harness.data.dataset import Dataset, open_dataset
from harness.engine.executor import Execution, ResourceClasses
from harness.engine.plan import Plan
from harness.engine.store import Store, open_store
from harness.tracks.base import Row
from harness.tracks.cross_site import collect
from harness.tracks.cross_site.plan import Protocol, access, build_plan
from harness.yamlfile import Document

SITES = ("CALTECH", "KKI", "NYU")
METRICS = ("dsc", "wasserstein")


def row(cls: type[Method], name: str = "", **fields: Any) -> Row:
    return Row(name or cls.id, f"toy_methods:{cls.__name__}", cls(**fields))


def dataset(cache: Path, **options: Any) -> Dataset:
    changes = {"scans": 4, "slices": {"size": 64, "pixel_mm": 3.0, "count": 2}}
    card = load_card(Document("test", {}), {"card": "phantom_adult_t1", "with": changes})
    return open_dataset(card, None, cache, **options)


def planned(
    cache: Path, *rows: Row, sites: tuple[str, ...] = SITES, task: Row | None = None, metrics: tuple[str, ...] = METRICS
) -> Plan:
    task = task or row(toy_methods.MeanTask)
    data = dataset(cache, withhold_age=task.method.outcome == "age")  # type: ignore[attr-defined]
    protocol = Protocol("none", "round", False, metrics, "none")
    return build_plan("toy", data, sites, task, rows, (0,), protocol)


def titles(plan: Plan, kind: str) -> list[str]:
    return sorted(stage.title for stage in plan.stages if stage.kind == kind)


def test_parts_are_stages_that_rows_share(tmp_path: Path) -> None:
    one, other = row(toy_methods.Stepwise), row(toy_methods.Stepwise, "raised", floor=0.5)
    plan = planned(tmp_path, one, other)
    mean = [s for s in plan.stages if s.kind == "fit" and " mean " in s.title]
    spread = [s for s in plan.stages if s.kind == "fit" and " spread " in s.title]
    assert len(mean) == len(SITES), "one for each source, whatever the floor"
    assert len(spread) == 2 * len(SITES)
    assert set(mean[0].needs) == {"source", "validation"}
    assert mean[0].params["method"]["fields"] == {}


def test_late_fields_share_fit_and_adaptation(tmp_path: Path) -> None:
    rows = [row(toy_methods.Stepwise, pick, pick=pick) for pick in ("last", "first", "oracle", "task")]
    plan = planned(tmp_path, *rows)
    assert plan.counts()["adapt"] == 6
    assert plan.counts()["fit"] == 2 * len(SITES)
    assert plan.counts()["apply"] == 4 * 6


def test_an_early_field_adapts_anew(tmp_path: Path) -> None:
    plan = planned(tmp_path, row(toy_methods.Stepwise), row(toy_methods.Stepwise, "far", reach=5))
    assert plan.counts()["adapt"] == 12
    assert plan.counts()["fit"] == 2 * len(SITES)


def test_one_fit_serves_both_directions_of_a_pair(tmp_path: Path) -> None:
    plan = planned(tmp_path, row(toy_methods.PairMean))
    assert titles(plan, "fit") == ["fit pair_mean CALTECH↔KKI", "fit pair_mean CALTECH↔NYU", "fit pair_mean KKI↔NYU"]


def test_one_fit_serves_all_sites(tmp_path: Path) -> None:
    plan = planned(tmp_path, row(toy_methods.PooledMean))
    assert titles(plan, "fit") == ["fit pooled_mean all sites"]
    fit = next(s for s in plan.stages if s.kind == "fit")
    assert set(fit.needs) == {f"sites.{site}" for site in SITES}


def test_traits_are_read_off_the_edges(tmp_path: Path) -> None:
    rows = [
        row(toy_methods.Stepwise),
        row(toy_methods.Stepwise, "asks_task", pick="task"),
        row(toy_methods.PairMean),
        row(toy_methods.PooledMean),
        row(toy_methods.Darker),
    ]
    found = access(planned(tmp_path, *rows), rows)
    shown = {name: "".join("-+"[value] for value in traits.values()) for name, traits in found.items()}
    assert shown == {"stepwise": "+++", "asks_task": "+-+", "pair_mean": "-+-", "pooled_mean": "-+-", "darker": "+-+"}


def test_a_generalizer_trains_the_task_model_its_own_way(tmp_path: Path) -> None:
    plan = planned(tmp_path, row(toy_methods.Darker), sites=SITES[:2])
    assert titles(plan, "fit") == ["fit darker CALTECH", "fit darker KKI"]
    assert plan.counts()["train"] == 0, "nobody needs the plain model"
    predict = next(s for s in plan.stages if s.kind == "predict")
    assert predict.needs["task"].kind == "fit"
    assert predict.needs["images"].kind == "images"


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    folder = tmp_path_factory.mktemp("wiring")
    rows = [row(toy_methods.Stepwise, pick, pick=pick) for pick in ("last", "oracle", "task")]
    rows += [row(toy_methods.PairMean), row(toy_methods.PooledMean), row(toy_methods.Darker)]
    plan = planned(folder / "cache", *rows, sites=SITES[:2])
    store = open_store(str(folder / "store"))
    summary = Execution(plan, store, ResourceClasses()).run()
    assert not summary.failures, [f.trace or f.error for f in summary.failures.values()]
    return plan, store


def artifact(finished: tuple[Plan, Store], title: str) -> Path:
    plan, store = finished
    return store.read(next(s.key for s in plan.stages if s.title == title))


def means(finished: tuple[Plan, Store], title: str) -> float:
    return toy_methods.brain_mean(arrays.load_images(artifact(finished, title)))


def assert_scaled(finished: tuple[Plan, Store], title: str, factor: float) -> None:
    """The artifact is the raw KKI test images times `factor`, clipped, in the brain, to 8 bits."""
    raw = arrays.load_images(artifact(finished, "images KKI test"))
    made = arrays.load_images(artifact(finished, title))
    expected = np.clip(raw.floats() * factor, 0, 1) * raw.mask
    np.testing.assert_allclose(made.floats(), expected, atol=0.51 / 255)


def test_adaptation_reaches_the_source(finished: tuple[Plan, Store]) -> None:
    factor = means(finished, "images CALTECH train") / means(finished, "images KKI test")
    assert_scaled(finished, "apply last CALTECH→KKI", factor)


def test_the_oracle_shows_the_best_step(finished: tuple[Plan, Store]) -> None:
    plan, _ = finished
    scored = next(s for s in plan.stages if s.title.startswith("score steps") and "CALTECH→KKI" in s.title)
    curve = json.loads((artifact(finished, scored.title) / "curves.json").read_text())
    values = {step: value for name, step, value in curve if name == "dsc"}
    assert sorted(values) == [0, 1, 2, 3]
    best = json.loads((artifact(finished, scored.title) / "best.json").read_text())["step"]
    assert values[best] == max(values.values())
    oracle = next(s for s in plan.stages if s.title == "apply oracle CALTECH→KKI")
    chosen = json.loads((artifact(finished, oracle.title) / "curves.json").read_text())
    assert ["chosen_step", 0, best] in chosen


def test_pair_fit_maps_each_site_to_the_other(finished: tuple[Plan, Store]) -> None:
    state = arrays.load_state(artifact(finished, "fit pair_mean CALTECH↔KKI"))
    assert_scaled(finished, "apply pair_mean CALTECH→KKI", state["CALTECH"] / state["KKI"])


def test_the_generalizer_reached_the_training(finished: tuple[Plan, Store]) -> None:
    plain = arrays.load_state(artifact(finished, "train mean_task KKI"))
    darker = arrays.load_state(artifact(finished, "fit darker KKI"))
    assert darker["mean"] == pytest.approx(plain["mean"] / 2, rel=1e-5)


def test_curves_of_a_shared_stage_stand_under_every_row(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    rows = list(collect.curves(plan, store, {}))
    gap = {r["method"] for r in rows if r["name"] == "gap"}
    assert gap == {"last", "oracle", "task"}
    traced = {(r["method"], r["stage"]) for r in rows if r["name"] == "entropy"}
    assert traced == {(name, "trace") for name in ("last", "oracle", "task")}
    assert {r["method"] for r in rows if r["name"] == "chosen_step"} == {"last", "oracle", "task"}


def test_one_panel_for_each_method_and_pair(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    panels = list(collect.panels(plan, store, {}))
    assert len(panels) == 6 * 2
    of_target = {
        p["target"]: {(q["subject"], q["slice"]) for q in panels if q["target"] == p["target"]} for p in panels
    }
    assert all(len(shown) == 1 for shown in of_target.values()), "one slice for all methods of a target"
    darker = next(p for p in panels if p["method"] == "darker")
    assert darker["harmonised"] is None
    assert darker["prediction"] is not None


def test_ages_reach_the_task_model_and_the_score_only(ray_session: None, tmp_path: Path) -> None:
    task = row(toy_methods.MeanAge)
    rows = [row(toy_methods.Stepwise), row(toy_methods.PairMean), row(toy_methods.Darker)]
    plan = planned(tmp_path / "cache", *rows, sites=SITES[:2], task=task, metrics=("mae", "mse", "wasserstein"))
    readers = {s.kind for s in plan.stages for n in s.needs.values() if n.kind == "ages"}
    assert readers == {"fit", "train", "score", "trace"}, "fit: the generalizer's, which trains the task model"
    store = open_store(str(tmp_path / "store"))
    summary = Execution(plan, store, ResourceClasses()).run()
    assert not summary.failures, [f.trace or f.error for f in summary.failures.values()]
    for stage in plan.stages:
        if stage.kind in ("images", "apply"):
            assert all(scan.age is None for scan in arrays.load_images(store.read(stage.key)).scans)
    score = next(s for s in plan.stages if s.title == "score ages pair_mean CALTECH→KKI")
    records = json.loads((store.read(score.key) / "records.json").read_text())
    truth = arrays.load_ages(store.read(score.needs["ages"].key)).ages
    predicted = arrays.load_predictions(store.read(score.needs["predictions"].key))
    mae = [r["value"] for r in records if r["metric"] == "mae"]
    np.testing.assert_allclose(mae, np.abs(predicted - truth))
    assert [r["unit"] for r in records if r["metric"] == "mse"] == ["weeks²"] * len(truth)
