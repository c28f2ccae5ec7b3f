"""A results folder of the anomaly track whose every number can be worked out by hand.

Two settings in the order T2, FLAIR, two seeds, two processings. A value is base + setting + seed + processing;
`broken` failed in one seed of FLAIR, `lost` everywhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.results import detections, exhibits, records
from harness.results.detections import Detection, Pictures
from harness.results.records import Record, no_value
from harness.results.remarks import REMARKS, write_lines
from harness.results.runinfo import DatasetInfo, MethodInfo, RunInfo

ODD = "<script>alert(1)</script>"
BASES = {"floor": 0.10, "good": 0.60, ODD: 0.40, "broken": 0.90}
SETTINGS = {"T2": 0.02, "FLAIR": -0.02}
SEEDS = (0, 1)
STEP = 0.01
"""What the second seed has more."""
LIFT = 0.05
"""What the common processing adds."""
SHIFTS = {
    "max_dice_global": 0.0,
    "max_dice_shared": -0.05,
    "max_dice_oracle": 0.08,
    "max_dice_bin_weighted": 0.01,
    "auroc": 0.03,
    "dice_gap": -0.07,
}
REMARK = f"{ODD} says the same of every pixel in all slices of T2"
BINS = {"small": (10, -0.09), "medium": (5, 0.05), "large": (0, None)}
SUBJECTS = {"a": -0.03, "b": 0.01, "c": 0.02}
COSTS = {"parameters": 2_500_000.0, "evaluations": 250.0, "seconds_per_slice": 0.0123, "peak_memory": 2.0**30}
METRICS = (
    "auroc",
    *(m for m in SHIFTS if m != "auroc"),
    "max_dice_binned",
    "max_dice_binned_mm2",
    "dice_operating",
    *COSTS,
)
LOW, HIGH = 0.05, 0.2
"""How far the bounds of pooled metrics lie from the value."""
ERROR = "RuntimeError: the <b>loss</b> is nan"


def head(method: str, setting: str, seed: int) -> dict[str, Any]:
    """The part of a record that names its cell."""
    cell = {"method": method, "seed": seed, "source": "healthy", "target": setting}
    return {"benchmark": "tumours", "track": "anomaly", **cell}


def value_of(method: str, setting: str, seed: int, processing: str = "raw") -> float:
    """The global max Dice of a cell."""
    return BASES[method] + SETTINGS[setting] + STEP * seed + (LIFT if processing == "common" else 0.0)


def cell_of(method: str, setting: str, seed: int, processing: tuple[str, ...]) -> list[Record]:
    """All records of one cell."""
    key = head(method, setting, seed)
    if method == "lost" or (method == "broken" and setting == "FLAIR" and seed == 1):
        rows = []
        for name in processing:
            scored = [metric for metric in METRICS if metric not in COSTS]
            failed = no_value("failed", ERROR, scored, **key)
            rows += [replace(record, processing=name) for record in failed]
        return [*rows, *no_value("failed", ERROR, COSTS, **key)]
    rows = []
    for name in processing:
        value = value_of(method, setting, seed, name)
        own = {**key, "unit": "", "processing": name}
        for metric, shift in SHIFTS.items():
            ends = {"low": value - LOW, "high": value + HIGH} if metric in ("max_dice_global", "auroc") else {}
            rows.append(Record(**own, subject="", label="", metric=metric, value=value + shift, **ends))
        for metric in ("max_dice_binned", "max_dice_binned_mm2"):
            for label, (n, shift) in BINS.items():
                bin_of = {"subject": "", "label": label, "metric": metric, "note": f"{n} images"}
                found = None if shift is None else value + shift
                rows.append(Record(**own, **bin_of, value=found, status="empty" if found is None else "ok"))
        for subject, shift in SUBJECTS.items():
            rows.append(Record(**own, subject=subject, label="", metric="dice_operating", value=value - 0.2 + shift))
    units = {"seconds_per_slice": "s", "peak_memory": "byte"}
    scale = 1 + list(BASES).index(method)
    return rows + [
        Record(**key, subject="", label="", metric=metric, value=value * scale, unit=units.get(metric, ""))
        for metric, value in COSTS.items()
    ]


def info_of(**changes: Any) -> RunInfo:
    """`run.json` of the run."""
    departs = {"good": ("LPIPS <i>without</i> weights", "smaller network")}
    names = [*BASES, "lost"]
    methods = [
        MethodInfo(name=n, id="odd" if n == ODD else n, family="anomaly_detector", deviations=departs.get(n, ()))
        for n in names
    ]
    known: dict[str, Any] = {
        "run_id": "run1",
        "benchmark": "tumours",
        "track": "anomaly",
        "dataset": DatasetInfo(id="phantom", name="Toy", simulated=False),
        "sites": ("healthy", *SETTINGS),
        "baseline": "floor",
        "metrics": METRICS,
        "headline": "max_dice_global",
        "seeds": SEEDS,
        "methods": tuple(methods),
        "processing": ("raw", "common"),
        "started": "2025-01-31T12:00:00+00:00",
        "version": "0.1.0",
    }
    return RunInfo(**{**known, **changes})


def table_of(info: RunInfo, names: tuple[str, ...] = (*BASES, "lost")) -> list[Record]:
    """Every cell of the run."""
    settings = [place for place in info.sites if place in SETTINGS]
    processing = info.processing
    return [r for name in names for s in settings for seed in info.seeds for r in cell_of(name, s, seed, processing)]


def write_exhibits(folder: Path) -> None:
    """Curves, maps and pictures of two methods."""
    point = {"seed": 0, "processing": "raw"}
    detections.write_precision_recall(
        folder,
        [
            {**point, "method": method, "target": setting, "recall": recall, "precision": precision}
            for method in ("good", ODD)
            for setting in SETTINGS
            for recall, precision in ((0.5, 0.9), (0.8, 0.6), (1.0, 0.2), (1.0, 0.05))
        ],
    )
    image = np.zeros((16, 12), np.uint8)
    image[3:13, 2:10] = 120
    lesion = np.zeros(image.shape, bool)
    lesion[6:9, 4:7] = True
    scored = np.where(lesion, 0.8, np.where(image > 0, 0.1, 0)).astype(np.float16)
    own = {"good": (0.7, image), ODD: (math.nan, None)}
    slices = [
        Detection(method, setting, "<b>s1</b>", number, 0.5, best, image, lesion, scored, rebuilt)
        for setting in SETTINGS
        for method, (best, rebuilt) in own.items()
        for number in (3, 4)
    ]
    detections.write_detections(folder, slices)
    steps = tuple(f"t=$_{number}" for number in range(14))
    detections.write_pictures(folder, [Pictures("good", s, "s1", 3, steps, np.stack([image] * 14)) for s in SETTINGS])
    curve = {"method": "denoiser", "source": "healthy", "target": "", "seed": 0, "stage": "fit", "name": "loss"}
    exhibits.write_curves(folder, [{**curve, "step": step, "value": 1.0 / (step + 1)} for step in range(3)])
    write_lines(folder / REMARKS, [REMARK])


def write_folder(home: Path, rows: list[Record] | None = None, *, with_exhibits: bool = False, **changes: Any) -> Path:
    """The results folder below `home`, with these records in place of its own and changes of run.json."""
    folder = home / "tumours"
    info = info_of(**changes)
    records.write(folder, records.to_frame(table_of(info) if rows is None else rows))
    info.write(folder)
    if with_exhibits:
        write_exhibits(folder)
    return folder
