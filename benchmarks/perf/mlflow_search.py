"""How MLflow holds up at thousands of runs: what a projection costs, and how long a search takes. One interleaved run.

    python benchmarks/perf/mlflow_search.py [--cells 5000] [--repeats 5] [--json]

An sqlite store is filled through the harness's own projection: ten invocations of one benchmark with made-up
records, a run for every method and source. What a run costs is compared with the same run written by a bare MLflow
client. Each search is timed beside the same search made another way: without the `kind` tag that the harness's runs
carry, or from the records of the results folders. Times through a server are those of the request that MLflow's pages
make first. Memory is the peak of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import polars as pl

from harness.results import leaderboard, pages, records, runinfo, tracking
from harness.results.html import write_report

INVOCATIONS = 10
SITES = tuple(f"SITE{number:02}" for number in range(10))
METRICS = ("dsc", "hd95")
LEADERBOARD = "tags.kind = 'leaderboard'"
CELLS = "tags.kind = 'cell' and params.method = 'method_3' and metrics.dsc > 0.5"
ORDER = ["metrics.`dsc` DESC"]


def make_folder(folder: Path, number: int, methods: int) -> Path:
    """A results folder: every method on every pair of sites, two subjects, two metrics."""
    generator = np.random.default_rng(number)
    names = [f"method_{i}" for i in range(methods)]
    keys = {"method": names, "source": SITES, "target": SITES, "subject": ["s0", "s1"], "metric": METRICS}
    frame = pl.DataFrame({"benchmark": ["large"], "track": ["cross_site"], "seed": [0], "label": ["GM"]})
    for key, values in keys.items():
        frame = frame.join(pl.DataFrame({key: list(values)}), how="cross")
    frame = frame.with_columns(
        value=pl.Series(generator.uniform(0.3, 0.9, len(frame))),
        unit=pl.when(pl.col("metric") == "hd95").then(pl.lit("mm")).otherwise(pl.lit("")),
        status=pl.lit("ok"),
        note=pl.lit(""),
    )
    records.write(folder, records.validated(frame))
    fields = {f"field_{i}": i / 7 for i in range(15)}
    runinfo.RunInfo(
        run_id=f"run{number}",
        benchmark="large",
        track="cross_site",
        dataset=runinfo.DatasetInfo(id="made_up", name="Made-up records", simulated=True),
        sites=SITES,
        baseline="method_0",
        metrics=METRICS,
        headline="dsc",
        seeds=(0,),
        methods=tuple(runinfo.MethodInfo(name=n, id=n, family="harmonizer", fields=fields) for n in names),
        started="2025-01-31T12:00:00+00:00",
        version="0",
    ).write(folder)
    return folder


def fill(base: Path, uri: str, cells: int) -> tuple[list[Path], list[dict[str, float]]]:
    """The folders, and what each projection took: seconds in all, runs written, seconds of reading alone."""
    methods = max(4, cells // (INVOCATIONS * len(SITES)))
    folders, rows = [], []
    for number in range(INVOCATIONS):
        folder = make_folder(base / f"runs{number}" / "large", number, methods)
        if folders:  # how long figures take is not the question here
            shutil.copytree(folders[0] / "figures", folder / "figures")
            shutil.copy(folders[0] / "report.html", folder)
        else:
            write_report(folder, folder / "report.html")
        started = time.perf_counter()
        leaderboard.build(folder)
        reading = time.perf_counter() - started
        started = time.perf_counter()
        outcome = tracking.project(folder, uri)
        seconds = time.perf_counter() - started
        if outcome.warning:
            raise SystemExit(outcome.warning)
        rows.append({"seconds": seconds, "written": outcome.written, "reading": reading})
        each = 1000 * seconds / outcome.written
        print(f"projection {number + 1}: {outcome.written} runs, {seconds:.1f} s, {each:.0f} ms each", file=sys.stderr)
        folders.append(folder)
    return folders, rows


def search(uri: str, experiment: str, condition: str, most: int) -> int:
    """Number of runs that a search finds, page after page."""
    from mlflow.tracking import MlflowClient

    client, found, token = MlflowClient(tracking_uri=uri), 0, None
    while True:
        page = client.search_runs([experiment], condition, max_results=most, order_by=ORDER, page_token=token)
        found, token = found + len(page), page.token
        if not token:
            return found


def bare(uri: str, experiment: str, number: int) -> float:
    """Milliseconds for each of some cell runs, written anew by a client that does nothing else."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([experiment], "tags.kind = 'cell'", max_results=number)
    elsewhere = client.create_experiment(f"bare {time.time()}")
    started = time.perf_counter()
    for run in found:
        run_id = client.create_run(elsewhere, run_name=run.info.run_name, tags=run.data.tags).info.run_id
        metrics = [Metric(key, value, 0, 0) for key, value in run.data.metrics.items()]
        client.log_batch(run_id, metrics, [Param(key, value) for key, value in run.data.params.items()])
        client.set_terminated(run_id)
    return 1000 * (time.perf_counter() - started) / len(found)


def from_records(folders: list[Path]) -> int:
    """The cells of the same search, out of the records of every folder."""
    table = pl.concat(pl.scan_parquet(folder / records.FILE).with_columns(at=pl.lit(str(folder))) for folder in folders)
    away = (pl.col("method") == "method_3") & (pl.col("metric") == "dsc") & (pl.col("source") != pl.col("target"))
    means = table.filter(away).group_by("at", "source").agg(pl.col("value").mean())
    return len(means.filter(pl.col("value") > 0.5).collect())


def page(url: str, experiment: str, condition: str) -> int:
    """Bytes of the first page of runs, as MLflow's pages ask for it."""
    body = {"experiment_ids": [experiment], "filter": condition, "order_by": ORDER, "max_results": 100}
    request = urllib.request.Request(f"{url}/ajax-api/2.0/mlflow/runs/search", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return len(answer.read())


def peak(uri: str, experiment: str, condition: str, most: int) -> float:
    """Peak MiB of this process after a search; `condition` "-" imports MLflow and searches nothing."""
    import mlflow  # noqa: F401

    if condition != "-":
        search(uri, experiment, condition, most)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def timed(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each way, in turns, and what it gave."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    gave = {}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            gave[name] = way()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: {"ms": round(statistics.median(took[1:]), 1), "gave": gave[name]} for name, took in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=5000, help="cell runs in the store")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        uri = f"sqlite:///{base / 'mlflow.db'}"
        folders, rows = fill(base, uri, options.cells)
        plain = bare(uri, tracking.project(folders[-1], uri).experiment_id, 100)
        started = time.perf_counter()
        again = tracking.project(folders[-1], uri)
        kept = time.perf_counter() - started
        known = again.experiment_id
        searches = timed(
            {
                "leaderboard": lambda: search(uri, known, LEADERBOARD, 500),
                "leaderboard, built from the records": lambda: len(leaderboard.build(folders[-1]).rows),
                "every run, to sort out the leaderboard": lambda: search(uri, known, "", 1000),
                "cells of a method above a value": lambda: search(uri, known, CELLS, 500),
                "the same without the kind tag": lambda: search(uri, known, CELLS.partition(" and ")[2], 500),
                "the same from the records": lambda: from_records(folders),
            },
            options.repeats,
        )
        memory = {
            "leaderboard": apart(peak, uri, known, LEADERBOARD, 500),
            "every run": apart(peak, uri, known, "", 1000),
            "nothing": apart(peak, uri, known, "-", 0),
        }
        with socket.create_server((pages.HOST, 0)) as free:
            port = free.getsockname()[1]
        with pages.serving(uri, port):
            url = f"http://{pages.HOST}:{port}"
            served = timed(
                {
                    "leaderboard": lambda: page(url, known, LEADERBOARD),
                    "any run": lambda: page(url, known, ""),
                    "cells of a method above a value": lambda: page(url, known, CELLS),
                },
                options.repeats,
            )
        result = {
            "cell_runs": search(uri, known, "tags.kind = 'cell'", 1000),
            "database_mib": round((base / "mlflow.db").stat().st_size / 2**20, 1),
            "projection_ms_per_run": {
                "first": round(1000 * rows[0]["seconds"] / rows[0]["written"], 1),
                "last": round(1000 * rows[-1]["seconds"] / rows[-1]["written"], 1),
                "bare client": round(plain, 1),
            },
            "projection_seconds": {"first": round(rows[0]["seconds"], 1), "last": round(rows[-1]["seconds"], 1)},
            "of_which_building_the_leaderboard": round(rows[-1]["reading"], 2),
            "projection_of_what_is_there": {"seconds": round(kept, 2), "kept": again.kept, "written": again.written},
            "search": searches,
            "page_of_100": served,
            "peak_mib": {name: round(value) for name, value in memory.items()},
        }
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    for key, value in result.items():
        if isinstance(value, dict):
            print(key)
            for inner, what in value.items():
                print(f"  {inner:40} {what}")
        else:
            print(f"{key:42} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
