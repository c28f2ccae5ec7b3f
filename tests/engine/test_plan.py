"""Keys, sharing and order of a plan."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine.plan import Cell, Plan, Stage, canonical, seed_of, uncollected


def stage(title: str = "t", **changes: object) -> Stage:
    base = Stage(kind="score", title=title, fn="toy_stages:add", params={"value": 1}, seed=3, data="d")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"fn": "toy_stages:fail"}, {"params": {"value": 2}}, {"data": "e"}, {"seed": 4}, {"needs": {"a": stage()}}],
)
def test_key_depends_on_every_component(change: dict[str, object]) -> None:
    assert stage(**change).key != stage().key


@pytest.mark.parametrize("change", [{"title": "other"}, {"local": {"root": "/x"}}, {"resources": "train"}])
def test_key_ignores_names_and_places(change: dict[str, object]) -> None:
    assert stage(**change).key == stage().key


def test_key_does_not_depend_on_the_order_of_parameters() -> None:
    assert stage(params={"a": 1, "b": 2}).key == stage(params={"b": 2, "a": 1}).key


def test_keys_of_old_stores_stay_valid() -> None:
    """Keys as they were when the first stores were written. Where these change, every user computes everything anew.

    The functions lie in no module, so that no code enters the keys.
    """
    images = Stage(
        "images",
        "images A",
        "elsewhere:render",
        {"site": "A", "noise": 0.025, "size": [64, 64], "mask": None},
        data="d1",
        local={"root": "/x"},
    )
    fields = {"rate": 1e-4, "on": True, "names": {10: "ten", 2: "two"}, "text": "größer"}
    method = {"method": {"class": "m:M", "fields": fields}}
    fit = Stage("fit", "fit m A", "elsewhere:fit", method, {"source": images}, "train", ("elsewhere:M",), seed=7)
    score = Stage("score", "score m", "elsewhere:score", needs={"z": fit, "a": images})
    assert [found.key for found in (images, fit, score)] == [
        "818157cb4a6d14b7f4dd650fb1f3af23380026cc5850dfb8adb60730fc1fec90",
        "8e235b85f2ae879ce9b13361f537ebffbbbc849910b18de2fc3d9e6e881f9b1c",
        "098b965ea612ab54ae389edd41da8a9abd4c69a3cef0d3d4d05ffbf119e8f250",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(st.integers(-20, 20), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), JSON), st.sampled_from([1, 4]))
def test_a_key_is_the_hash_of_the_components_that_manifests_keep(params: dict[str, Any], workers: int) -> None:
    found = stage(params=params, workers=workers, needs={"b": stage(), "a": stage(seed=1)})
    assert found.key == hashlib.sha256(canonical(found.components).encode()).hexdigest()


def test_canonical_refuses_what_has_no_one_spelling() -> None:
    with pytest.raises(ValueError):
        canonical({"x": float("nan")})
    with pytest.raises(TypeError):
        canonical({"x": object()})


def test_seed_depends_on_identity_alone() -> None:
    assert seed_of("fit", "m", "A", 0) == seed_of("fit", "m", "A", 0)
    assert len({seed_of("fit", m, s, r) for m in "mn" for s in "AB" for r in (0, 1)}) == 8


def test_sharing_counts_trainings_saved() -> None:
    def cell(method: str, target: str) -> Cell:
        train = Stage("train", "train", "toy_stages:add", {"x": "model"})
        apply = Stage("apply", f"{method}{target}", "toy_stages:add", {"x": [method, target]}, {"task": train})
        return Cell(method, "A", target, 0, {"score": apply})

    plan = Plan.of("b", [cell(m, t) for m in "pq" for t in "BCD"])
    assert plan.counts() == {"train": 1, "apply": 6}
    assert plan.trainings_saved() == 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["train", "fit", "apply"]), st.lists(st.integers(0, 30), max_size=3))))
def test_trainings_saved_are_those_that_cells_need_less_those_planned(
    drawn: list[tuple[str, list[int]]],
) -> None:
    stages: list[Stage] = []
    for i, (kind, parents) in enumerate(drawn):
        needs = {str(p): stages[p % i] for p in parents} if i else {}
        stages.append(Stage(kind, str(i), "toy_stages:add", {"i": i}, needs))
    cells = [Cell("m", "A", str(i), 0, {"x": s}) for i, s in enumerate(stages) if s.kind == "apply"]
    plan = Plan.of("b", cells)
    wanted = [plan.by_key[key].kind for cell in cells for key in plan.ancestors(cell.finals["x"])]
    planned = [s.kind for s in plan.stages]
    wasted, trained = (kinds.count("train") + kinds.count("fit") for kinds in (wanted, planned))
    assert plan.trainings_saved() == wasted - trained


def test_planning_leaves_the_collector_as_it_was() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=30))
def test_every_stage_follows_its_inputs(edges: list[list[int]]) -> None:
    stages: list[Stage] = []
    for i, parents in enumerate(edges):
        needs = {str(p): stages[p % i] for p in parents} if i else {}
        stages.append(Stage("k", str(i), "toy_stages:add", {"i": i}, needs))
    plan = Plan.of("b", [Cell("m", "A", "B", 0, {str(i): s for i, s in enumerate(stages)})])
    place = {s.key: i for i, s in enumerate(plan.stages)}
    assert len(place) == len(stages)
    assert all(place[n.key] < place[s.key] for s in plan.stages for n in s.needs.values())


def test_a_deep_plan_does_not_overflow_the_stack() -> None:
    last = Stage("k", "0", "toy_stages:add", {"i": 0})
    for i in range(1, 3000):
        last = Stage("k", str(i), "toy_stages:add", {"i": i}, {"previous": last})
        last.key  # noqa: B018 - keys are made bottom-up, as a track makes them
    assert len(Plan.of("b", [Cell("m", "A", "B", 0, {"x": last})]).stages) == 3000
