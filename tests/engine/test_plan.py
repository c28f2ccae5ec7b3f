"""Keys, sharing and order of a plan."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine.plan import Cell, Plan, Stage, canonical, seed_of


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
