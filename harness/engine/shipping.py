"""What a cluster's workers must be able to import: the harness, its methods, and the packages of plugins.

The driver's own code is sent with the job, so every node runs what the plan was made from, whatever it has installed.
What that code imports in turn (torch, MONAI, a plugin's own requirements) must be installed on the nodes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.engine.code import FIRST_PARTY
from harness.engine.plan import Plan

LEFT_OUT = ["**/__pycache__/**", "*.pyc"]
FOR_WORKERS = {
    # A stage that asked for no GPU must see none, whatever the node has.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of workers. Credentials are never sent: nodes have their own, or an identity of their own."""


def packages(plan: Plan) -> tuple[str, ...]:
    """Top-level names of all packages and modules whose code the plan's stages may run."""
    roots = {root.partition(":")[0].partition(".")[0] for stage in plan.stages for root in (stage.fn, *stage.code)}
    return tuple(sorted({*FIRST_PARTY, *roots}))


def runtime_env(names: Iterable[str]) -> dict[str, Any]:
    """Ray's runtime environment that carries these packages to every node."""
    paths = [str(path) for name in names if (path := _place(name)) is not None]
    return {"py_modules": paths, "excludes": LEFT_OUT, "env_vars": dict(FOR_WORKERS)}


def _place(name: str) -> Path | None:
    """Folder of a package, file of a module; None for what has no source, as built-in modules."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    path = Path(spec.origin) if spec.origin else None
    return path if path and path.suffix == ".py" else None
