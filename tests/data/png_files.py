"""Small PNG files: slices of head-like discs with lesions, and PNGs put together by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (26, 22)
SLICES = 12
BRAIN = range(1, 11)
"""Slices that show brain."""

LESIONS = {4: 3, 5: 5, 6: 4}
"""Slice → side of its lesion in pixels."""


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def head(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8, mask and lesion 0/255, [12, 26, 22]: a scan whose image is not 0 outside its brain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.arange(SHAPE[0]) - 12.5, np.arange(SHAPE[1]) - 10.5, indexing="ij")
    image = rng.integers(1, 250, (SLICES, *SHAPE)).astype(np.uint8)
    mask = np.zeros(image.shape, np.uint8)
    lesion = np.zeros(image.shape, np.uint8)
    for k in BRAIN:
        mask[k] = np.where((rows / 10) ** 2 + (columns / 8) ** 2 <= 1, 255, 0)
    for k, side in LESIONS.items():
        lesion[k, 10 : 10 + side, 8 : 8 + side] = 255
    return image, mask, lesion


def write_scan(root: Path, name: str, seed: int, image: np.ndarray | None = None) -> None:
    """p/NAME_K.png, p/NAME_K_brain.png and p/NAME_K_seg.png for K from 0, unpadded: 9 and 10 sort wrongly as text."""
    pixels, mask, lesion = head(seed)
    for k in range(SLICES):
        write_png(root / "p" / f"{name}-{k}-t1.png", (pixels if image is None else image)[k])
        write_png(root / "p" / f"{name}-{k}-brain.png", mask[k])
        write_png(root / "p" / f"{name}-{k}-seg.png", lesion[k])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def by_hand(columns: int, rows: int, bits: int, colour: int, content: bytes, *more: bytes) -> bytes:
    """A PNG of these header fields. content: rows of pixels, a filter byte first. more: chunks after the header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")))
