"""Real T1-weighted slices as PNG files of one size: healthy people of OASIS, and three people with lesions.

python tests/support/real_lesions.py REAL_DATA FOLDER      # what the slow test runs, to look at
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SIZE = 64
"""Pixels of a side: half of those that are cut, so that trainings take minutes."""
WHOLE = 2 * SIZE
SHRINK = 0.79
"""mm per pixel, inverted: the length of a brain in the healthy slices over that of the others at 1 mm."""
PATIENTS = (
    ("openms", "sub-07", "lesion"),
    ("openms", "sub-19", "lesion"),
    ("tumour_tcia", "sub-TCGA-DU-7294", "seg-fused"),
)
MIDDLE = (0.45, 0.85)
"""Part of the head's height from which the slice with most lesion is taken: the healthy slices show ventricles."""


def write(real_data: Path, folder: Path) -> Path:
    """healthy/NAME.png, patients/NAME.png and lesions/NAME.png; returns the folder."""
    from PIL import Image

    for place in ("healthy", "patients", "lesions"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    with np.load(real_data / "oasis2d_axial100" / "slices_u8.npz") as file:
        slices = file[file.files[0]]
    for number, pixels in enumerate(slices):
        Image.fromarray(np.rint(_halved(pixels)).astype(np.uint8)).save(folder / "healthy" / f"oasis{number:03}.png")
    for place, name, label in PATIENTS:
        image, lesion = _slice(real_data / place / name, label)
        Image.fromarray(image).save(folder / "patients" / f"{name}.png")
        Image.fromarray(lesion).save(folder / "lesions" / f"{name}.png")
    return folder


def _slice(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The axial slice with most lesion in the middle of the head: image uint8, lesion 0 or 255, [SIZE, SIZE].

    A pixel is lesion where most of what it covers is.
    """
    import nibabel as nib
    from scipy import ndimage

    image, lesion = (
        np.asarray(nib.as_closest_canonical(nib.load(f"{path}_{what}.nii.gz")).dataobj) for what in ("T1w", label)
    )
    low, high = (round(part * image.shape[2]) for part in MIDDLE)
    at = low + int((lesion[:, :, low:high] > 0).sum(axis=(0, 1)).argmax())
    # anterior in row 0, as the healthy slices are
    pixels = ndimage.zoom(np.flipud(image[:, :, at].T).astype(np.float32), SHRINK, order=1)
    marked = ndimage.zoom(np.flipud(lesion[:, :, at].T > 0).astype(np.uint8), SHRINK, order=0)
    lesions = (_halved(_padded(marked)) >= 0.5) * np.uint8(255)
    return np.rint(_halved(_padded(pixels))).astype(np.uint8), lesions


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels."""
    rows, columns = (side // 2 for side in image.shape)
    return image.reshape(rows, 2, columns, 2).mean((1, 3))


def _padded(image: np.ndarray) -> np.ndarray:
    """In the middle of WHOLE × WHOLE; what is beyond is cut off, which is background."""
    beyond = [max(0, side - WHOLE) for side in image.shape]
    image = image[
        tuple(slice(more // 2, side - (more - more // 2)) for more, side in zip(beyond, image.shape, strict=True))
    ]
    before = [(WHOLE - side) // 2 for side in image.shape]
    after = [WHOLE - side - first for side, first in zip(image.shape, before, strict=True)]
    return np.pad(image, list(zip(before, after, strict=True)))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
