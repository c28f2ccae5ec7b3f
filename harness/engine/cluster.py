"""A Ray session for a run: a local one, or a cluster that is there already."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.engine import shipping
from harness.engine.resources import Capacity
from harness.engine.worker import one_line
from harness.problems import Problem, UserError

CONNECT_S = 10.0
"""How long a cluster's address may take to accept a connection."""
CLIENT_TRIES = 3
"""How often a cluster is asked for the process that serves a ray:// client; Ray takes half a minute to say no."""
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the launcher's file on the head node."""


@contextmanager
def cluster(workers: int | None = None, address: str | None = None, packages: Iterable[str] = ()) -> Iterator[None]:
    """A Ray session: a local one with `workers` CPUs, or the cluster at `address`.

    address: "auto", HOST:PORT, or ray://HOST:PORT. packages: names of the packages that are sent to the nodes of a
    cluster. An already initialised session of this process is used as it is and left running. Raises UserError if the
    cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # other users of this machine must not submit to our session; a cluster has its own rule
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Within `ray job submit` both the job and this driver say what workers get: both count.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    for name, value in shipping.FOR_WORKERS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    # What Ray itself says of dead workers goes to stdout, pages long; the executor says it in a line.
    ray._private.worker._worker_logs_enabled = False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if address is None:
        options |= {
            "address": "local",  # not one that somebody else has started on this machine
            "num_cpus": workers or os.cpu_count() or 1,
            "include_dashboard": False,
            "object_store_memory": 256 * 2**20,
        }
    else:
        options |= {"address": address, "runtime_env": shipping.runtime_env(packages)}
    try:
        if address is not None:
            _listening(address)
        _connect(options)
    except Exception as error:  # Ray raises what it likes: no cluster, no client, another version, no token
        if address is None:
            raise
        raise UserError(Problem(f"--address {address}", _refusal(address, error))) from None
    try:
        yield
    finally:
        ray.shutdown()


def _connect(options: Mapping[str, Any]) -> None:
    """`ray.init`, which for ray:// has the head node start a process for this client. That process may die at once.

    Ray's proxy there forks while its threads are at work, which a busy machine turns into a crash now and then; the
    next try is a new process. What the nodes cannot provide fails the same way again and is told at once.
    """
    import ray

    for tries_left in reversed(range(CLIENT_TRIES)):
        try:
            ray.init(**options)
            return
        except ConnectionAbortedError as error:
            if not tries_left or "runtime_env" in str(error):
                raise


def _refusal(address: str, error: Exception) -> str:
    text = one_line(error)
    lines = str(error).strip().splitlines()
    if text.endswith(":") and len(lines) > 1:  # Ray's client quotes the server's traceback: its last line is the cause
        text += f" {lines[-1].strip()}"
    if address.startswith("ray://") and isinstance(error, ImportError):
        return f"ray:// needs Ray's client ({text}); pip install 'mri-harness[cluster]'"
    return f"no Ray cluster can be reached ({text}); start one with `ray start --head`, or leave it out"


def _listening(address: str) -> None:
    """Raises OSError where nothing answers at HOST:PORT; Ray itself would try for minutes. Other forms are Ray's."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            pass


# ------------------------------------------------------------------------------------------- what there is


def capacity() -> Capacity:
    """Resources of the session's nodes, and of those that its autoscaler may add. None at all: the session is lost."""
    import ray

    if _dead():
        return Capacity()
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except (ConnectionError, RuntimeError, ray.exceptions.RayError):
        nodes = []
    return Capacity(tuple(node["Resources"] for node in nodes), _coming())


def _dead() -> bool:
    """Whether a process of the local session's own has died. Asking Ray would then end this process after a minute."""
    import ray

    with suppress(AttributeError):  # private to Ray
        node = ray._private.worker._global_node
        return node is not None and bool(node.dead_processes())
    return False


def _coming() -> tuple[tuple[Mapping[str, float], int], ...]:
    """Kinds of nodes that may still be added, as the autoscaler was told. Empty without an autoscaler."""
    groups = _groups_of_autoscaler() or _groups_of_launcher()
    return tuple((resources, count) for resources, count in groups if count > 0 and resources)


def _groups_of_autoscaler() -> list[tuple[dict[str, float], int]]:
    with suppress(Exception):  # private to Ray: where it is another or missing, only present nodes count
        from ray._private.state import state

        config = state.get_cluster_config()
        if config is not None:
            return [(dict(group.resources), int(group.max_count)) for group in config.node_group_configs]
    return []


def _groups_of_launcher() -> list[tuple[dict[str, float], int]]:
    import ray
    import yaml

    path = BOOTSTRAP.expanduser()
    if not path.is_file() or ray.util.client.ray.is_connected():
        return []
    with suppress(OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        text = yaml.safe_load(path.read_text())
        head, most = text.get("head_node_type"), int(text.get("max_workers", 2))
        return [
            ({key: float(amount) for key, amount in (kind.get("resources") or {}).items()}, _count(kind, most))
            for name, kind in (text.get("available_node_types") or {}).items()
            if name != head
        ]
    return []


def _count(kind: Mapping[str, Any], most: int) -> int:
    return min(most, int(kind.get("max_workers", kind.get("min_workers", 0))))


# ------------------------------------------------------------------------------------------- the store, seen from nodes


def check_store(url: str, root: Path) -> None:
    """See that every node reaches the store the driver writes to. Raises UserError naming those that do not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = root / "runs" / f"seen-from-{socket.gethostname()}-{os.getpid()}"
    remote = "://" in url
    if not remote:
        marker.touch()
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        asked = [
            (
                node["NodeManagerHostname"],
                look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                    url, None if remote else str(marker)
                ),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        blind = []
        for host, ref in asked:
            try:
                trouble = ray.get(ref, timeout=120)
            except ray.exceptions.RayError as error:
                trouble = one_line(error)
            if trouble:
                blind.append(f"{host} ({trouble})")
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        what = "is not seen by every node; put it on a shared path or on object storage with --store. Blind: "
        raise UserError(Problem(url, what + ", ".join(blind)))


def _sees(url: str, marker: str | None) -> str:
    """Runs on a node: why the store cannot be used there, or ''."""
    from harness.engine.store import open_store
    from harness.problems import UserError

    if marker is not None:
        return "" if os.path.exists(marker) else "no such folder there"
    try:
        open_store(url)
    except UserError as error:
        return str(error)
    return ""
