"""A finished or half-finished benchmark replayed on 1 … 256 imaginary workers, with the durations it really had.

    python benchmarks/perf/replay.py FILE [--home runs] [--store URL] [--most 256] [--gpus 0] [--price 0.05] [--json]

For each number of workers: seconds from start to end, speed-up, share of the workers' time in which stages ran, and
worker-hours (times the price of one, if given). `bound` is what no schedule can beat: the longest chain of stages, or
the work divided by the workers. Durations come from the manifests in the store; a stage that has none gets the
estimate that `harness plan` would give it. Where the last run made every stage, its own time stands beside.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from harness.engine.history import History
from harness.engine.plan import Plan, Stage
from harness.engine.resources import ResourceClasses
from harness.engine.simulate import Workload, counts, enough
from harness.engine.store import Store, open_store
from harness.home import Home
from harness.problems import UserError
from harness.results import runinfo
from harness.spec import load


def recorded(plan: Plan, store: Store) -> dict[str, float]:
    """Seconds of the stage functions, by key, of what the store holds."""
    manifests = (store.manifest(stage.key) for stage in plan.stages)
    return {manifest.key: manifest.seconds for manifest in manifests if manifest}


def replay(plan: Plan, store: Store, classes: ResourceClasses, most: int, gpus: float) -> dict[str, Any]:
    seconds, history = recorded(plan, store), History(store.root)

    def of(stage: Stage) -> float:
        return seconds[stage.key] if stage.key in seconds else history.estimate(stage)

    workload = Workload(plan.stages, of, classes)
    replays = [workload.on(count, gpus) for count in counts(most)]
    return {
        "benchmark": plan.benchmark,
        "stages": len(plan.stages),
        "recorded": len(seconds),
        "work_s": workload.busy,
        "longest_chain_s": workload.path,
        "enough": enough(replays).workers,
        "workers": [
            {
                "workers": each.workers,
                "seconds": each.seconds,
                "bound": max(workload.path, workload.busy / each.workers),
                "speedup": replays[0].seconds / each.seconds if each.seconds else 1.0,
                "efficiency": each.efficiency,
                "worker_hours": each.worker_hours,
            }
            for each in replays
        ],
    }


def last_run(home: Home, benchmark: str, stages: int) -> float | None:
    """Seconds of the last run, if it made every stage."""
    try:
        info = runinfo.read(home.results(benchmark))
    except UserError:
        return None
    return info.seconds if info.counts.executed == stages else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--most", type=int, default=256, help="workers")
    parser.add_argument("--gpus", type=float, default=0.0)
    parser.add_argument("--price", type=float, default=0.0, help="of a worker-hour")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    home = Home.of(options.home, options.store)
    try:
        benchmark = load(options.file, options.overrides, cache=home.cache)
    except UserError as error:
        raise SystemExit("\n".join(map(str, error.problems))) from None
    store = open_store(home.store, create=False)
    found = replay(benchmark.plan, store, benchmark.spec.resources, options.most, options.gpus)
    found["last_run_s"] = last_run(home, benchmark.plan.benchmark, len(benchmark.plan.stages))
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{found['benchmark']}: {found['stages']} stages, {found['recorded']} of them with a recorded duration")
    print(f"work {found['work_s']:.0f} s, longest chain {found['longest_chain_s']:.0f} s", end="")
    print(f", last run {found['last_run_s']:.0f} s" if found["last_run_s"] else "")
    print("workers   seconds     bound  speed-up  busy  worker-hours" + ("      cost" if options.price else ""))
    for row in found["workers"]:
        cost = f"{row['worker_hours'] * options.price:10.2f}" if options.price else ""
        print(
            f"{row['workers']:7}{row['seconds']:10.1f}{row['bound']:10.1f}{row['speedup']:10.2f}"
            f"{row['efficiency']:6.0%}{row['worker_hours']:14.3g}{cost}"
        )
    print(f"more than {found['enough']} workers gain less than 5 %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
