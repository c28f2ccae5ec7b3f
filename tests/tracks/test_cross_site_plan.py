"""Traits wire the plan: what a method may not see has no edge to its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml

from harness.engine.plan import Plan, Stage
from harness.spec import load

METHODS = {"none": None, "histogram_matching": None, "combat": None, "tent": None}
SITES = ["CALTECH", "KKI", "NYU"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("plan")
    data = {**tiny.tiny()["data"], "sites": SITES}
    (folder / "x.yaml").write_text(yaml.safe_dump(tiny.tiny(methods=METHODS, data=data)))
    return load(folder / "x.yaml", cache=folder / "cache").plan


def stages(plan: Plan, kind: str, method: str) -> list[Stage]:
    return [s for s in plan.stages if s.kind == kind and s.title.split()[1] == method]


def images_of(stage: Stage) -> set[tuple[str, str]]:
    """(site, split) of the image artifacts among a stage's direct inputs."""
    return {(n.title.split()[1], n.title.split()[2]) for n in stage.needs.values() if n.kind == "images"}


def pair(stage: Stage) -> tuple[str, str]:
    source, _, target = stage.title.split()[2].partition("→")
    return source, target


@pytest.mark.parametrize("method", ["none", "histogram_matching", "tent"])
def test_a_source_free_method_has_no_path_to_source_data(plan: Plan, method: str) -> None:
    """Beyond what leaves the source site as a fitted state or task model, nothing leads back to its images."""
    found = stages(plan, "apply", method)
    assert len(found) >= 6
    for stage in found:
        source, target = pair(stage)
        assert images_of(stage) == {(target, "test")}
        open_inputs = [need for name, need in stage.needs.items() if name not in ("state", "task")]
        reached = {n.title for need in open_inputs for n in (need, *(plan.by_key[k] for k in plan.ancestors(need)))}
        if source != target:
            assert not any(f" {source} " in f"{title} " for title in reached)


def test_an_unknown_domain_method_fits_without_any_target(plan: Plan) -> None:
    fits = stages(plan, "fit", "histogram_matching")
    assert {s.title.split()[2] for s in fits} == set(SITES), "one fit for each source"
    for stage in fits:
        assert images_of(stage) == {(stage.title.split()[2], "train")}


def test_a_method_that_knows_its_domains_fits_on_each_pair(plan: Plan) -> None:
    fits = stages(plan, "fit", "combat")
    assert len(fits) == 6
    for stage in fits:
        source, target = pair(stage)
        assert images_of(stage) == {(source, "train"), (target, "train")}


@pytest.mark.parametrize("method", ["none", "histogram_matching", "combat"])
def test_a_task_agnostic_method_never_meets_the_task_model(plan: Plan, method: str) -> None:
    for stage in (*stages(plan, "apply", method), *stages(plan, "fit", method)):
        assert not any(plan.by_key[key].kind == "train" for key in plan.ancestors(stage))


def test_labels_reach_task_training_and_scoring_only(plan: Plan) -> None:
    readers = {s.kind for s in plan.stages for n in s.needs.values() if n.kind == "labels"}
    assert readers == {"train", "score"}
    for stage in plan.stages:
        if stage.kind in ("fit", "apply", "predict"):
            assert not any(need.kind == "labels" for need in stage.needs.values())
            test_labels = [k for k in plan.ancestors(stage) if plan.by_key[k].title.startswith("labels") and
                           plan.by_key[k].title.split()[2] == "test"]  # fmt: skip
            assert test_labels == []


def test_no_test_image_reaches_any_training(plan: Plan) -> None:
    for stage in plan.stages:
        if stage.kind in ("train", "fit"):
            assert not any(split == "test" for _, split in images_of(stage))


def test_every_off_diagonal_cell_is_planned_and_the_baseline_on_the_diagonal(plan: Plan) -> None:
    cells = {(c.method, c.source, c.target) for c in plan.cells}
    assert cells == {(m, s, t) for m in METHODS for s in SITES for t in SITES if s != t or m == "none"}


def test_the_task_model_is_trained_once_for_each_source(plan: Plan) -> None:
    assert plan.counts()["train"] == len(SITES)
    assert plan.trainings_saved() > 0


def test_adding_a_method_or_a_site_reshuffles_nothing(plan: Plan, tmp_path: Path) -> None:
    data = {**tiny.tiny()["data"], "sites": ["KKI", "CALTECH"]}
    (tmp_path / "y.yaml").write_text(yaml.safe_dump(tiny.tiny(methods={"tent": None, "none": None}, data=data)))
    smaller = load(tmp_path / "y.yaml", cache=tmp_path / "cache").plan
    assert {s.key for s in smaller.stages} <= {s.key for s in plan.stages}


def test_replicates_have_seeds_and_titles_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "z.yaml").write_text(yaml.safe_dump(tiny.tiny(seeds=[0, 1])))
    found = load(tmp_path / "z.yaml", cache=tmp_path / "cache").plan
    assert found.counts()["train"] == 4
    assert len({s.seed for s in found.stages if s.kind == "train"}) == 4
    assert len({s.title for s in found.stages}) == len(found.stages)
