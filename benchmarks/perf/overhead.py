"""What the harness adds to the work itself, and what a second worker gains. One interleaved run.

    python benchmarks/perf/overhead.py [--repeats 3] [--json]

The stages are those of `benchmarks/cross_site.yaml`, with fewer scans and shorter trainings. Three
ways to the same artifacts, each from a fresh process with its imports counted: a bare loop (the stage functions called
one after another, plain folders, no store, no checks), the harness with one worker, and the harness with two. Ray's
start is counted too, and shown apart.
Target: one worker adds at most 5 % to the bare loop; two workers are at least 1.7× as fast as one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from harness.engine.executor import Execution, ResourceClasses, cluster
from harness.engine.plan import Plan
from harness.engine.store import open_store
from harness.engine.worker import StageRun
from harness.spec import load

REPO = Path(__file__).resolve().parents[2]


def apart(function: Callable[..., tuple[float, ...]], *arguments: Any) -> tuple[float, ...]:
    """Call a function in a fresh process, so that none starts with the imports of another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def bare_loop(plan: Plan, folder: Path) -> tuple[float]:
    """Seconds of the stage functions alone."""
    started = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    places: dict[str, Path] = {}
    for stage in plan.stages:
        out, scratch = folder / "out" / stage.key, folder / "scratch" / stage.key
        out.mkdir(parents=True)
        scratch.mkdir(parents=True)
        inputs = {name: places[need.key] for name, need in stage.needs.items()}
        module, _, name = stage.fn.partition(":")
        run = StageRun(stage.params, inputs, out, scratch, stage.seed or 0, "cpu", stage.local)
        getattr(importlib.import_module(module), name)(run)
        places[stage.key] = out
    return (time.perf_counter() - started,)


def harness_run(plan: Plan, classes: ResourceClasses, folder: Path, workers: int) -> tuple[float, float, float]:
    """(seconds of the run, seconds until Ray was up, seconds inside the stage functions)."""
    started = time.perf_counter()
    with cluster(workers=workers):
        up = time.perf_counter() - started
        store = open_store(str(folder / "store"))
        summary = Execution(plan, store, classes).run()
        seconds = time.perf_counter() - started
    if summary.failures:
        raise SystemExit(f"stages failed: {next(iter(summary.failures.values())).error}")
    manifests = [store.manifest(stage.key) for stage in plan.stages]
    return seconds, up, sum(manifest.seconds for manifest in manifests if manifest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=300, help="of each task model")
    parser.add_argument("--scans", type=int, default=8, help="of each site")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        overrides = [
            f"task.training.iterations={options.iterations}",
            f"data.with.scans={options.scans}",
        ]
        benchmark = load(REPO / "benchmarks" / "cross_site.yaml", overrides, cache=base / "cache")
        plan, classes = benchmark.plan, benchmark.spec.resources
        rows: list[dict[str, float]] = []
        for i in range(options.repeats):
            (bare,) = apart(bare_loop, plan, base / f"bare{i}")
            one, up_one, work = apart(harness_run, plan, classes, base / f"one{i}", 1)
            two, up_two, _ = apart(harness_run, plan, classes, base / f"two{i}", 2)
            rows.append({"bare": bare, "one": one, "two": two, "work": work, "ray_one": up_one, "ray_two": up_two})
            print(f"{i + 1}: bare {bare:.1f} s, one worker {one:.1f} s, two workers {two:.1f} s", file=sys.stderr)
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    result = {
        "stages": len(plan.stages),
        **{key: round(value, 2) for key, value in middle.items()},
        "added_to_the_stage_functions_of_the_same_run_percent": round(100 * (middle["one"] / middle["work"] - 1), 2),
        "overhead_percent": round(100 * (middle["one"] / middle["bare"] - 1), 2),
        "overhead_percent_after_ray_start": round(100 * ((middle["one"] - middle["ray_one"]) / middle["bare"] - 1), 2),
        "two_workers_speedup": round(statistics.median(row["one"] / row["two"] for row in rows), 2),
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for key, value in result.items():
            print(f"{key:36} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
