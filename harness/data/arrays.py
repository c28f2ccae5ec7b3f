"""How image sets, label sets, ages, predictions and method states lie in an artifact folder.

Arrays are .npy (memory-mapped on read and so shared by workers), metadata is JSON, states are
safetensors + JSON. Nothing here is pickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import AgeSet, ImageSet, LabelSet, MethodError, Scan, State


def save_images(folder: Path, images: ImageSet) -> None:
    """Write pixels.npy, mask.npy and scans.json."""
    np.save(folder / "pixels.npy", images.pixels, allow_pickle=False)
    np.save(folder / "mask.npy", images.mask, allow_pickle=False)
    _save_scans(folder, images.scans)


def load_images(folder: Path) -> ImageSet:
    """The image set in `folder`, memory-mapped and read-only."""
    return ImageSet(_mapped(folder / "pixels.npy"), _mapped(folder / "mask.npy"), _load_scans(folder))


def save_labels(folder: Path, labels: LabelSet) -> None:
    np.save(folder / "labels.npy", labels.labels, allow_pickle=False)
    (folder / "names.json").write_text(json.dumps(list(labels.names)))
    _save_scans(folder, labels.scans)


def load_labels(folder: Path) -> LabelSet:
    names = tuple(json.loads((folder / "names.json").read_text()))
    return LabelSet(_mapped(folder / "labels.npy"), names, _load_scans(folder))


def save_ages(folder: Path, ages: AgeSet) -> None:
    """Write ages.npy, float64 [number of scans], and scans.json."""
    np.save(folder / "ages.npy", np.asarray(ages.ages, np.float64), allow_pickle=False)
    _save_scans(folder, ages.scans)


def load_ages(folder: Path) -> AgeSet:
    return AgeSet(_mapped(folder / "ages.npy"), _load_scans(folder))


def save_predictions(folder: Path, predictions: np.ndarray) -> None:
    np.save(folder / "predictions.npy", predictions, allow_pickle=False)


def load_predictions(folder: Path) -> np.ndarray:
    """Labels uint8 [N, H, W], or ages float64 [number of scans]; memory-mapped and read-only."""
    return _mapped(folder / "predictions.npy")


def save_state(folder: Path, state: State) -> None:
    """Arrays and tensors to state.safetensors, everything else to state.json.

    Raises MethodError for values that are neither, naming the entry.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray | np.generic):
            arrays[name] = np.ascontiguousarray(value)
        elif hasattr(value, "detach"):
            arrays[name] = np.ascontiguousarray(value.detach().cpu().numpy())
        else:
            try:
                json.dumps(value)
            except TypeError:
                raise MethodError(
                    f"state entry {name!r} is a {type(value).__name__}; a state holds arrays, tensors or JSON values"
                ) from None
            plain[name] = value
    # ascontiguousarray makes a 0-d array 1-d: keep the shape it came with
    shapes = {name: list(state[name].shape) for name in arrays}
    save_file(arrays, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"plain": plain, "shapes": shapes}))


def load_state(folder: Path) -> State:
    """What `save_state` wrote; arrays come back as numpy arrays of the same shape and dtype."""
    from safetensors.numpy import load_file

    meta = json.loads((folder / "state.json").read_text())
    arrays = load_file(folder / "state.safetensors")
    return {**meta["plain"], **{name: arrays[name].reshape(shape) for name, shape in meta["shapes"].items()}}


def _mapped(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    array.flags.writeable = False
    return array


def _save_scans(folder: Path, scans: tuple[Scan, ...]) -> None:
    (folder / "scans.json").write_text(json.dumps([asdict(scan) for scan in scans], indent=1))


def _load_scans(folder: Path) -> tuple[Scan, ...]:
    rows = json.loads((folder / "scans.json").read_text())
    return tuple(Scan(**{**row, "spacing": tuple(row["spacing"])}) for row in rows)
