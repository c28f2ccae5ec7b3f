"""Several workers in the plan: which stages they train, and whose keys know of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from harness.engine.plan import Plan
from harness.spec import load
from harness.tracks.cross_site.plan import Protocol, build_plan

METHODS = {"none": None, "combat": None, "harmonizing_flows": None, "bigaug": None}
PROTOCOL = Protocol("baseline", "round", True, ("dsc",), "none")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Plan]:
    folder = tmp_path_factory.mktemp("plan")
    found = load(tiny.write(folder, methods=METHODS, metrics=["dsc"]), cache=folder / "cache")

    def plan(protocol: Protocol) -> Plan:
        return build_plan("tiny", found.dataset, found.sites, found.extra["task"], found.rows, (0,), protocol)

    alone = plan(PROTOCOL)
    assert {s.key for s in alone.stages} == {s.key for s in found.plan.stages}
    return alone, plan(replace(PROTOCOL, workers=3))


def test_only_what_is_trained_gets_several_workers(plans: tuple[Plan, Plan]) -> None:
    alone, together = plans
    assert {stage.workers for stage in alone.stages} == {1}
    trained = {" ".join(stage.title.split()[:-1]) for stage in together.stages if stage.workers == 3}
    assert trained == {
        "train segmenter_2d",
        "fit bigaug",
        "fit harmonizing_flows flow",
        "fit harmonizing_flows harmonizer",
    }
    assert {stage.workers for stage in together.stages} == {1, 3}


def test_only_keys_of_what_is_trained_and_of_what_follows_change(plans: tuple[Plan, Plan]) -> None:
    alone, together = plans
    assert [stage.title for stage in alone.stages] == [stage.title for stage in together.stages]
    for before, after in zip(alone.stages, together.stages, strict=True):
        touched = [after, *(together.by_key[key] for key in together.ancestors(after))]
        assert (before.key != after.key) == any(stage.workers == 3 for stage in touched)
        assert after.components.get("workers") == (3 if after.workers == 3 else None)
        assert before.seed == after.seed


def test_what_trains_nothing_is_found_in_the_store_as_ever(plans: tuple[Plan, Plan]) -> None:
    alone, together = plans
    shared = {stage.title for stage in together.stages if stage.key in alone.by_key}
    assert {"fit combat CALTECH→KKI", "apply combat CALTECH→KKI"} <= shared
    assert "predict combat CALTECH→KKI" not in shared
