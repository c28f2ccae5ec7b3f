"""Seconds of a training update and of a volume of the 3-D segmenter, beside MONAI's sliding windows in the same run.

    python benchmarks/perf/segmenter.py [--patch 32] [--stride 16] [--labels 20] [--filters 8 16 32 64]
                                        [--volume 96 112 88] [--batch 2] [--steps 6] [--device cpu]

The published size is --patch 128 --stride 64 --labels 88 --filters 32 64 128 256 320 320 --volume 190 230 170 --batch 8
--device cuda. Each row is measured in a process of its own. Both ways to segment show the same windows to the same
network, one at a time, and take the largest of the summed probabilities inside the mask; MONAI keeps the sums of the
whole volume, and shows also windows without brain. Peak: above what the process held before (on a GPU: the GPU's).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.api import Context
from harness.brain_age import RegionSet, SegmentationTraining, Volume, VolumeScan, VolumeSet
from harness.training import seeded
from methods.brain_age.patch_segmenter.method import PatchSegmenter
from methods.brain_age.patch_segmenter.networks import build
from methods.brain_age.patch_segmenter.windows import Windows, label_map

ROWS = ("update", "volume", "monai")
NEVER = 10**9


def brain(shape: tuple[int, ...], labels: int) -> tuple[Volume, np.ndarray]:
    """An ellipsoid of noise that touches all sides, with labels in layers."""
    rng = np.random.default_rng(0)
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    squared = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    mask = squared <= 1
    layers = np.where(mask, 1 + (squared * (labels - 1)).astype(np.int64) % (labels - 1), 0)
    return Volume(rng.random(shape, dtype=np.float32) * mask, mask), layers.astype(np.uint8)


def update(given: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of an update, and the peak in MiB."""
    volume, labels = brain(given.volume, given.labels)
    x, y, z = given.volume
    scans = (VolumeScan("s", "p", "a", (x, y, z), (1.0, 1.0, 1.0)),)
    volumes = VolumeSet(scans, lambda index: volume)
    regions = RegionSet(scans, tuple(f"l{i}" for i in range(given.labels)), lambda index: labels)
    times: list[float] = []

    def log(name: str, step: int, value: float) -> None:
        if name == "loss":
            times.append(time.perf_counter())

    training = {"epochs": None, "iterations": given.steps, "batch_size": given.batch, "log_every": 1}
    fields = {"network": given.network, "patch": given.patch, "stride": given.stride, "filters": tuple(given.filters)}
    model = PatchSegmenter.model_validate({**fields, "training": {**training, "checkpoint_every": NEVER}})
    with tempfile.TemporaryDirectory() as scratch, Peak(given.device) as peak:
        data = SegmentationTraining(volumes, regions, volumes.take([]), regions.take([]))
        model.fit(data, Context(0, given.device, Path(scratch), log))
    return float(np.median(np.diff(times)[1:])), peak.mib


def ours(given: argparse.Namespace, network: torch.nn.Module, volume: Volume) -> np.ndarray:
    return label_map(network, volume, Windows(given.patch, given.stride), given.labels, given.device)


def monai(given: argparse.Namespace, network: torch.nn.Module, volume: Volume) -> np.ndarray:
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(given.patch, sw_batch_size=1, overlap=1 - given.stride / given.patch)
    image = torch.from_numpy(volume.image)[None, None].to(given.device)
    with torch.inference_mode():
        found = inferer(image, lambda x: network(x).softmax(1)).argmax(1)[0].to(torch.uint8).cpu().numpy()
    return np.where(volume.mask, found, 0)


def whole(given: argparse.Namespace, way: Callable[..., np.ndarray], out: Path) -> tuple[float, float]:
    """Seconds of one volume, the best of two, and the peak in MiB; the label map goes to `out`."""
    volume, _ = brain(given.volume, given.labels)
    with seeded(0):
        network = build(given.network, given.patch, given.filters, given.labels).to(given.device).eval()
    seconds = []
    with Peak(given.device) as peak:
        for _ in range(2):
            start = time.perf_counter()
            found = way(given, network, volume)
            seconds.append(time.perf_counter() - start)
    np.save(out, found)
    return min(seconds), peak.mib


class Peak:
    """Memory that was taken inside, at most, in MiB."""

    mib = 0.0

    def __init__(self, device: str):
        self.gpu = device == "cuda"

    def _highest(self) -> float:
        if self.gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def __enter__(self) -> Peak:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        self.before = 0.0 if self.gpu else self._highest()
        return self

    def __exit__(self, *_: Any) -> None:
        self.mib = self._highest() - self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="dynunet", choices=["dynunet", "unet"])
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--filters", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--volume", type=int, nargs=3, default=[96, 112, 88], help="voxels along x, y, z")
    parser.add_argument("--batch", type=int, default=2, help="patches in a training batch")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way = {"volume": ours, "monai": monai}.get(given.one)
        seconds, peak = whole(given, way, given.out) if way else update(given)
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    counts = [len(Windows(given.patch, given.stride).starts(n)) for n in given.volume]
    print(f"{given.network}, patches of {given.patch}, {given.labels} labels, {given.volume}, {given.device}")
    print(f"{np.prod(counts)} windows of a volume, {given.batch} patches of an update")
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            out = Path(folder) / f"{row}.npy"
            command = [sys.executable, __file__, *sys.argv[1:], "--one", row, "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{row:10} failed: {done.stderr.strip().splitlines()[-1][:90]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{row:10} {found['seconds']:9.3f} s  {found['peak']:9.0f} MiB")
        left = [path for row in ROWS[1:] if (path := Path(folder) / f"{row}.npy").exists()]
        maps = [np.load(path, allow_pickle=False) for path in left]
    if len(maps) == 2:
        print(f"{(maps[0] != maps[1]).mean():.2e} of the voxels differ")


if __name__ == "__main__":
    main()
