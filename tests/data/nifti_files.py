"""Small NIfTI files of a head-like ball, written by nibabel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
