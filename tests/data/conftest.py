"""Small data sets of real NIfTI files, written by nibabel."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.engine.plan import Stage
from harness.engine.worker import StageRun

SHAPE = (20, 24, 18)


def write_volume(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file with the array as it is, 1 mm RAS unless an affine is given."""
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def head(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An image (uint8, an ellipsoid of noise) and its labels: 2 in its right half, 1 in its left."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 1
    image = np.where(brain, rng.integers(40, 200, shape), 0).astype(np.uint8)
    labels = np.where(brain, np.where(grid[0] > 0, 2, 1), 0).astype(np.uint8)
    return image, labels


def write_scan(root: Path, name: str, seed: int | None = None, affine: np.ndarray | None = None) -> None:
    """a/NAME_T1w.nii.gz and a/NAME_seg.nii.gz."""
    image, labels = head(int.from_bytes(name.encode()) % 2**32 if seed is None else seed)
    write_volume(root / "a" / f"{name}_T1w.nii.gz", image, affine)
    write_volume(root / "a" / f"{name}_seg.nii.gz", labels, affine)


CARD = """\
id: tiny
name: Tiny
kind: nifti
simulated: false
modality: T1w
reference: ours
licence: none
access: ask a friend
labels:
  names: [background, left, right]
  groupings:
    coarse: {0: background, 5-9: left, 7: right}
slices: {plane: coronal, size: 32, count: 4}
split: {seed: 1}
sites:
  A:
    image: a/{scan}_T1w.nii.gz
    label: a/{scan}_seg.nii.gz
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six good scans of one site, below tmp_path/data."""
    folder = tmp_path / "data"
    for index in range(6):
        write_scan(folder, f"s{index}")
    return folder


@pytest.fixture
def card_file(tmp_path: Path) -> Callable[..., Path]:
    """Write CARD with replacements (old, new) and text appended."""

    def write(*replacements: tuple[str, str], more: str = "") -> Path:
        text = CARD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text + more)
        return path

    return write


@pytest.fixture
def run_stage(tmp_path: Path) -> Callable[[Stage], Path]:
    """Run a stage's function as a worker would; gives the folder of its artifact."""
    counter = iter(range(1000))

    def run(stage: Stage) -> Path:
        folder = tmp_path / f"stage{next(counter)}"
        out, scratch = folder / "out", folder / "scratch"
        out.mkdir(parents=True)
        scratch.mkdir()
        module, _, name = stage.fn.partition(":")
        function: Any = getattr(importlib.import_module(module), name)
        function(StageRun(stage.params, {}, out, scratch, stage.seed or 0, "cpu", stage.local))
        assert not list(scratch.iterdir())
        return out

    return run
