"""The curves that stages logged while they learnt, gathered from the store under the names the report shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.engine.executor import Failure
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.store import Store

LOGGING = ("train", "fit", "adapt", "apply", "trace", "detect", "segment", "predict")
"""Kinds of stages whose curves are kept."""


def curves(
    plan: Plan,
    store: Store,
    failures: Mapping[str, Failure],
    owner: Callable[[Cell, Stage], str],
    place: Callable[[Cell], str] = lambda cell: cell.source,
) -> Iterator[dict[str, Any]]:
    """Every curve, once for each owner of its stage; a row is one point, with the columns of `exhibits.CURVES`.

    owner: whose curve it is, of a cell that needs the stage: a row, or a name for what several rows share.
    place: where the cell learns.
    """
    seen: set[tuple[str, str]] = set()
    for cell in plan.cells:
        for key in sorted({k for final in cell.finals.values() for k in (*plan.ancestors(final), final.key)}):
            stage = plan.by_key[key]
            if stage.kind not in LOGGING or key in failures:
                continue
            method = owner(cell, stage)
            path = None if (method, key) in seen else _file(store, stage)
            seen.add((method, key))
            if path is None:
                continue
            of_pair = stage.kind not in ("train", "fit") or "target" in stage.needs
            everywhere = any(name.startswith("sites.") for name in stage.needs)
            for name, step, value in json.loads(path.read_text()):
                yield {
                    "method": method,
                    "source": "" if everywhere else place(cell),
                    "target": cell.target if of_pair else "",
                    "seed": cell.seed,
                    "stage": stage.kind,
                    "name": name,
                    "step": step,
                    "value": value,
                }


def _file(store: Store, stage: Stage) -> Path | None:
    try:
        path = store.read(stage.key) / "curves.json"
    except KeyError:
        return None
    return path if path.is_file() else None
