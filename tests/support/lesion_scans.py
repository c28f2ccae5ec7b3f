"""A tiny data set of real NIfTI files: balls of two greys, in some of which a bright lesion lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIDE, SLICES = 48, 6
PATIENTS = tuple(f"p{i:02}" for i in range(12))
HEALTHY = tuple(f"h{i:02}" for i in range(9))

CARD: dict[str, Any] = {
    "id": "balls",
    "name": "balls with lesions",
    "kind": "nifti",
    "simulated": True,
    "modality": "FLAIR",
    "reference": "ours",
    "licence": "none",
    "access": "made by the tests",
    "lesions": True,
    "labels": {"names": ["background", "lesion"]},
    "slices": {"plane": "axial", "size": SIDE},
    "intensity": "none",
    "sites": {
        "PATIENTS": {"image": "patients/{subject}_image.nii", "label": "patients/{subject}_label.nii"},
        "HEALTHY": {"image": "healthy/{subject}_image.nii", "healthy": True},
    },
}


def write(root: Path) -> Path:
    """The data set below `root`. Lesions fill two of the six slices of each patient and differ in size."""
    for name in PATIENTS:
        image, label = scan(name, lesion=True)
        _save(root / "patients" / f"{name}_image.nii", image)
        _save(root / "patients" / f"{name}_label.nii", label)
    for name in HEALTHY:
        _save(root / "healthy" / f"{name}_image.nii", scan(name, lesion=False)[0])
    return root


def scan(name: str, lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image and label, uint8 [SIDE, SIDE, SLICES]."""
    rng = np.random.default_rng(int.from_bytes(name.encode()))
    axis = np.linspace(-1.1, 1.1, SIDE)
    radius = np.hypot(axis[:, None], axis[None])[..., None] * np.ones(SLICES)
    image = np.where(radius < 1, np.where(radius < 0.6, 130, 90) + rng.normal(0, 6, radius.shape), 0)
    label = np.zeros(radius.shape, np.uint8)
    if lesion:
        side, at = int(rng.integers(3, 9)), rng.integers(16, 26, 2)
        label[at[0] : at[0] + side, at[1] : at[1] + side, 2:4] = 1
        label[at[0], at[1], 3] = 0  # the slice with most lesion is slice 2
        image = np.where(label > 0, image + 30, image)
    return np.where(radius < 1, image.clip(1, 255), 0).astype(np.uint8), label


def _save(path: Path, data: np.ndarray) -> None:
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.diag([2.0, 2.0, 5.0, 1.0])).to_filename(path)
