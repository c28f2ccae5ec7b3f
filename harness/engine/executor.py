"""Runs a plan on Ray: longest remaining path first, failures as rows, nothing finished ever run again.

The driver only schedules. Stages read and write the store by key, so a worker, a node or the driver may die at
any moment and at most the stages in flight are lost.
"""

from __future__ import annotations

import heapq
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from harness.api import Settings
from harness.engine.history import History
from harness.engine.lease import Leases
from harness.engine.plan import Plan, Stage
from harness.engine.store import CorruptArtifact, Store
from harness.engine.worker import Job, Outcome, one_line, run_job
from harness.problems import Problem, UserError

ATTEMPTS = 3
"""How often a stage is tried when the infrastructure fails under it; its own exception is never retried."""

CONNECT_S = 10.0
"""How long a cluster's address may take to accept a connection."""


class Resources(Settings):
    """What one stage of a class asks for. GPUs count only where the cluster has any."""

    cpus: float = Field(1, gt=0, description="CPU cores; also the number of threads a stage may use")
    gpus: float = Field(0, ge=0, description="GPUs, fractional below 1; ignored where there are none")
    memory_gib: float = Field(0, ge=0, description="memory that must be free to start; 0 = not considered")


class ResourceClasses(Settings):
    """Resource classes of stages; the same YAML serves a laptop and a cluster."""

    prepare: Resources = Resources()
    train: Resources = Resources(gpus=1)
    apply: Resources = Resources(gpus=0.5)
    score: Resources = Resources()


_ASKS = (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))
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
    """What a run did. `failures` by key, blocked stages included."""

    executed: int = 0
    cached: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False
    executed_titles: list[str] = field(default_factory=list)

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

    def look(key: str) -> str | None:
        try:
            store.verify(key)
        except CorruptArtifact as error:
            return error.reason
        except KeyError:
            return "vanished"
        return None

    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        reasons = dict(zip(present, pool.map(look, present), strict=True))
    corrupt = {key: reason for key, reason in reasons.items() if reason}
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
        self._attempts: Counter[str] = Counter()
        self._ready: list[tuple[float, int, str]] = []
        self._order = {stage.key: i for i, stage in enumerate(plan.stages)}
        self._elsewhere: set[str] = set()
        self.running: dict[Any, Stage] = {}
        self.since: dict[str, float] = {}
        self._totals: tuple[float, dict[str, float]] = (-1e9, {})
        roots = {str(stage.local["root"]) for stage in plan.stages if stage.local.get("root")}
        self._protected = tuple(sorted({str(store.root), *roots}))

    # ------------------------------------------------------------------------------------- life of a run

    def run(self) -> Summary:
        """Execute what is missing. Returns after the last stage, or early when interrupted (Ctrl-C)."""
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
            with Leases(self.store.root) as self.leases:
                self._loop()
        self.history.save()
        self.summary.seconds = time.monotonic() - self.started
        self.progress.finish(self)
        return self.summary

    def _loop(self) -> None:
        import ray

        for stage in self.plan.stages:
            self._offer(stage)
        try:
            while self.running or self._ready or self._elsewhere:
                self._submit()
                if self.running:
                    done, _ = ray.wait(list(self.running), num_returns=1, timeout=0.5)
                    for ref in done:
                        self._finish(self.running.pop(ref), self._outcome(ref))
                elif self._elsewhere:
                    time.sleep(0.5)
                self._look_elsewhere()
                self.progress.update(self)
        except KeyboardInterrupt:
            # Workers end with the session. Cancelling their tasks first would race with those that just finish, which
            # has aborted this process from within Ray.
            self.summary.interrupted = True

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
        if self.state[stage.key] == "pending" and all(self.state[n.key] == "done" for n in stage.needs.values()):
            entry = (-self.rest[stage.key], self._order[stage.key], stage.key)
            if entry not in self._ready:
                heapq.heappush(self._ready, entry)

    def _submit(self) -> None:
        postponed = []
        while self._ready:
            entry = heapq.heappop(self._ready)
            stage = self.plan.by_key[entry[2]]
            if self.state[stage.key] != "pending":
                continue
            options = self._options(stage)
            impossible = self._impossible(options)
            if impossible:
                self._fail(stage, Failure(stage.title, "failed", impossible))
                continue
            if not self._fits(options):
                postponed.append(entry)
                if len(postponed) > 8:  # nothing lighter is likely to fit either
                    break
                continue
            if not self.leases.acquire(stage.key):
                self._elsewhere.add(stage.key)
                continue
            if self._committed(stage):  # another run finished it since we looked
                self._adopt(stage)
                continue
            self.state[stage.key] = "running"
            self.since[stage.key] = time.monotonic()
            self.running[_remote().options(**options).remote(self._job(stage, options))] = stage
        for entry in postponed:
            heapq.heappush(self._ready, entry)

    def _options(self, stage: Stage) -> dict[str, Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        wanted: Resources = getattr(self.classes, stage.resources)
        options: dict[str, Any] = {
            "num_cpus": wanted.cpus,
            "max_retries": 0,
            "name": stage.title,
            # Within a trial of a sweep: not from the trial's own share, which is nothing.
            "scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=None),
        }
        if wanted.gpus and self._total("GPU"):
            options["num_gpus"] = wanted.gpus
        if wanted.memory_gib:
            options["memory"] = int(wanted.memory_gib * 2**30)
        return options

    def _fits(self, options: Mapping[str, Any]) -> bool:
        for name, option in _ASKS:
            wanted = options.get(option, 0)
            used = sum(self._options(stage).get(option, 0) for stage in self.running.values()) if wanted else 0
            if wanted and used + wanted > self._total(name) + 1e-9:
                return False
        return True

    def _impossible(self, options: Mapping[str, Any]) -> str:
        """Why the cluster can never run this (Ray itself would wait for ever), or ''."""
        for name, option in _ASKS:
            wanted = options.get(option, 0)
            if wanted > self._total(name):
                return f"asks for {wanted:g} {name}, the cluster has {self._total(name):g}; see resources in the YAML"
        return ""

    def _total(self, name: str) -> float:
        import ray

        if time.monotonic() - self._totals[0] > 5:  # an autoscaled cluster grows
            self._totals = (time.monotonic(), ray.cluster_resources())
        return float(self._totals[1].get(name, 0.0))

    def workers(self) -> float:
        """How many one-CPU stages the cluster runs at a time, as far as known."""
        return max(1.0, self._totals[1].get("CPU", float(os.cpu_count() or 1)))

    def _job(self, stage: Stage, options: Mapping[str, Any]) -> Job:
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
            cuda=bool(options.get("num_gpus")),
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
            self._attempts[stage.key] += 1
            what = f"{type(outcome).__name__} (worker lost)"
            if self._attempts[stage.key] < ATTEMPTS:
                self.progress.note(f"{stage.title}: {what}, trying again", bad=True)
                self.state[stage.key] = "pending"
                self._offer(stage)
            else:
                self._fail(stage, Failure(stage.title, "failed", f"{what} {ATTEMPTS} times", str(outcome)))
        elif outcome.ok:
            self.history.add(stage, outcome.seconds)
            self.summary.executed += 1
            self.summary.executed_titles.append(stage.title)
            self._done(stage)
        elif outcome.corrupt:
            self._redo_input(stage, outcome)
        else:
            self._fail(stage, Failure(stage.title, "failed", outcome.error, outcome.trace))

    def _done(self, stage: Stage) -> None:
        self.state[stage.key] = "done"
        for dependant in self.plan.dependants[stage.key]:
            self._offer(dependant)

    def _redo_input(self, stage: Stage, outcome: Outcome) -> None:
        """An input was missing or corrupt on read: set it aside and make it again, then this stage."""
        producer = self.plan.by_key[outcome.corrupt]
        self._attempts[producer.key] += 1
        self.state[stage.key] = "pending"
        if self._attempts[producer.key] >= ATTEMPTS:
            self._fail(producer, Failure(producer.title, "failed", f"its artifact {outcome.error} again and again"))
            return
        self.progress.note(f"corrupt, set aside: {producer.title} ({outcome.error}); making it again", bad=True)
        self.store.set_aside(producer.key, outcome.error)
        self._demand(producer)

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
        self.summary.failures[stage.key] = failure
        self.store.note_failure(stage.key, {"title": failure.title, "error": failure.error, "trace": failure.trace})
        self.progress.note(f"failed: {stage.title}: {failure.error}", bad=True)
        stack = list(self.plan.dependants[stage.key])
        while stack:
            dependant = stack.pop()
            if self.state[dependant.key] == "pending":
                self.state[dependant.key] = "blocked"
                blocked = Failure(dependant.title, "blocked", f"needs {stage.title}, which failed: {failure.error}")
                self.summary.failures[dependant.key] = blocked
                stack.extend(self.plan.dependants[dependant.key])

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


_REMOTE: list[Any] = []


def _remote() -> Any:
    """`run_job` as a Ray function, made once Ray is there."""
    if not _REMOTE:
        import ray

        _REMOTE.append(ray.remote(run_job))
    return _REMOTE[0]


@contextmanager
def cluster(workers: int | None = None, address: str | None = None) -> Iterator[None]:
    """A Ray session: a local one with `workers` CPUs, or the cluster at `address`.

    An already initialised session of this process is used as it is and left running. Raises UserError if the
    cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # other users of this machine must not submit to our session; a cluster has its own rule
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A stage that asked for no GPU must see none, whatever the node has.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    _REMOTE.clear()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if address is None:
        options |= {
            "num_cpus": workers or os.cpu_count() or 1,
            "include_dashboard": False,
            "object_store_memory": 256 * 2**20,
        }
    else:
        options["address"] = address
    try:
        if address is not None:
            _listening(address)
        ray.init(**options)
    except Exception as error:  # Ray raises what it likes: no cluster, no client, another version, no token
        if address is None:
            raise
        what = f"no Ray cluster can be reached ({one_line(error)}); start one with `ray start --head`, or leave it out"
        raise UserError(Problem(f"--address {address}", what)) from None
    try:
        yield
    finally:
        ray.shutdown()
        _REMOTE.clear()


def _listening(address: str) -> None:
    """Raises OSError where nothing answers at HOST:PORT; Ray itself would try for minutes. Other forms are Ray's."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            pass
