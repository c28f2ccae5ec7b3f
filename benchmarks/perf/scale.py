"""How the harness's own costs grow with the number of stages: plans, and no-op stages on Ray.

    python benchmarks/perf/scale.py [plan] [track] [ray] [--sizes 1000 10000 100000] [--most 1000] [--json]

plan   building a plan of no-op stages in the cross-site track's shape: seconds and memory, a process for each size
track  the same through a benchmark file: `benchmarks/cross_site.yaml` with more and more replicates
ray    no-op stages through the real executor and store, beside bare Ray tasks and bare commits of the same session;
       sizes up to `--most`

Targets on two cores: a plan of 1e5 stages under 20 s and 2 GB, 5 ms of scheduling per stage at 1e4 stages. `cpu`
columns are the process's own and hold on a busy machine too. A run with nothing to do is measured by warm.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from harness.engine.plan import Cell, Plan, Stage, seed_of

if TYPE_CHECKING:
    from harness.engine.store import Store
    from harness.engine.worker import StageRun

REPO = Path(__file__).resolve().parents[2]
METHODS = 4
SHAPES = {1_000: (8, 1), 10_000: (25, 1), 100_000: (40, 4)}
"""Stages, about → sites and replicates."""
REAL_CODE = "harness.tracks.cross_site.stages:harmonize"
"""Makes the code part of a no-op stage's key as costly as a real one's."""


def nothing(run: StageRun) -> None:
    """Stage function that does nothing: an artifact is a manifest."""


def no_ops(sites: int, replicates: int, methods: int = METHODS) -> Plan:
    """A plan in the shape of the cross-site track: a model per source, a fit per pair or source, four stages a cell."""

    def stage(kind: str, title: str, params: dict[str, Any], needs: dict[str, Stage], seed: int | None = None) -> Stage:
        return Stage(kind, title, "scale:nothing", params, needs, "score", (REAL_CODE,), seed=seed)

    names = [f"SITE{i:03}" for i in range(sites)]
    people = [{"id": f"sub-{i:04}", "seed": i, "age": 20.5 + i, "sex": "F"} for i in range(20)]
    images = {(s, x): stage("images", f"images {s} {x}", {"site": s, "split": x, "subjects": people}, {})
              for s in names for x in ("train", "test")}  # fmt: skip
    labels = {(s, x): stage("labels", f"labels {s} {x}", {"site": s, "split": x, "subjects": people}, {})
              for s in names for x in ("train", "test")}  # fmt: skip
    task = {"class": "module:Task", "fields": {f"field_{i}": 0.1 * i for i in range(20)}}
    cells = []
    for seed in range(replicates):
        models = {
            s: stage("train", f"train {s} #{seed}", {"method": task}, {
                "images": images[s, "train"], "reference": labels[s, "train"]}, seed_of("train", s, seed))
            for s in names
        }  # fmt: skip
        for i in range(methods):
            name = f"method{i}"
            method = {"method": {"class": f"module:Method{i}", "fields": {f"field_{j}": 0.2 * j for j in range(20)}}}
            for source in names:
                own = {"source": images[source, "train"]}
                shared = stage("fit", f"fit {name} {source} #{seed}", method, own, seed_of("fit", name, source, seed))
                for target in names:
                    if source == target:
                        continue
                    pair = f"{name} {source}→{target} #{seed}"
                    fit = shared
                    if i % 2:  # a method that knows its domains
                        both = {**own, "target": images[target, "train"]}
                        fit = stage("fit", f"fit {pair}", method, both, seed_of("fit", name, source, target, seed))
                    drawn = seed_of("apply", name, source, target, seed)
                    given = {"target": images[target, "test"], "state": fit}
                    harmonised = stage(
                        "apply", f"apply {pair}", {**method, "quantize": {"mode": "round"}}, given, drawn
                    )
                    needs = {"task": models[source], "images": harmonised}
                    predicted = stage(
                        "predict", f"predict {pair}", {"task": task, "labels": {"count": 15}}, needs, drawn
                    )
                    judged = {"predictions": predicted, "labels": labels[target, "test"]}
                    looked = {
                        "harmonised": harmonised,
                        "before": images[target, "test"],
                        "source": images[source, "test"],
                    }
                    finals = {
                        "labels": stage("score", f"score labels {pair}", {"metrics": ["dsc", "hd95"]}, judged),
                        "images": stage("score", f"score images {pair}", {"metrics": ["psnr"]}, looked),
                    }
                    cells.append(Cell(name, source, target, seed, finals))
    return Plan.of("no-ops", cells)


# ---------------------------------------------------------------------------------------------- plans


def measure_plan(size: int) -> dict[str, float]:
    """Seconds and memory of a plan of no-op stages, and of what a run asks of it before it starts."""
    return _measured(lambda: no_ops(*SHAPES[size]))


def measure_track(size: int) -> dict[str, float]:
    """The same through a benchmark file, from its text to the plan."""
    from harness.spec import load

    file = REPO / "benchmarks" / "cross_site.yaml"
    with tempfile.TemporaryDirectory() as name:
        per_replicate = len(load(file, cache=Path(name)).plan.stages)
        seeds = list(range(max(1, round(size / per_replicate))))
        return _measured(lambda: load(file, [f"seeds={seeds}"], cache=Path(name)).plan)


def _measured(build: Callable[[], Plan]) -> dict[str, float]:
    before, cpu, started = _peak_mib(), time.process_time(), time.perf_counter()
    plan = build()
    built = time.perf_counter()
    edges = sum(len(stage.needs) for stage in plan.stages)
    assert len(plan.by_key) == len(plan.dependants) == len(plan.stages)
    mapped = time.perf_counter()
    saved = plan.trainings_saved()
    done, spent = time.perf_counter(), time.process_time() - cpu
    return {
        "stages": len(plan.stages),
        "cells": len(plan.cells),
        "edges": edges,
        "saved": saved,
        "build_s": built - started,
        "maps_s": mapped - built,
        "trainings_saved_s": done - mapped,
        "seconds": done - started,
        "cpu_s": spent,
        "peak_mib": _peak_mib(),
        "bytes_per_stage": (_peak_mib() - before) * 2**20 / len(plan.stages),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


# ------------------------------------------------------------------------------------------------ Ray


def measure_ray(size: int) -> dict[str, float]:
    """No-op stages through executor and store; as many bare Ray tasks; bare commits. One session, one folder."""
    from harness.engine.executor import Execution, ResourceClasses, cluster
    from harness.engine.store import open_store

    plan = no_ops(*SHAPES[size])
    count = len(plan.stages)
    with tempfile.TemporaryDirectory() as name, cluster(workers=2):
        bare, bare_cpu = timed(lambda: _bare_tasks(count))
        store = open_store(f"{name}/store")
        execution = Execution(plan, store, ResourceClasses())
        seconds, cpu = timed(execution.run)
        if execution.summary.executed != count:
            raise SystemExit(f"{execution.summary.executed} of {count} stages ran")
        again = Execution(plan, store, ResourceClasses())
        second, second_cpu = timed(again.run)
        assert again.summary.executed == 0
        other = open_store(f"{name}/other")
        commits = plan.stages[:500]
        commit, _ = timed(lambda: [_commit_again(store, other, stage.key) for stage in commits])
    return {
        "stages": count,
        "seconds": seconds,
        "ms_per_stage": 1e3 * seconds / count,
        "driver_cpu_ms_per_stage": 1e3 * cpu / count,
        "bare_ray_ms_per_task": 1e3 * bare / count,
        "bare_ray_cpu_ms_per_task": 1e3 * bare_cpu / count,
        "commit_ms": 1e3 * commit / len(commits),
        "nothing_to_do_ms_per_stage": 1e3 * second / count,
        "nothing_to_do_cpu_ms": 1e3 * second_cpu / count,
        "peak_mib": _peak_mib(),
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    cpu, started = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - started, time.process_time() - cpu


def _commit_again(store: Store, other: Store, key: str) -> None:
    manifest = store.manifest(key)
    assert manifest is not None
    other.commit(other.begin(key, "one"), manifest)


def _bare_tasks(count: int, in_flight: int = 64) -> None:
    """As many no-op tasks in Ray alone, a few at a time as an executor would."""
    import ray

    task = ray.remote(_no_op).options(num_cpus=1)
    flying: list[Any] = []
    for _ in range(count):
        if len(flying) >= in_flight:
            _, flying = ray.wait(flying, num_returns=1)
        flying.append(task.remote())
    ray.get(flying)


def _no_op() -> None: ...


# ---------------------------------------------------------------------------------------------- table


def apart(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call a function in a fresh process: its memory and its caches are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def show(part: str, rows: list[dict[str, float]]) -> None:
    """One table of a part: a column for each size."""
    print(part)
    for name in rows[0]:
        values = [f"{row[name]:.0f}" if row[name] >= 1000 or row[name] % 1 == 0 else f"{row[name]:.3g}" for row in rows]
        print(f"  {name:28}" + "".join(f"{value:>12}" for value in values), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="plan, track, ray; default: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES), help="of stages")
    parser.add_argument("--most", type=int, default=1_000, help="stages that run on Ray")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measures = {"plan": measure_plan, "track": measure_track, "ray": measure_ray}
    if unknown := set(options.parts) - set(measures):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; one of {', '.join(measures)}")
    found: dict[str, list[dict[str, float]]] = {}
    for part in options.parts or measures:
        sizes = [size for size in options.sizes if part != "ray" or size <= options.most]
        found[part] = [apart(measures[part], size) for size in sizes]
        if not options.json and found[part]:
            show(part, found[part])
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    import scale  # by its name: workers and fresh processes know no other

    sys.exit(scale.main())
