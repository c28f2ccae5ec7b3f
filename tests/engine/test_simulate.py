"""Replays on imaginary workers: known schedules, bounds that hold for any plan, and a real run beside them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine.executor import Execution
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.resources import ResourceClasses, Resources
from harness.engine.simulate import Replay, Workload, counts, enough
from harness.engine.store import open_store


def stage(name: str, *needs: Stage, seconds: float = 1.0, resources: str = "score", workers: int = 1) -> Stage:
    inputs = {f"n{i}": need for i, need in enumerate(needs)}
    return Stage("score", name, "toy_stages:add", {"name": name, "s": seconds}, inputs, resources, workers=workers)


def workload(*finals: Stage, classes: ResourceClasses | None = None, dispatch: float = 0.0) -> Workload:
    stages = Plan.of("toy", [Cell("m", "A", str(i), 0, {"x": s}) for i, s in enumerate(finals)]).stages
    return Workload(stages, lambda s: s.params["s"], classes, around=0.0, dispatch=dispatch)


def seconds(load: Workload, workers: int, gpus: float = 0.0) -> float:
    return round(load.on(workers, gpus).seconds, 9)


def test_stages_that_share_nothing_divide_among_the_workers() -> None:
    load = workload(*(stage(str(i)) for i in range(10)))
    assert [load.on(n).seconds for n in (1, 2, 4, 10, 64)] == pytest.approx([10, 5, 3, 1, 1])
    assert load.on(4).efficiency == pytest.approx(10 / 12)
    assert load.on(64).worker_hours == pytest.approx(64 / 3600)


def test_no_number_of_workers_beats_the_longest_chain() -> None:
    first = stage("a", seconds=2)
    second = stage("b", first, seconds=3)
    load = workload(stage("c", second, seconds=4), stage("d", first, seconds=1))
    assert load.path == pytest.approx(9)
    assert load.busy == pytest.approx(10)
    assert seconds(load, 256) == 9


def test_the_longest_remaining_path_goes_first() -> None:
    """Two workers, a chain of three and three loose stages: started last, the chain would take five."""
    chain = stage("chain2", stage("chain1", stage("chain0")))
    load = workload(*(stage(f"loose{i}") for i in range(3)), chain)
    assert seconds(load, 2) == 3


def test_a_shared_stage_runs_once_and_what_is_done_not_at_all() -> None:
    shared = stage("shared", seconds=5)
    plan = Plan.of("toy", [Cell("m", "A", n, 0, {"x": stage(n, shared)}) for n in "BCD"])
    assert seconds(Workload(plan.stages, lambda s: s.params["s"], around=0, dispatch=0), 3) == 6
    pending = [s for s in plan.stages if s.key != shared.key]
    assert seconds(Workload(pending, lambda s: s.params["s"], around=0, dispatch=0), 3) == 1


def test_stages_take_the_room_that_their_class_asks_for() -> None:
    classes = ResourceClasses(train=Resources(cpus=2, gpus=1), apply=Resources(gpus=0.5))
    trainings = workload(*(stage(f"t{i}", resources="train") for i in range(4)), classes=classes)
    assert seconds(trainings, 4) == 2, "two cores each"
    assert seconds(trainings, 8, 1) == 4, "one GPU"
    assert trainings.busy == pytest.approx(8)
    applied = workload(*(stage(f"a{i}", resources="apply") for i in range(4)), classes=classes)
    assert seconds(applied, 8, 1) == 2, "two share a GPU"
    together = workload(*(stage(f"w{i}", resources="train", workers=4) for i in range(2)), classes=classes)
    assert seconds(together, 8) == 2, "four processes of two cores each"


def test_small_stages_start_beside_a_large_one_that_does_not_fit_yet() -> None:
    classes = ResourceClasses(train=Resources(cpus=3))
    first = stage("small", seconds=4)
    large = [stage(f"large{i}", seconds=5, resources="train") for i in range(2)]
    assert seconds(workload(*large, first, classes=classes), 4) == 10


def test_what_asks_for_more_than_there_is_takes_all_there_is() -> None:
    greedy = ResourceClasses(train=Resources(cpus=8))
    load = workload(*(stage(f"t{i}", resources="train") for i in range(3)), classes=greedy)
    assert seconds(load, 2) == 3


def test_the_driver_hands_out_one_stage_at_a_time() -> None:
    load = workload(*(stage(str(i), seconds=0.01) for i in range(100)), dispatch=0.1)
    assert load.on(256).seconds == pytest.approx(10.01)
    assert load.on(1).seconds == pytest.approx(11.0)


def test_nothing_to_do_takes_no_time() -> None:
    empty = Workload([], lambda s: 1.0)
    assert (empty.path, empty.busy, empty.on(4)) == (0.0, 0.0, Replay(4, 0.0, 0.0))
    assert empty.on(4).efficiency == 1.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_any_plan_stays_within_what_list_scheduling_guarantees(
    drawn: list[tuple[int, list[int]]], workers: int
) -> None:
    """Graham 1969: never idle without need, so at most work / m + (1 - 1 / m) × longest chain."""
    stages: list[Stage] = []
    for i, (length, parents) in enumerate(drawn):
        stages.append(stage(str(i), *({stages[p % i] for p in parents} if i else ()), seconds=length))
    load = workload(*stages)
    found = load.on(workers).seconds
    assert found >= max(load.path, load.busy / workers) - 1e-9
    assert found <= load.busy / workers + (1 - 1 / workers) * load.path + 1e-9
    assert load.on(1).seconds == pytest.approx(load.busy)


def test_counts_double_up_to_the_number_asked_for() -> None:
    assert counts(1) == (1,)
    assert counts(8) == (1, 2, 4, 8)
    assert counts(12) == (1, 2, 4, 8, 12)


def test_where_more_workers_stop_helping() -> None:
    load = workload(*(stage(str(i)) for i in range(8)), stage("long", seconds=4))
    assert enough([load.on(n) for n in counts(64)]).workers == 4
    assert enough([load.on(1)]).workers == 1


@pytest.mark.usefixtures("ray_session")
def test_a_real_run_takes_at_least_as_long_and_starts_in_the_same_order(tmp_path: Path) -> None:
    def slow(name: str, *needs: Stage) -> Stage:
        inputs = {f"n{i}": need for i, need in enumerate(needs)}
        return Stage("score", name, "toy_stages:add", {"name": name}, inputs, local={"sleep": 0.3})

    chain = slow("chain2", slow("chain1", slow("chain0")))
    plan = Plan.of("toy", [Cell("m", "A", s.title, 0, {"x": s}) for s in (*(slow(f"l{i}") for i in range(5)), chain)])
    load = Workload(plan.stages, lambda s: 0.3)
    execution = Execution(plan, open_store(str(tmp_path / "store")), ResourceClasses())
    started = time.monotonic()
    summary = execution.run()
    assert summary.executed == len(plan.stages) == 8
    assert time.monotonic() - started >= load.on(2).seconds - 8 * 0.02
    assert list(execution.since)[:2] == [chain.needs["n0"].needs["n0"].key, plan.stages[0].key]
