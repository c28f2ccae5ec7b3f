"""How fast each anomaly detector of a benchmark maps slices, and what an update of its trainings takes.

    python benchmarks/perf/detectors.py [FILE] [--size 64] [--slices 32] [--updates 4] [--against ddpm]

Networks are built as the file says and trained for a few updates only: speed does not depend on what they know. Each
detection is timed twice, the second counts. Prints slices per second, their ratio to one method of the same run,
network evaluations and parameters; one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from harness import registry
from harness.anomaly import AnomalyDetector, Component, NormalData
from harness.api import Context, ImageSet, Scan, State
from harness.contract import check_maps, merge
from harness.cost import measured

DEFAULT = Path(__file__).parents[1] / "anomaly_s2.yaml"


def discs(count: int, size: int) -> ImageSet:
    """Noisy discs of two greys, one slice a scan."""
    rng = np.random.default_rng(0)
    axis = np.linspace(-1.15, 1.15, size)
    radius = np.hypot(axis[:, None], axis[None]) * np.ones((count, 1, 1))
    mask = radius < 1
    grey = np.where(radius < 0.6, 150, 100) + rng.normal(0, 8, radius.shape)
    scans = tuple(Scan(f"s{i}", f"s{i}", "DISCS", i, i + 1, (1.0, 1.0, 1.0)) for i in range(count))
    return ImageSet(np.where(mask, grey.clip(1, 255), 0).astype(np.uint8), mask, scans)


def shortened(fields: Any, updates: int) -> Any:
    """The settings with so many updates of every training."""
    if not isinstance(fields, dict):
        return fields
    few = {name: shortened(value, updates) for name, value in fields.items()}
    return {**few, **{name: updates for name in ("iterations", "validate_every") if name in few}}


class Bench:
    """Learns what the methods need, once each, and times it."""

    def __init__(self, images: ImageSet, updates: int, device: str, folder: Path):
        self.images, self.updates, self.device, self.folder = images, updates, device, folder
        self.states: dict[str, State] = {}
        self.seconds: dict[str, float] = {}

    def context(self) -> Context:
        scratch = self.folder / str(len(list(self.folder.iterdir())))
        scratch.mkdir()
        return Context(0, self.device, scratch, lambda *_: None)

    def learn(self, component: Component) -> State:
        name = f"{component.id} {component.model_dump_json()}"
        if name not in self.states:
            parts = {part: self.learn(each) for part, each in component.components().items()}
            started = time.perf_counter()
            self.states[name] = component.fit(NormalData(self.images, self.images, parts), self.context())
            self.seconds[component.id] = (time.perf_counter() - started) / self.updates
        return self.states[name]

    def detect(self, method: AnomalyDetector) -> dict[str, Any]:
        parts = {part: self.learn(each) for part, each in method.components().items()}
        own = method.fit(NormalData(self.images, self.images, parts), self.context()) if method.has_fit() else {}
        state = {**own, **merge(parts)}
        for _ in range(2):
            with measured(self.device) as meter:
                found = method.detect(state, self.images, self.context())
        check_maps(found, self.images)
        return meter.summary(len(self.images))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--against", default="ddpm", help="row whose speed is 1")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = yaml.safe_load(asked.file.read_text())["methods"]
    with TemporaryDirectory() as folder:
        bench = Bench(discs(asked.slices, asked.size), asked.updates, asked.device, Path(folder))
        costs = {}
        for name, fields in rows.items():
            given = shortened(fields or {}, asked.updates)
            method = registry.load(given.pop("id", name)).model_validate(given)
            assert isinstance(method, AnomalyDetector)
            costs[name] = bench.detect(method)
    slowest = costs[asked.against]["seconds"]
    print(f"{'detector':24}{'slices/s':>10}{'ratio':>9}{'evaluations':>13}{'parameters':>12}")
    for name, cost in costs.items():
        ratio, evaluations = slowest / cost["seconds"], cost["evaluations"].get("network", 0)
        millions = cost["parameters"] / 1e6
        print(f"{name:24}{1 / cost['seconds']:10.1f}{ratio:9.1f}{evaluations:13.1f}{millions:10.2f} M")
    print("\nseconds of an update, its share of what is done once included:")
    for name, seconds in bench.seconds.items():
        print(f"{name:24}{seconds:10.3f}")


if __name__ == "__main__":
    main()
