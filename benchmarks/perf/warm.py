"""How long `harness run` takes where everything is there already: a finished benchmark of 1,050 cells, 4,452 stages.

    python benchmarks/perf/warm.py --home DIR [--repeats 3] [--json]

The first call makes the benchmark in DIR, in minutes: it runs one of the six replicates, and commits copies of its
artifacts under the keys of the others, so that as many files lie there as if all had run. Then `harness run` is timed
as a user sees it, a process each time: `first` checks the contents of every file, the others what changed since.
Target on two cores: under 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from harness.engine.plan import Plan
from harness.engine.store import VERIFIED, Manifest, Store, open_store
from harness.spec import load

BENCHMARK = """\
benchmark: warm
track: cross_site
data:
  card: phantom_adult_t1
  with: {scans: 5, slices: {size: 64, pixel_mm: 3.0, count: 4}}
task:
  id: segmenter_2d
  filters: [4, 8, 8]
  training: {iterations: 12, batch_size: 4, learning_rate: 0.01, validate_every: 6}
methods: {none: , z_score: , white_stripe: , histogram_matching: }
seeds: [0, 1, 2, 3, 4, 5]
metrics: [dsc, hd95, wasserstein, psnr]
"""


def make(home: Path) -> None:
    """A finished benchmark in the folder."""
    (home / "warm.yaml").write_text(BENCHMARK)
    harness_run(home, "--set", "seeds=[0]", "--tracking", "none")
    plan = load(home / "warm.yaml", cache=home / "runs" / "cache").plan
    copy_replicates(plan, open_store(str(home / "runs" / "store")))
    harness_run(home)


def copy_replicates(plan: Plan, store: Store) -> None:
    """Give every stage that is missing the files of the same stage of replicate 0."""
    first = {stage.title: stage for stage in plan.stages if " #" not in stage.title}
    for stage in plan.stages:
        if not store.has(stage.key):
            model = store.manifest(first[stage.title.partition(" #")[0]].key)
            assert model is not None
            folder = store.begin(stage.key, "copies")
            shutil.copytree(store.read(model.key), folder, dirs_exist_ok=True)
            (folder / "manifest.json").unlink()
            changed = {"key": stage.key, "title": stage.title, "components": stage.components}
            store.commit(folder, Manifest(**{**model.__dict__, **changed}))


def harness_run(home: Path, *arguments: str) -> tuple[dict[str, Any], float, float]:
    """The JSON answer of the command; wall and CPU seconds of its process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", "harness", "run", "warm.yaml", *arguments, "--json"]
    done = subprocess.run(line, cwd=home, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout), seconds, cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="folder that keeps the finished benchmark")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    home = options.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "runs" / "warm" / "synced.json").is_file():
        make(home)
    (home / "runs" / "store" / VERIFIED).unlink(missing_ok=True)
    runs = [harness_run(home) for _ in range(options.repeats + 1)]
    if any(answer["executed"] for answer, _, _ in runs):
        raise SystemExit(f"the code has changed since {home} was made; name another folder")
    result = {
        "stages": runs[0][0]["cached"],
        "first_s": runs[0][1],
        "first_cpu_s": runs[0][2],
        "warm_s": statistics.median(seconds for _, seconds, _ in runs[1:]),
        "warm_cpu_s": statistics.median(cpu for _, _, cpu in runs[1:]),
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:12} {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
