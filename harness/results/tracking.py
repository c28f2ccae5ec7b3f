"""MLflow as a projection of results folders: made after the run, remade at any time, never in the way of one.

An experiment per benchmark, in it
    kind=invocation   one run per `harness run`: counts, report, figures
    kind=cell         its children, one per method × source: fields, means, a metric per target, curves
    kind=leaderboard  one run per method, replaced at each projection: sorted by a metric, they are the leaderboard

A mean over fewer cells than expected is logged as `partial/METRIC`, so that it sorts with the rows without a value.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.engine.store import write_atomically
from harness.quiet import quietly
from harness.results.connection import censored, check_uri, experiment_id, shown, sqlite_path

__all__ = ["Projection", "check_uri", "experiment_id", "is_synced", "leaderboard_url", "pending", "project", "shown"]

LAYOUT = 3
"""Of what a projection writes. Raised when that changes, so that folders projected before are projected anew."""

UNSYNCED = "unsynced"
SYNCED = "synced.json"
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Projection:
    """What a projection did. `uri` is without secrets; `warning` is one line, empty if all went well.

    written: new MLflow runs. kept: those that were there and said the same.
    """

    uri: str
    experiment_id: str = ""
    written: int = 0
    kept: int = 0
    warning: str = ""

    @property
    def ok(self) -> bool:
        return not self.warning


def project(folder: Path, tracking_uri: str) -> Projection:
    """Bring MLflow to what a results folder says. Repeating it changes nothing.

    Never raises for what MLflow, its server or the folder may do wrong: the outcome carries a warning, and the folder
    stays marked for `pending`, as it does where this is killed half-way.
    """
    mark, name = folder / UNSYNCED, shown(tracking_uri)
    try:
        # Marked first and cleared last: a kill in between leaves the mark.
        write_atomically(mark, json.dumps({"uri": name, "since": time.time()}))
        trouble = check_uri(tracking_uri)
        if trouble:
            return Projection(name, warning=f"not logged to MLflow: {trouble}; `harness sync` catches up")
        # Read before anything is logged: whatever is newer than this is not synced.
        state = _fingerprint(folder)
        with _quiet(), _alone(tracking_uri):
            from harness.results.mlflow_runs import Sync

            outcome = Sync.open(folder, tracking_uri).run()
        write_atomically(folder / SYNCED, json.dumps({"uri": name, "state": state}))
        mark.unlink(missing_ok=True)
    except Exception as error:
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
        what = f"not logged to MLflow at {name}: {censored(line, tracking_uri)[:300]}; `harness sync` catches up"
        return Projection(name, warning=what)
    return Projection(name, outcome.experiment_id, outcome.written, outcome.kept)


def is_synced(folder: Path, tracking_uri: str) -> bool:
    """Whether the last projection of this folder went to this URI and nothing in the folder changed since."""
    try:
        done = json.loads((folder / SYNCED).read_text())
    except (OSError, ValueError):
        return False
    return not (folder / UNSYNCED).exists() and done == {"uri": shown(tracking_uri), "state": _fingerprint(folder)}


def pending(home: Path, tracking_uri: str) -> list[Path]:
    """Results folders that are not in this MLflow as they are now: what `harness sync` has to do."""
    folders = sorted(file.parent for file in home.glob("*/run.json"))
    return [folder for folder in folders if not is_synced(folder, tracking_uri)]


def leaderboard_url(server: str, experiment_id: str) -> str:
    """Where MLflow's pages show the leaderboard of an experiment, `server` being e.g. http://127.0.0.1:5000.

    Uses a view stored with the experiment. That is no documented interface of MLflow, so nothing depends on it.
    """
    view = "workflowType=machine_learning&viewStateShareKey=leaderboard"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{view}"


def _fingerprint(folder: Path) -> str:
    files = ("run.json", "records.parquet", "curves.parquet", "histograms.parquet", "panels.json")
    digest = hashlib.sha256(f"layout {LAYOUT}".encode())
    for name in files:
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()[:16]


def _quiet() -> contextlib.AbstractContextManager[None]:
    """MLflow without telemetry, minutes of retries, progress lines and warnings of its own dependencies."""
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    return quietly("mlflow", environment, ("mlflow", "alembic"), logging.ERROR)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One projection at a time into one sqlite file: MLflow corrupts a database that two processes create at once."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another harness has been writing to {path} for a minute") from None
                time.sleep(0.1)
        yield
