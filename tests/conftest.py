"""Shared fixtures: one Ray session for the whole suite, and the folder of real data where it is at hand."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"
SUPPORT = REPO / "tests" / "support"

# Set before anything imports torch, Ray or MLflow; workers and subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `cluster` does: Ray reads it when it is first imported
sys.path.insert(0, str(SUPPORT))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs, shared by all tests of the process."""
    from harness.engine.executor import cluster

    with cluster(workers=2):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the checkout; the test skips where it is absent."""
    folder = SHARED / "real_data"
    if not folder.is_dir():
        pytest.skip("real scans are not at hand (../shared/real_data)")
    return folder


@pytest.fixture(scope="session")
def metric_fixtures() -> Path:
    """Reference inputs and values of well-known libraries; the test skips where they are absent."""
    folder = SHARED / "metric_fixtures"
    if not folder.is_dir():
        pytest.skip("reference values are not at hand (../shared/metric_fixtures)")
    return folder
