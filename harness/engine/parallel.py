"""One stage on several workers that train its model together, through Ray Train.

Every worker runs the whole stage function, so methods know nothing of it: `harness.training` finds the other ranks and
averages gradients over them, and all else in a stage follows from its seed. Rank 0 keeps checkpoints, writes the
artifact and commits it; what the others write is thrown away. Used for stages of several workers only: starting a group
takes many seconds.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import distributed
from harness.engine.worker import FULL, Job, Outcome, one_line, run_here
from harness.quiet import quietly

RESTARTS = 2
"""How often the group starts again after it lost a worker, to go on from the last checkpoint."""
SILENCE_S = 4 * 3600
"""How long ranks wait for each other, as for rank 0's validation; a rank that died is noticed much sooner."""
QUEUE_S, QUEUES = 3600, 24
"""How long a group waits for room in the cluster at a time, and how many times."""
MARKS = 2**24
"""Each group asks for less than twice this many bytes that it has no use for: see `_mark`."""
UNUSED = {
    "DatasetsCallback",  # a process for Ray's data sets, which are none here
    "PlacementGroupCleanerCallback",  # asks the dashboard, and never ends where there is none; `free` needs neither
}
"""Helpers of Ray Train that a group starts without, where it has them by these names."""


class GroupLost(Exception):
    """A group lost workers more often than it may start again. Not the stage's fault."""


def run(job: Job) -> Outcome:
    """Run one stage on `job.workers` workers to its commit. Takes nothing of the cluster but what these take.

    Raises GroupLost when the infrastructure fails under it again and again.
    """
    import ray

    free(job.store, job.key)
    with _quiet(), _own_interrupt(), tempfile.TemporaryDirectory(prefix="harness-") as folder:
        from ray import train

        # One attempt, one folder: Ray Train would resume what it finds. It stays empty, checkpoints being in the store.
        settings = train.RunConfig(
            name="group",
            storage_path=folder,
            failure_config=train.FailureConfig(
                max_failures=0 if job.limit_s else RESTARTS, controller_failure_limit=QUEUES
            ),
        )
        try:
            result = _trainer(job, settings).fit()
        except (train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise GroupLost(_reason(error)) from None
    return Outcome(**result.return_value)


def free(store: str, key: str) -> None:
    """Give back what a group of this stage still holds after the process that started it died.

    Ray itself would reserve it until the end of the session. Harmless where there is nothing.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group_table, remove_placement_group

    session, mark = ray.get_runtime_context().get_job_id(), _mark(store, key)
    for name, group in placement_group_table().items():
        marks = {int(bundle.get("memory", 0)) % MARKS for bundle in group["bundles"].values()}
        if name.endswith(session) and mark in marks and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def _mark(store: str, key: str) -> int:
    """The odd bytes in what a stage's workers ask for, by which their group is told from others: it bears no name."""
    return int.from_bytes(hashlib.sha256(f"{store} {key}".encode()).digest()[:3], "big")


def _each(job: Job) -> dict[str, float]:
    """What each worker asks Ray for."""
    whole = (int(job.memory) // MARKS + 1) * MARKS
    each = {"CPU": job.cpus, "memory": whole + _mark(job.store, job.key)}
    return {**each, "GPU": job.gpus} if job.gpus else each


def _trainer(job: Job, settings: Any) -> Any:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if type(each).__name__ not in UNUSED]

    # NCCL has no collectives between ranks on one GPU, nor of CPU tensors; gloo has both.
    backend = "cpu:gloo,cuda:nccl" if job.gpus >= 1 else "gloo"
    return Trainer(
        _rank,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend=backend, timeout_s=SILENCE_S),
        scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=bool(job.gpus), resources_per_worker=_each(job)),
        run_config=settings,
    )


def _rank(config: Mapping[str, Any]) -> dict[str, Any]:
    """What each worker runs. Rank 0's answer becomes the stage's: an Outcome in plain values."""
    job: Job = config["job"]
    group = distributed.group()
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        try:
            outcome = run_here(job, group, None if group.leads else Path(folder))
        except OSError as error:
            if error.errno not in FULL:
                raise
            outcome = Outcome(ok=False, full=True, error=one_line(error))
        everyone = group.settle(outcome.ok, asdict(outcome))
    failed = [each for each in everyone if not each["ok"]]
    # A rank that was abandoned says nothing of why.
    return next(
        (each for each in failed if not each["error"].startswith(distributed.Abandoned.__name__)),
        (failed or everyone)[0],
    )


def _reason(error: Exception) -> str:
    """In one line: which workers failed, and of what."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", None) or {}
    return "; ".join(f"worker {rank}: {one_line(each)}" for rank, each in sorted(failures.items())) or one_line(error)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """This process's own answer to an interrupt, afterwards: Ray Train puts another in its place, and leaves it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _quiet() -> AbstractContextManager[None]:
    """Ray Train without loggers, metrics, or changes of folder; and quicker to notice that a group is done."""
    environment = {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(QUEUE_S),
    }
    return quietly("ray.train", environment, ("ray.train", "ray.tune", "ray.air", "ray.data"), logging.CRITICAL)
