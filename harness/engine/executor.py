"""Runs a plan on Ray: longest remaining path first, failures as rows, nothing finished ever run again.

The driver only schedules. Stages read and write the store by key, so a worker, a node or the driver may die at
any moment and at most the stages in flight are lost.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.engine import parallel
from harness.engine.cluster import capacity, cluster
from harness.engine.history import History
from harness.engine.lease import Leases
from harness.engine.plan import Plan, Stage
from harness.engine.resources import Ask, Capacity, ResourceClasses, Resources, Usage
from harness.engine.store import CorruptArtifact, Store
from harness.engine.worker import FULL, Job, Outcome, run_job

__all__ = ["Execution", "Failure", "Progress", "ResourceClasses", "Resources", "Summary", "cluster", "survey", "to_do"]

ATTEMPTS = 3
"""How often a stage is tried when the infrastructure fails under it; its own exception is never retried."""

PATIENCE_S = 60.0
"""How long a stage waits for a node that could run it, once the last such node is gone."""

State = Literal["idle", "done", "pending", "running", "failed", "blocked"]


@dataclass(frozen=True)
class Failure:
    """Why a stage has no artifact: its own error, or the input that blocks it."""

    title: str
    status: Literal["failed", "blocked"]
    error: str
    trace: str = ""


@dataclass
class Summary:
    """What a run did. `failures` by key, blocked stages included. `stopped`: why it ended early (a full disk)."""

    executed: int = 0
    cached: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""
    executed_titles: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the run came to its end, with whatever failures."""
        return not (self.interrupted or self.stopped)

    def count(self, status: str) -> int:
        return sum(failure.status == status for failure in self.failures.values())


class Progress:
    """What an executor tells the outside; the CLI shows it. This base class is silent."""

    def start(self, run: Execution) -> None: ...
    def update(self, run: Execution) -> None: ...
    def finish(self, run: Execution) -> None: ...
    def note(self, text: str, *, bad: bool = False) -> None: ...


def survey(plan: Plan, store: Store, *, repair: bool = False) -> tuple[set[str], dict[str, str]]:
    """Keys of the plan that the store holds whole, and the corrupt ones with their reasons.

    Every checksum is verified, in parallel. With `repair` corrupt artifacts are set aside.
    """
    present = list(store.keys() & plan.by_key.keys())
    corrupt: dict[str, str] = {}

    def look(keys: list[str]) -> None:
        for key in keys:
            try:
                store.verify(key)
            except CorruptArtifact as error:
                corrupt[key] = error.reason
            except KeyError:
                corrupt[key] = "vanished"

    count = min(16, 4 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(look, [present[i::count] for i in range(count)]))
    store.remember()
    if repair:
        for key, reason in corrupt.items():
            store.set_aside(key, reason)
    return set(present) - corrupt.keys(), corrupt


def to_do(plan: Plan, whole: set[str], corrupt: Iterable[str] = ()) -> list[Stage]:
    """Stages that must run: not in the store and a missing result depends on them, or found corrupt.

    In plan order.
    """
    needed: set[str] = set()
    stack = [stage for cell in plan.cells for stage in cell.finals.values()]
    stack += [stage for stage in plan.stages if not plan.dependants[stage.key]]
    stack += [plan.by_key[key] for key in corrupt]
    while stack:
        stage = stack.pop()
        if stage.key not in needed and stage.key not in whole:
            needed.add(stage.key)
            stack.extend(stage.needs.values())
    return [stage for stage in plan.stages if stage.key in needed]


class Execution:
    """One run of a plan: the state of every stage, and the loop that moves them."""

    def __init__(self, plan: Plan, store: Store, classes: ResourceClasses, progress: Progress | None = None):
        self.plan, self.store, self.classes = plan, store, classes
        self.progress = progress or Progress()
        self.history = History(store.root)
        self.state: dict[str, State] = {stage.key: "idle" for stage in plan.stages}
        self.summary = Summary()
        self.started = time.monotonic()
        self.running: dict[Any, Stage] = {}
        self.since: dict[str, float] = {}
        self.capacity = Capacity()
        self._looked = -1e9
        self._asks: dict[tuple[str, int], tuple[Ask, str]] = {}
        self._usage = Usage()
        self._attempts: Counter[str] = Counter()
        self._alone: set[str] = set()
        self._ready: dict[tuple[str, int], list[tuple[float, int, str]]] = {}
        self._queued: set[str] = set()
        self._order = {stage.key: i for i, stage in enumerate(plan.stages)}
        self._elsewhere: set[str] = set()
        self._homeless: dict[str, float] = {}
        self._made: dict[str, float] = {}
        self._remotes: dict[bool, Any] = {}
        roots = {str(stage.local["root"]) for stage in plan.stages if stage.local.get("root")}
        self._protected = tuple(sorted({str(store.root), *roots}))

    # ------------------------------------------------------------------------------------- life of a run

    def run(self) -> Summary:
        """Execute what is missing. Returns after the last stage, or early when interrupted (Ctrl-C) or stopped."""
        whole, corrupt = survey(self.plan, self.store, repair=True)
        for key, reason in corrupt.items():
            self.progress.note(f"corrupt, set aside: {self.plan.by_key[key].title} ({reason})", bad=True)
        wanted = to_do(self.plan, whole, corrupt)
        self.summary.cached = len(whole)
        for key in whole:
            self.state[key] = "done"
        for stage in wanted:
            self.state[stage.key] = "pending"
        self._rank()
        self.progress.start(self)
        if wanted:
            with Leases(self.store.root, self.store.desk()) as self.leases:
                self._loop()
        self.history.save()
        self.summary.seconds = time.monotonic() - self.started
        self.progress.finish(self)
        return self.summary

    def _loop(self) -> None:
        for stage in self.plan.stages:
            self._offer(stage)
        try:
            while self.running or (not self.summary.stopped and (self._queued or self._elsewhere)):
                try:
                    self._turn()
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    self._stop_full()
                self.progress.update(self)
        except KeyboardInterrupt:
            # Workers end with the session. Cancelling their tasks first would race with those that just finish, which
            # has aborted this process from within Ray.
            self.summary.interrupted = True

    def _turn(self) -> None:
        """Submit what can run, wait a moment, take what has ended."""
        import ray

        self._look_around()
        if not self.summary.stopped:
            self._submit()
        if self.running:
            done, _ = ray.wait(list(self.running), num_returns=1, timeout=0.5)
            for ref in done:
                stage = self.running.pop(ref)
                self._usage.give_back(self._ask(stage))
                self._finish(stage, self._outcome(ref))
        elif self._elsewhere:
            time.sleep(0.5)
        self._look_elsewhere()

    def _stop_full(self) -> None:
        """No room left: what runs may end, nothing new starts, and nothing counts as the stages' own failure."""
        if not self.summary.stopped:
            where = "a disk" if "://" in self.store.url else self.store.url
            self.summary.stopped = f"no space left on the disk of {where}; make room, then run the same command again"
            self.progress.note(self.summary.stopped, bad=True)

    def _stop_lost(self) -> None:
        """Ray is gone with all its workers: nothing runs any more, and nothing can be submitted."""
        self.running.clear()
        if not self.summary.stopped:
            self.summary.stopped = "the Ray session was lost; what is finished is kept: run the same command again"
            self.progress.note(self.summary.stopped, bad=True)

    # ------------------------------------------------------------------------------------- scheduling

    def _rank(self) -> None:
        """Priority of each stage: seconds of the longest path from it to a final result."""
        self.rest: dict[str, float] = {}
        for stage in reversed(self.plan.stages):
            after = [
                self.rest[d.key] for d in self.plan.dependants[stage.key] if self.state[d.key] in ("pending", "running")
            ]
            self.rest[stage.key] = self.history.estimate(stage) + max(after, default=0.0)

    def _offer(self, stage: Stage) -> None:
        if (
            stage.key not in self._queued
            and self.state[stage.key] == "pending"
            and all(self.state[n.key] == "done" for n in stage.needs.values())
        ):
            self._queued.add(stage.key)
            heap = self._ready.setdefault((stage.resources, stage.workers), [])
            heapq.heappush(heap, (-self.rest[stage.key], self._order[stage.key], stage.key))

    def _submit(self) -> None:
        """Start what is ready and fits, most urgent first; of a class that does not fit now, nothing."""
        tight: set[tuple[str, int]] = set()
        while heads := [(heap[0], kind) for kind, heap in self._ready.items() if heap and kind not in tight]:
            entry, kind = min(heads)
            stage = self.plan.by_key[entry[2]]
            if self.state[stage.key] == "pending" and not self._may_start(stage):
                tight.add(kind)
                continue
            heapq.heappop(self._ready[kind])
            self._queued.discard(stage.key)
            if self.state[stage.key] == "pending":
                self._start(stage)

    def _may_start(self, stage: Stage) -> bool:
        if self._alone:  # what ran out of memory gets all of it, before anything else starts
            running = {other.key for other in self.running.values()}
            if running & self._alone or (self._alone & self._queued and (stage.key not in self._alone or running)):
                return False
        return bool(self._impossible(stage)) or self._usage.fits(self._ask(stage), self.capacity)

    def _start(self, stage: Stage) -> None:
        ask, impossible = self._ask(stage), self._impossible(stage)
        if impossible:
            self._fail(stage, Failure(stage.title, "failed", impossible))
        elif not self.leases.acquire(stage.key):
            self._elsewhere.add(stage.key)
        elif self.store.has(stage.key):  # another run finished it since we looked
            self._adopt(stage)
        else:
            self.state[stage.key] = "running"
            self.since[stage.key] = time.monotonic()
            self.running[self._remote(stage, ask)] = stage
            self._usage.take(ask)

    def _ask(self, stage: Stage) -> Ask:
        """What the stage asks for, in a cluster such as it is now."""
        return self._weighed(stage)[0]

    def _impossible(self, stage: Stage) -> str:
        """Why no node can ever run it, or ''."""
        return self._weighed(stage)[1]

    def _weighed(self, stage: Stage) -> tuple[Ask, str]:
        kind = (stage.resources, stage.workers)
        if kind not in self._asks:
            wanted: Resources = getattr(self.classes, stage.resources)
            ask = self.capacity.ask(wanted, workers=stage.workers)
            self._asks[kind] = ask, self.capacity.impossible(ask)
        return self._asks[kind]

    def _remote(self, stage: Stage, ask: Ask) -> Any:
        """Submit a stage; the reference to its outcome."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpu = "GPU" in ask.each and ask.workers == 1
        if gpu not in self._remotes:
            # A process that has started CUDA keeps the GPU it was given first: one process for each stage on a GPU.
            self._remotes[gpu] = ray.remote(num_gpus=1, max_calls=1)(run_job) if gpu else ray.remote(run_job)
        options = {
            **ask.options(),
            "max_retries": 0,
            "name": stage.title,
            # Within a trial of a sweep: not from the trial's own share, which is nothing.
            "scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=None),
        }
        return self._remotes[gpu].options(**options).remote(self._job(stage, ask))

    def _look_around(self) -> None:
        """Every few seconds: what the cluster has by now, and what it can no longer run."""
        now = time.monotonic()
        if now - self._looked < 5:
            return
        self._looked, before = now, self.capacity
        self.capacity = capacity()
        here, were = len(self.capacity.nodes), len(before.nodes)
        if not here:
            self._stop_lost()
        elif here < were:
            self.progress.note(f"a node was lost, {here} of {were} are left; what ran there is tried again", bad=True)
        if self.capacity == before or self.summary.stopped:
            return
        if self.running:  # what is in flight gives back what it took
            self._usage = Usage()
        self._asks.clear()
        for stage in self.running.values():
            self._usage.take(self._ask(stage))
        self._evict(now)

    def _evict(self, now: float) -> None:
        """Give up stages that wait within Ray for a node that is gone and has not come back; Ray would for ever."""
        import ray

        for ref, stage in list(self.running.items()):
            why = self._impossible(stage)
            since = self._homeless.setdefault(stage.key, now) if why else now
            if not why:
                self._homeless.pop(stage.key, None)
            elif now - since > PATIENCE_S:
                self._usage.give_back(self._ask(self.running.pop(ref)))
                ray.cancel(ref, force=True)
                if stage.workers > 1:
                    parallel.free(self.store.url, stage.key)
                self.leases.release(stage.key)
                self._fail(stage, Failure(stage.title, "failed", why))

    def workers(self) -> float:
        """How many one-CPU stages the cluster runs at a time, as far as known."""
        return max(1.0, self.capacity.total("CPU") or float(os.cpu_count() or 1))

    def _job(self, stage: Stage, ask: Ask) -> Job:
        wanted: Resources = getattr(self.classes, stage.resources)
        return Job(
            key=stage.key,
            kind=stage.kind,
            title=stage.title,
            fn=stage.fn,
            params=dict(stage.params),
            inputs={name: need.key for name, need in stage.needs.items()},
            code=stage.code,
            components=stage.components,
            seed=stage.seed or 0,
            local=dict(stage.local),
            store=self.store.url,
            run=self.leases.run,
            workers=ask.workers,
            cpus=ask.each["CPU"],
            gpus=ask.each.get("GPU", 0.0),
            memory=ask.each.get("memory", 0.0),
            limit_s=60 * wanted.limit_minutes if wanted.limit_minutes else None,
            # a preparing stage reads raw data; every other stage only its inputs
            protected=tuple(p for p in self._protected if p != str(stage.local.get("root"))),
        )

    # ------------------------------------------------------------------------------------- results

    def _outcome(self, ref: Any) -> Outcome | Exception:
        import ray

        try:
            outcome: Outcome = ray.get(ref)
        except ray.exceptions.RayError as error:
            return error
        return outcome

    def _finish(self, stage: Stage, outcome: Outcome | Exception) -> None:
        self.leases.release(stage.key)
        if isinstance(outcome, Exception):
            self._lost(stage, outcome)
        elif outcome.ok:
            self.history.add(stage, outcome.seconds)
            self.summary.executed += 1
            self.summary.executed_titles.append(stage.title)
            self._done(stage)
        elif outcome.full:
            self.state[stage.key] = "pending"
            self._stop_full()
        elif outcome.corrupt:
            self._redo_input(stage, outcome)
        else:
            self._fail(stage, Failure(stage.title, "failed", outcome.error, outcome.trace))

    def _lost(self, stage: Stage, error: Exception) -> None:
        """The infrastructure failed under a stage: try it again, a few times."""
        if type(error).__name__ == "LocalRayletDiedError":
            self.state[stage.key] = "pending"
            self._stop_lost()
            return
        if stage.workers > 1:
            parallel.free(self.store.url, stage.key)
        self._attempts[stage.key] += 1
        self._looked = -1e9  # a node may have gone with it
        what, trace = self._what_happened(stage, error)
        if self._attempts[stage.key] < ATTEMPTS:
            again = "trying again"
            if type(error).__name__ == "OutOfMemoryError":
                self._alone.add(stage.key)
                again = "trying again with nothing beside it"
            self.progress.note(f"{stage.title}: {what}, {again}", bad=True)
            self.state[stage.key] = "pending"
            self._offer(stage)
        else:
            self._fail(stage, Failure(stage.title, "failed", f"{what}, {ATTEMPTS} times", trace))

    def _what_happened(self, stage: Stage, error: Exception) -> tuple[str, str]:
        """In words, and what is known of the place where it happened."""
        limit = getattr(self.classes, stage.resources).limit_minutes
        if limit and time.monotonic() - self.since[stage.key] >= 60 * limit:
            return f"took longer than its limit of {limit:g} min and was ended", self.store.last_words(stage.key)
        if isinstance(error, parallel.GroupLost):
            return f"its workers were lost ({getattr(error, 'cause', error)})", str(error)
        names = {
            "WorkerCrashedError": "its worker died",
            "OutOfMemoryError": "out of memory, its worker was killed",
            "NodeDiedError": "its node was lost",
        }
        name = type(error).__name__
        return f"{names[name]} ({name})" if name in names else f"worker lost ({name})", str(error)

    def _done(self, stage: Stage) -> None:
        self.state[stage.key] = "done"
        self._made[stage.key] = time.monotonic()
        self._alone.discard(stage.key)
        for dependant in self.plan.dependants[stage.key]:
            self._offer(dependant)

    def _redo_input(self, stage: Stage, outcome: Outcome) -> None:
        """An input was missing or corrupt on read: set it aside and make it again, then this stage."""
        producer = self.plan.by_key[outcome.corrupt]
        self.state[stage.key] = "pending"
        if self.state[producer.key] in ("pending", "running"):
            return  # another stage found out before, and this one waits for it like that one
        if self.state[producer.key] != "done":
            self._block(stage, producer, self.summary.failures[producer.key].error)
            return
        if self._made.get(producer.key, -1e9) > self.since[stage.key]:  # made anew since this stage looked
            self._offer(stage)
            return
        self._attempts[producer.key] += 1
        reason = self._wrong_with(producer.key)
        if not reason:  # whole from here: the worker's node looks at another folder, or lost its way to this one
            what = f"a worker on {outcome.host} found that {producer.title} {outcome.error}, but it is whole"
            if self._attempts[producer.key] >= ATTEMPTS:
                self._fail(stage, Failure(stage.title, "failed", f"{what}; is the store on a path that nodes share?"))
            else:
                self.progress.note(f"{stage.title}: {what}; trying again", bad=True)
                self._offer(stage)
        elif self._attempts[producer.key] >= ATTEMPTS:
            self._fail(producer, Failure(producer.title, "failed", f"its artifact {outcome.error} again and again"))
        else:
            self.progress.note(f"corrupt, set aside: {producer.title} ({reason}); making it again", bad=True)
            self.store.set_aside(producer.key, reason)
            self._demand(producer)

    def _wrong_with(self, key: str) -> str:
        """What is wrong with an artifact, read afresh from here; '' if nothing is."""
        try:
            self.store.forget(key)
            self.store.verify(key)
        except CorruptArtifact as error:
            return error.reason
        except KeyError:
            return "is missing"
        return ""

    def _demand(self, stage: Stage) -> None:
        if self.state[stage.key] in ("running", "pending"):
            return
        self.state[stage.key] = "pending"
        for need in stage.needs.values():
            if self.state[need.key] != "done" or not self._committed(need):
                self._demand(need)
        self._offer(stage)

    def _fail(self, stage: Stage, failure: Failure) -> None:
        self.state[stage.key] = "failed"
        self._alone.discard(stage.key)
        self.summary.failures[stage.key] = failure
        self.progress.note(f"failed: {stage.title}: {failure.error}", bad=True)
        for dependant in self.plan.dependants[stage.key]:
            self._block(dependant, stage, failure.error)
        self.store.note_failure(stage.key, {"title": failure.title, "error": failure.error, "trace": failure.trace})

    def _block(self, stage: Stage, failed: Stage, error: str) -> None:
        """The stage, and all that wait for it, will not run."""
        stack = [stage]
        while stack:
            waiting = stack.pop()
            if self.state[waiting.key] == "pending":
                self.state[waiting.key] = "blocked"
                why = f"needs {failed.title}, which failed: {error}"
                self.summary.failures[waiting.key] = Failure(waiting.title, "blocked", why)
                stack.extend(self.plan.dependants[waiting.key])

    # ------------------------------------------------------------------------------------- other runs

    def _committed(self, stage: Stage) -> bool:
        try:
            return self.store.manifest(stage.key) is not None
        except CorruptArtifact as error:
            self.store.set_aside(stage.key, error.reason)
            return False

    def _adopt(self, stage: Stage) -> None:
        self.leases.release(stage.key)
        self.summary.cached += 1
        self._done(stage)

    def _look_elsewhere(self) -> None:
        """Stages that another run computes: adopt what it committed, take over what it dropped."""
        for key in list(self._elsewhere):
            stage = self.plan.by_key[key]
            if self._committed(stage):
                self._elsewhere.discard(key)
                self._adopt(stage)
            elif self.leases.acquire(key):
                self.leases.release(key)
                self._elsewhere.discard(key)
                self._offer(stage)
