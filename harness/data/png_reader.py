"""Opening PNG and JPEG slices that may be anything: what a header claims is judged before any pixel is decoded.

One slice is one file of grey pixels. Pillow decodes; the file is chosen, measured and opened here, and read into memory
once, so that it cannot change between the judgement and the decoding.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.imagefile import BadHeader, BadImage, decoding
from harness.untrusted import open_regular

LONGEST_SIDE = 4096
"""Pixels along one side, as of a volume: a whole brain at 0.05 mm."""

LARGEST_FILE = 64 * 2**20
"""Bytes: 4096 × 4096 pixels of 16 bits take half of it without any compression."""

MOST_PASSES = 100
"""Scans of a progressive JPEG, each as dear as the whole image. Encoders write ten or so."""

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_PNG_HEADER = struct.Struct(">8sI4sIIBBBBB")
_UPRIGHT = 1
_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class Slice:
    """One image: pixels uint8 or uint16 [H, W], as the file stores them; `bits` of a pixel; `lossy`: a JPEG."""

    pixels: npt.NDArray[Any]
    bits: int
    lossy: bool


def read_slice(path: Path) -> Slice:
    """A slice, values as stored: a bilevel image holds 0 and 1. Colour is grey where its channels are equal.

    Raises FileNotFoundError; BadHeader for what claims more than any slice has; BadImage for what is no grey image,
    holds several, is damaged or cut short.
    """
    with decoding():
        raw = _bytes(path)
        if raw.startswith(PNG):
            bits = _png_bits(raw)
            return Slice(_stored(_pixels(raw, "PNG"), bits), bits, lossy=False)
        if raw.startswith(JPEG):
            passes = raw.count(b"\xff\xda")
            if passes > MOST_PASSES:
                raise BadHeader(f"it has {passes} passes over the image, more than any encoder writes")
            return Slice(_stored(_pixels(raw, "JPEG"), 8), 8, lossy=True)
        raise BadImage("it begins neither as a PNG nor as a JPEG does")


def _bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            raise BadHeader(f"has {size / 2**20:.0f} MiB, more than any slice")
        return file.read(LARGEST_FILE)


def _png_bits(raw: bytes) -> int:
    """Bits of a pixel's channel, by the header of a PNG that is sound so far. Raises BadHeader or BadImage."""
    if len(raw) < _PNG_HEADER.size:
        raise BadImage("it ends within its header")
    _, length, kind, columns, rows, bits, colour, *_ = _PNG_HEADER.unpack_from(raw)
    if (length, kind) != (13, b"IHDR"):
        raise BadImage("its header does not come first")
    _judge(columns, rows)
    if colour == 3:
        raise BadImage("its colours are those of a palette; save it as grey")
    if colour in (4, 6):
        raise BadImage("it is partly transparent; save it without an alpha channel")
    if colour == 2 and bits == 16:
        raise BadImage("it has colours of 16 bits; save it as grey of 16 bits")
    return int(bits)


def _judge(columns: int, rows: int) -> None:
    if not (0 < columns <= LONGEST_SIDE and 0 < rows <= LONGEST_SIDE):
        raise BadHeader(f"its header claims {rows} × {columns} pixels, where a side has 1 to {LONGEST_SIDE}")


def _pixels(raw: bytes, kind: str) -> npt.NDArray[Any]:
    """Grey pixels as Pillow scales them. Raises BadHeader or BadImage, and whatever Pillow raises."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw), formats=(kind,)) as image:
            _judge(*image.size)
            if getattr(image, "n_frames", 1) != 1:
                raise BadImage("it holds several images, an animation perhaps; save each slice as a file")
            image.verify()  # checksums of all parts of a PNG, to its end; the image is then spent
        with Image.open(io.BytesIO(raw), formats=(kind,)) as image:
            image.load()
            if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                raise BadImage("it asks its viewer to turn it; save it upright")
            return _grey(np.asarray(image), image.mode)
    except UnidentifiedImageError:
        raise BadImage("its header is damaged") from None


def _grey(pixels: npt.NDArray[Any], mode: str) -> npt.NDArray[Any]:
    if mode == "RGB":
        if not (pixels == pixels[..., :1]).all():
            raise BadImage("it is in colour; save it as grey")
        return pixels[..., 0]
    if mode in ("1", "L", "I;16", "I;16B", "I;16L", "I"):
        return pixels
    raise BadImage(f"its pixels are {mode}, no grey")


def _stored(pixels: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Pixels as stored: Pillow spreads 2 and 4 bits over 0..255, and holds one bit as truth."""
    if bits == 16:
        return np.ascontiguousarray(pixels, dtype=np.uint16)
    if bits in (2, 4):
        pixels = pixels // (255 // (2**bits - 1))
    return np.ascontiguousarray(pixels, dtype=np.uint8)
