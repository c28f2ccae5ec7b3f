"""Training steps per second and peak memory of the trained methods, beside the task model's in the same run.

    python benchmarks/perf/training.py [--size 64] [--published] [--steps 12] [--device cpu]

Each method trains a few steps on made-up slices in a process of its own, through the same call as in a run; the
time of a step is the median distance between two points of its loss curve, so building and warming up do not
count. "ratio" is the step's time over that of the segmenter at the same size, which is nnU-Net's plain 2-D U-Net.
Small settings are those of benchmarks/adult_segmentation.yaml; --published takes the methods' defaults.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness import registry
from harness.api import Adaptive, Context, ImageSet, LabelSet, Scan, TaskData, TaskModel
from harness.contract import grant_fit

REPO = Path(__file__).resolve().parents[2]
BASE = REPO / "benchmarks" / "adult_segmentation.yaml"
REFERENCE = "segmenter_2d"
MEASURED = (
    (REFERENCE, ""),
    ("harmonizing_flows", "flow"),
    ("harmonizing_flows", "harmonizer"),
    ("cycle_gan", ""),
    ("style_transfer", ""),
    ("imunity", ""),
    ("blind_harmony", ""),
)
NEVER = 10**9


def slices(site: str, size: int, scans: int = 4, each: int = 12) -> tuple[ImageSet, LabelSet]:
    """Discs of noise; what is in them does not change how long a step takes."""
    rng = np.random.default_rng(len(site))
    offset = np.arange(size) - (size - 1) / 2
    mask = np.broadcast_to(np.hypot(offset[:, None], offset) < 0.4 * size, (scans * each, size, size)).copy()
    pixels = np.where(mask, rng.integers(30, 220, mask.shape), 0).astype(np.uint8)
    spans = tuple(
        Scan(f"{site}{i}", f"{site}{i}", site, i * each, (i + 1) * each, (3.0, 3.0, 3.0)) for i in range(scans)
    )
    labels = np.where(mask, pixels % 14 + 1, 0).astype(np.uint8)
    return ImageSet(pixels, mask, spans), LabelSet(labels, tuple(f"l{i}" for i in range(15)), spans)


def settings(method: str, part: str, steps: int, published: bool) -> dict[str, Any]:
    """Fields of the method, its schedule cut to `steps` and without validation or checkpoints."""
    spec = yaml.safe_load(BASE.read_text())
    given = spec["task"] if method == REFERENCE else spec["methods"][method]
    fields = {} if published else {key: value for key, value in (given or {}).items() if key != "id"}
    group = fields
    for key in {"harmonizing_flows": (part,), "blind_harmony": ("flow",)}.get(method, ()):
        group = group.setdefault(key, {})
    cut = {"iterations": steps, "log_every": 1, "validate_every": NEVER, "checkpoint_every": NEVER}
    group["training"] = {**group.get("training", {}), **cut}
    return fields


def measure(method: str, part: str, size: int, steps: int, published: bool, device: str) -> dict[str, float]:
    """Median seconds of a step, samples in a batch, and the peak of the process in MiB."""
    instance = registry.load(method).model_validate(settings(method, part, steps, published))
    times: list[float] = []
    last = -1

    def log(name: str, step: int, value: float) -> None:
        nonlocal last
        if step > last:
            last = step
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        ctx = Context(seed=0, device=device, scratch=Path(scratch), log=log)
        images, labels = slices("a", size)
        if isinstance(instance, TaskModel):
            instance.train(TaskData(images, labels, images, labels), ctx)
        else:
            assert isinstance(instance, Adaptive)
            other, _ = slices("bb", size)
            sites = {"a": images, "bb": other}
            data = grant_fit(instance, {"source": images, "validation": images, "target": other, "sites": sites})
            if part:
                instance.fit_part(part, data, ctx)
            else:
                instance.fit(data, ctx)
    gaps = np.diff(times[:steps])[1:]  # the first steps warm up; what follows the last is no step
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"seconds": float(np.median(gaps)), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--published", action="store_true", help="the methods' defaults in place of small settings")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        method, _, part = given.one.partition(":")
        print(json.dumps(measure(method, part, given.size, given.steps, given.published, given.device)))
        return
    print(f"{given.size} × {given.size}, {'published' if given.published else 'small'} settings, {given.device}")
    print(f"{'training':30} {'s/step':>9} {'steps/s':>9} {'ratio':>8} {'peak MiB':>9}")
    reference = None
    for method, part in MEASURED:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", f"{method}:{part}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{method} {part:12} failed: {done.stderr.strip().splitlines()[-1][:80]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        reference = reference or found["seconds"]
        name = f"{method} {part}".strip()
        ratio = found["seconds"] / reference
        print(f"{name:30} {found['seconds']:9.3f} {1 / found['seconds']:9.2f} {ratio:7.2f}x {found['peak']:9.0f}")


if __name__ == "__main__":
    main()
