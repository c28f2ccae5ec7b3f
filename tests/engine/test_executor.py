"""The executor with real Ray workers: order, failures, retries, resume, sharing and corruption."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from harness.engine.executor import Execution, Progress, ResourceClasses, Resources, survey, to_do
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.store import LocalStore, open_store

pytestmark = pytest.mark.usefixtures("ray_session")


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str, *, bad: bool = False) -> None:
        self.lines.append(text)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    found = open_store(str(tmp_path / "store"))
    assert isinstance(found, LocalStore)
    return found


def add(name: str, *needs: Stage, fn: str = "add", value: int = 1, **local: object) -> Stage:
    inputs = {f"n{i}": need for i, need in enumerate(needs)}
    return Stage("score", name, f"toy_stages:{fn}", {"name": name, "value": value}, inputs, local=local)


def plan_of(*finals: Stage) -> Plan:
    return Plan.of("toy", [Cell(f"m{i}", "A", "B", 0, {"x": stage}) for i, stage in enumerate(finals)])


def number(store: LocalStore, stage: Stage) -> int:
    return int((store.read(stage.key) / "number.txt").read_text())


def run(plan: Plan, store: LocalStore, notes: Notes | None = None, classes: ResourceClasses | None = None) -> Execution:
    execution = Execution(plan, store, classes or ResourceClasses(), notes)
    execution.run()
    return execution


def test_a_diamond_runs_once_and_then_never_again(store: LocalStore, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")
    base = add("base", ledger=ledger)
    left, right = add("left", base, value=2, ledger=ledger), add("right", base, value=3, ledger=ledger)
    top = add("top", left, right, ledger=ledger)
    first = run(plan_of(top, left), store).summary
    assert number(store, top) == 8
    assert (first.executed, first.cached) == (4, 0)
    second = run(plan_of(top, left), store).summary
    assert (second.executed, second.cached) == (0, 4)
    assert Counter(Path(ledger).read_text().split()) == {"base": 1, "left": 1, "right": 1, "top": 1}


def test_only_what_changed_runs_again(store: LocalStore) -> None:
    base = add("base")
    run(plan_of(add("a", base), add("b", base, value=5)), store)
    again = run(plan_of(add("a", base), add("b", base, value=6)), store).summary
    assert again.executed_titles == ["b"]


def test_a_failure_is_a_row_and_the_rest_goes_on(store: LocalStore) -> None:
    bad = add("bad", fn="fail")
    after = add("after", bad)
    later = add("later", after)
    fine = add("fine")
    execution = run(plan_of(later, fine), store)
    summary = execution.summary
    assert number(store, fine) == 1
    assert (summary.executed, summary.count("failed"), summary.count("blocked")) == (1, 1, 2)
    failure = summary.failures[bad.key]
    assert failure.error == "ValueError: the method does not like"
    assert "toy_stages.py" in failure.trace
    assert "needs bad, which failed" in summary.failures[later.key].error
    kept = store.failure(bad.key)
    assert kept is not None
    assert "toy_stages.py" in kept["trace"]
    assert run(plan_of(later, fine), store).summary.count("failed") == 1, "the next run tries again what failed"


def test_a_method_that_exits_fails_its_own_stage(store: LocalStore) -> None:
    summary = run(plan_of(add("leaves", fn="leave"), add("fine")), store).summary
    assert (summary.executed, summary.count("failed")) == (1, 1)


def test_a_killed_worker_is_retried(store: LocalStore) -> None:
    notes = Notes()
    stage = add("mortal", fn="die_once")
    summary = run(plan_of(stage), store, notes).summary
    assert (summary.executed, summary.count("failed")) == (1, 0)
    assert any("mortal" in line and "trying again" in line for line in notes.lines)


def test_a_worker_that_always_dies_is_given_up(store: LocalStore) -> None:
    stage = add("doomed", fn="always_die")
    summary = run(plan_of(stage, add("fine")), store).summary
    assert "WorkerCrashedError" in summary.failures[stage.key].error
    assert summary.executed == 1


@pytest.mark.parametrize("which", ["base", "top"])
def test_corruption_is_set_aside_and_recomputed(store: LocalStore, which: str) -> None:
    base = add("base")
    top = add("top", base)
    plan = plan_of(top)
    run(plan, store)
    victim = base if which == "base" else top
    (store.read(victim.key) / "number.txt").write_text("9")
    notes = Notes()
    run(plan, store, notes)
    assert any("corrupt, set aside" in line for line in notes.lines)
    assert number(store, base) == 1
    assert number(store, top) == 2
    assert list((store.root / "corrupt").iterdir())


def test_an_input_that_rots_during_the_run_is_made_again(store: LocalStore) -> None:
    base, middle = add("base"), add("middle", add("base"))
    top = add("top", base, middle)
    run(plan_of(middle), store)
    execution = Execution(plan_of(top), store, ResourceClasses(), Notes())
    checked = survey(execution.plan, store)
    assert base.key in checked[0]
    # Damage after the driver has looked: only the worker can notice.
    object.__setattr__(execution, "progress", _Rot(store, base))
    execution.run()
    assert number(store, top) == 4
    assert execution.summary.count("failed") == 0


def test_an_input_that_vanishes_under_a_stage_is_made_again(store: LocalStore, tmp_path: Path) -> None:
    base = add("base")
    reader = Stage(
        "add", "reader", "toy_stages:lose_input_once", needs={"base": base}, local={"away": str(tmp_path / "away")}
    )
    notes = Notes()
    assert run(plan_of(reader), store, notes).summary.count("failed") == 0, notes.lines
    assert number(store, reader) == 2
    assert any("corrupt, set aside" in line and "missing" in line for line in notes.lines)


def test_many_stages_that_find_the_same_input_rotten_have_it_made_anew_once(store: LocalStore, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")
    base = add("base", ledger=ledger)
    run(plan_of(base), store)
    readers = [add(f"reader{i}", base, value=i) for i in range(8)]
    execution = Execution(plan_of(*readers), store, ResourceClasses(score=Resources(cpus=0.25)), _Rot(store, base))
    summary = execution.run()
    assert summary.count("failed") == summary.count("blocked") == 0
    assert [number(store, reader) for reader in readers] == [1 + i for i in range(8)]
    assert Path(ledger).read_text().split() == ["base", "base"], "made once, and once anew"


class _Rot(Notes):
    def __init__(self, store: LocalStore, victim: Stage) -> None:
        super().__init__()
        self.store, self.victim = store, victim

    def start(self, run: Execution) -> None:
        (self.store.read(self.victim.key) / "number.txt").write_text("77")


def test_what_nobody_needs_is_not_made_again(store: LocalStore) -> None:
    base = add("base")
    top = add("top", base)
    run(plan_of(top), store)
    store.set_aside(base.key, "gone")
    whole, _ = survey(plan_of(top), store)
    assert to_do(plan_of(top), whole) == []


def test_two_runs_on_one_store_share_the_work(store: LocalStore, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")
    stages = [add(f"s{i}", value=i, ledger=ledger, sleep=0.15) for i in range(8)]
    top = add("top", *stages, ledger=ledger)
    threads = [threading.Thread(target=run, args=(plan_of(top), store)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert number(store, top) == sum(range(8)) + 1
    counts = Counter(Path(ledger).read_text().split())
    assert set(counts.values()) == {1}
    assert len(counts) == 9


def test_a_stage_may_open_its_inputs_and_nothing_else_of_the_store(store: LocalStore) -> None:
    secret = add("secret")
    run(plan_of(secret), store)
    path = str(store.read(secret.key) / "number.txt")
    spy = Stage("score", "spy", "toy_stages:snoop", {"path": path})
    failure = run(plan_of(spy), store).summary.failures[spy.key]
    assert failure.error == (
        "AccessDenied: number.txt is not among this stage's inputs; read what the harness hands over"
    )
    honest = Stage("score", "honest", "toy_stages:snoop", {"path": path}, {"given": secret})
    assert run(plan_of(honest), store).summary.count("failed") == 0


def test_what_no_node_can_satisfy_fails_at_once(store: LocalStore) -> None:
    stage = add("greedy")
    summary = run(plan_of(stage), store, classes=ResourceClasses(score=Resources(cpus=99))).summary
    assert "asks for 99 CPU, the largest node has 2 CPU" in summary.failures[stage.key].error


def test_a_stage_that_hangs_is_ended_and_tried_again(store: LocalStore) -> None:
    notes, stage = Notes(), add("slow", fn="hang_once")
    limited = ResourceClasses(score=Resources(limit_minutes=0.02))
    summary = run(plan_of(stage), store, notes, limited).summary
    assert (summary.executed, summary.count("failed")) == (1, 0)
    assert notes.lines == ["slow: took longer than its limit of 0.02 min and was ended, trying again"]


def test_a_stage_that_hangs_for_ever_says_where(store: LocalStore) -> None:
    stage, fine = add("stuck", fn="hang"), add("fine")
    limited = ResourceClasses(score=Resources(limit_minutes=0.02))
    summary = run(plan_of(stage, fine), store, classes=limited).summary
    failure = summary.failures[stage.key]
    assert failure.error == "took longer than its limit of 0.02 min and was ended, 3 times"
    assert "toy_stages.py" in failure.trace
    assert number(store, fine) == 1


def test_a_stage_that_forks_is_committed_once(store: LocalStore) -> None:
    stage = add("forks", fn="fork")
    summary = run(plan_of(stage, add("after", stage)), store).summary
    assert (summary.executed, summary.count("failed")) == (2, 0)
    files = {path.name for path in store.read(stage.key).iterdir()}
    assert {"written-by-parent.txt", "written-by-child.txt", "number.txt"} <= files


def test_longest_remaining_path_goes_first(store: LocalStore) -> None:
    loose = [add(f"loose{i}", value=100 + i) for i in range(4)]
    chain = [add("chain0")]
    for i in range(1, 5):
        chain.append(add(f"chain{i}", chain[-1]))
    execution = run(plan_of(*loose, chain[-1]), store)
    submitted = list(execution.since)  # in order; which of two parallel stages ends first is anybody's guess
    assert submitted[0] == chain[0].key
