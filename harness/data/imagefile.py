"""Opening image files that may be anything: what a header claims is judged before anything of that size is read.

Single files (.nii, .nii.gz, .mgh, .mgz) and pairs (.hdr with .img) of NIfTI 1 and 2, MGH and Analyze. nibabel decodes
headers and voxels; the file is chosen, measured and opened here. Header extensions are never read, and a compressed
stream no further than its header promises.
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.schema import MOST_VOXELS
from harness.untrusted import open_regular, plain

LONGEST_AXIS = 4096
"""Voxels along one axis: a whole brain at 0.05 mm, the smallest voxel that is read."""

VOXEL_MM = (0.05, 20.0)
"""Smallest and largest voxel size."""

FARTHEST_MM = 1e5
"""Largest entry of an affine: a hundred metres. Scanners write positions within a metre or two."""

LAST_START = 64 * 2**20
"""Where a file's voxels begin at the latest. Only extensions lie before them; those with a DICOM header have MB."""

MOST_DEFLATED = 1032
"""Bytes that one byte of a gzip stream can stand for, by the format's own limit."""

SINGLE = (".nii", ".nii.gz", ".mgh", ".mgz")
PAIR = (".hdr", ".img")
_HEADER_BYTES = 1024


class BadImage(ValueError):
    """A file that is no readable image. One line that ends a sentence such as "cannot be read"."""


class BadHeader(BadImage):
    """A header that decodes, and claims what no head has. One line that starts with what is wrong."""


def open_image(path: Path, most_voxels: int = MOST_VOXELS) -> Any:
    """A nibabel image of three dimensions, axes of length 1 after the third apart; its voxels are not read yet.

    Its shape, voxel type, voxel size, affine and place in the file are sound, and the file is long enough for them.
    Raises FileNotFoundError, BadHeader or BadImage.
    """
    header_path, data_path, compressed = _files(path)
    with decoding():
        cls, header = _header(header_path, compressed)
        shape = tuple(int(n) for n in header.get_data_shape())
        stored = header.get_data_dtype()
        zooms = [float(size) for size in header.get_zooms()[:3]]
        start = int(header.get_data_offset())
        affine = np.asarray(header.get_best_affine(), dtype=float)
        trouble = _shape_trouble(shape, most_voxels) or _other_trouble(stored, zooms, affine)
        if trouble:
            raise BadHeader(trouble)
        _measure(data_path, start, math.prod(shape) * stored.itemsize, compressed)
        # Not mapped into memory: a file that is cut short while it is read would end the process.
        voxels = cls.ImageArrayProxy(str(data_path), header.copy(), mmap=False)
        return cls(voxels, affine, header)


def read_voxels(image: Any, dtype: type[np.generic] | None = None) -> npt.NDArray[Any]:
    """The voxels of an image from `open_image`, scaled as its header says. Raises BadImage."""
    with decoding():
        return np.asarray(image.dataobj, dtype=dtype)


def canonical(image: Any) -> Any:
    """The image in the closest canonical orientation, its trailing axes of length 1 dropped. Raises BadImage."""
    import nibabel as nib

    with decoding():
        return nib.as_closest_canonical(nib.funcs.squeeze_image(image))


@contextmanager
def decoding() -> Iterator[None]:
    """While a library decodes: whatever it raises is the file's fault, and what it would say goes unsaid."""
    from nibabel import imageglobals

    try:
        with (
            imageglobals.LoggingOutputSuppressor(),
            warnings.catch_warnings(action="ignore"),
            np.errstate(all="ignore"),
        ):
            yield
    except (BadImage, FileNotFoundError):
        raise
    except MemoryError:
        raise BadImage("it does not fit into memory") from None
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise BadImage(plain(lines[0])[:300] if lines else type(error).__name__) from None


def _files(path: Path) -> tuple[Path, Path, bool]:
    """The files of the header and of the voxels, and whether they are gzip streams."""
    name = path.name.lower()
    if name.endswith(SINGLE):
        return path, path, name.endswith((".gz", ".mgz"))
    if path.suffix in PAIR:
        if path.with_suffix(".mat").exists():
            raise BadImage(f"a .mat file beside it would move it unseen; convert it to {SINGLE[1]}")
        return path.with_suffix(".hdr"), path.with_suffix(".img"), False
    raise BadImage(f"it is none of {', '.join((*SINGLE, *PAIR))}; convert it")


def _header(path: Path, compressed: bool) -> tuple[Any, Any]:
    """nibabel's class for a file, and the file's header."""
    import nibabel as nib

    with open_regular(path) as file:
        raw = gzip.GzipFile(fileobj=file).read(_HEADER_BYTES) if compressed else file.read(_HEADER_BYTES)
    if path.name.lower().endswith((".mgh", ".mgz")):
        return nib.MGHImage, nib.MGHImage.header_class(raw[: nib.MGHImage.header_class._hdrdtype.itemsize])
    single = path.suffix != ".hdr"
    if 540 in _sizes(raw):
        cls = nib.Nifti2Image if single else nib.Nifti2Pair
    elif 348 not in _sizes(raw):
        raise BadImage("it does not begin as an image does")
    elif raw[344:348] in (b"n+1\0", b"ni1\0"):
        cls = nib.Nifti1Image if single else nib.Nifti1Pair
    elif single:
        raise BadImage("it is no NIfTI file")
    else:
        cls = nib.Spm2AnalyzeImage
    return cls, cls.header_class(raw[: cls.header_class.template_dtype.itemsize])


def _sizes(raw: bytes) -> tuple[int, int]:
    """The header's size as it stands first in a header, little and big endian."""
    return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")


def _shape_trouble(shape: tuple[int, ...], most_voxels: int) -> str | None:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    claims = f"its header claims {' × '.join(map(str, shape))} voxels"
    if any(n < 1 for n in shape) or max(shape, default=0) > LONGEST_AXIS:
        return f"{claims}, more than any head has"
    if len(shape) != 3:
        return f"has {len(shape)} dimensions ({' × '.join(map(str, shape))}), where one volume of 3 is needed"
    if math.prod(shape) > most_voxels:
        return f"{claims}, more than the card's most_voxels ({most_voxels:,})"
    return None


def _other_trouble(stored: np.dtype[Any], zooms: list[float], affine: npt.NDArray[np.float64]) -> str | None:
    if stored.kind not in "uif":
        return f"its voxels are of type {stored}, no plain numbers"
    usable = np.isfinite(affine).all() and np.abs(affine).max() <= FARTHEST_MM
    if not usable or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return "its header has no usable orientation (affine)"
    if not all(VOXEL_MM[0] <= size <= VOXEL_MM[1] for size in zooms):
        return f"its header claims voxels of {' × '.join(f'{size:g}' for size in zooms)} mm"
    return None


def _measure(path: Path, start: int, size: int, compressed: bool) -> None:
    """Refuse a file whose voxels cannot be where its header says. Raises BadImage."""
    if not 0 <= start <= LAST_START:
        raise BadImage(f"its header says that the voxels begin at byte {start}")
    with open_regular(path) as file:
        there = os.fstat(file.fileno()).st_size
    if there * (MOST_DEFLATED if compressed else 1) < start + size:
        raise BadImage(f"it has {there} bytes, too few for the {start + size} that its header promises")
