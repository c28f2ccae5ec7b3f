"""Sound and damaged PNG and JPEG slices, and what the reader is held to.

A PNG is changed chunk by chunk, its checksums mended, so that a change gets past them; and byte by byte, as any file.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from harness.data import audit, png_audit, png_scan, volumes
from harness.data.imagefile import BadImage
from harness.data.png_layout import SlicedScan
from harness.data.png_reader import PNG
from harness.data.schema import Slices

SLICES = Slices(plane="axial", size=16)
MOST_VOXELS = 2**24
GROUPS = [(0, 0, 0), (1, 65535, 1)]

ROLES = ("image", "label", "mask")
NUMBERS = (0, 1, 2, 3, 4, 8, 16, 17, 255, 4096, 4097, 2**16, 2**30, 2**31 - 1, 2**31, 2**32 - 1)
KINDS = (
    b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"eXIf",
    b"gAMA", b"sRGB", b"pHYs", b"sBIT", b"cHRM", b"tIME", b"\0\0\0\0", b"vpAg",
)  # fmt: skip

Chunks = list[tuple[bytes, bytes]]


def seeds() -> dict[str, bytes]:
    """Sound files of every kind that is read, and of some that are refused."""
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.meshgrid(np.arange(12) - 5.5, np.arange(13) - 6, indexing="ij")) < 5
    grey = np.where(disc, rng.integers(1, 250, disc.shape), 0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 1
    return {
        "8 bits": _saved(grey, "PNG"),
        "16 bits": _saved(grey.astype(np.uint16) * 200, "PNG"),
        "bilevel": _saved(disc, "PNG"),
        "colour": _saved(np.dstack([grey] * 3), "PNG"),
        "texts": _saved(grey, "PNG", pnginfo=_texts(), exif=exif, dpi=(72, 72)),
        "palette": _saved(grey, "PNG", mode="P"),
        "alpha": _saved(grey, "PNG", mode="LA"),
        "animation": _saved(grey, "PNG", save_all=True, append_images=[Image.fromarray(grey[::-1].copy())]),
        "interlaced": interlaced(grey),
        "JPEG": _saved(grey, "JPEG", exif=exif),
        "progressive JPEG": _saved(grey, "JPEG", progressive=True),
        "colour JPEG": _saved(np.dstack([grey] * 3), "JPEG"),
    }


def _saved(pixels: np.ndarray, form: str, mode: str | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def _texts() -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Title", "a head")
    info.add_itxt("Author", "nobody", zip=True)
    info.add_text("Comment", "x" * 500, zip=True)
    return info


def interlaced(grey: np.ndarray) -> bytes:
    """A PNG in seven passes (Adam7), which Pillow reads and does not write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row for y, x, dy, dx in passes for row in grey[y::dy, x::dx] if len(row)]
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 1)
    return join([(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")])


def split(raw: bytes) -> Chunks:
    """The chunks of a sound PNG: (kind, content)."""
    chunks, at = [], len(PNG)
    while at < len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def join(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with checksums that fit."""
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return PNG + b"".join(parts)


@st.composite
def damaged(draw: Any, files: Sequence[bytes]) -> bytes:
    """A file's bytes: one of `files` after one to four changes."""
    raw = draw(st.sampled_from(files))
    if raw.startswith(PNG) and draw(st.integers(0, 3)):
        chunks = split(raw)
        for _ in range(draw(st.integers(1, 3))):
            _change_chunks(draw, chunks)
        raw = join(chunks)
    if draw(st.integers(0, 2)) == 0:
        changed = bytearray(raw)
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(changed)))
            end = min(len(changed), start + draw(st.integers(0, 6)))
            changed[start:end] = draw(
                st.one_of(st.binary(max_size=6), st.sampled_from((b"\xff", b"\0" * 4, b"\xff" * 4)))
            )
        raw = bytes(changed)
    if draw(st.integers(0, 9)) == 0:
        raw = raw[: draw(st.integers(0, len(raw)))]
    return raw


def _change_chunks(draw: Any, chunks: Chunks) -> None:
    """One change of a PNG's chunks, in place."""
    if not chunks:
        return
    place = draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[place]
    how = draw(st.sampled_from(("header", "header", "pixels", "content", "drop", "twice", "swap", "add")))
    if how == "header":
        header = bytearray(chunks[0][1].ljust(13, b"\0"))
        field = draw(st.integers(0, 6))
        if field < 2:
            struct.pack_into(">I", header, 4 * field, draw(st.sampled_from(NUMBERS)))
        else:
            header[6 + field] = draw(st.sampled_from([n for n in NUMBERS if n < 256]))
        chunks[0] = (chunks[0][0], bytes(header))
    elif how == "pixels":
        chunks[place] = (b"IDAT", zlib.compress(draw(st.binary(max_size=400))))
    elif how == "content":
        start = draw(st.integers(0, len(content)))
        chunks[place] = (
            kind,
            content[:start] + draw(st.binary(max_size=8)) + content[start + draw(st.integers(0, 8)) :],
        )
    elif how == "drop":
        del chunks[place]
    elif how == "twice":
        chunks.insert(place, chunks[place])
    elif how == "swap":
        other = draw(st.integers(0, len(chunks) - 1))
        chunks[place], chunks[other] = chunks[other], chunks[place]
    else:
        packed = draw(st.booleans())
        text = draw(st.binary(max_size=60))
        content = b"a\0\0" + zlib.compress(text * 1000) if packed else text
        chunks.insert(place, (draw(st.sampled_from(KINDS)), content))


def examine(raw: bytes, folder: Path) -> bool:
    """Read an input as image, mask and labels of one slice; whether the audit passes it as a scan.

    Raises whatever the readers raise beyond BadImage, and AssertionError where the audit passes a file that cannot be
    cut into slices, where it tells a problem in more than one line, or where it passes what the stages refuse.
    """
    name = "x.png"
    (folder / name).write_bytes(raw)
    checks = audit.Checks(SLICES, percentile=98.0, groups=GROUPS, most_voxels=MOST_VOXELS)
    alone = SlicedScan("x", "A-x", "A-x", name, images=(name,))
    whole = SlicedScan("x", "A-x", "A-x", name, name, name, images=(name,), labels=(name,), masks=(name,))
    for scan in (alone, whole):
        findings = png_audit.check_scan(folder, scan, checks)
        assert all(path == name and what.isprintable() for path, what in findings), findings
        counted = png_audit.lesion_slices(folder, scan, SLICES, GROUPS, MOST_VOXELS)
        if not findings:
            _cut(folder, scan)
            assert len(counted) == (2 if scan.labels else 0)
    refused = _refusal(folder, name)
    assert refused is None or (findings and refused.isprintable()), refused
    return not findings


def _refusal(folder: Path, name: str) -> str | None:
    """What the stages' reader says of a file, None where it reads it."""
    try:
        png_scan.read_volume(folder, [name], SLICES.plane, MOST_VOXELS)
    except BadImage as error:
        return str(error)
    return None


def _cut(folder: Path, scan: SlicedScan) -> None:
    """What the stages do with a scan that the audit has passed."""
    head = png_scan.read_head(folder, {role: scan.files(role) for role in ROLES}, SLICES.plane, MOST_VOXELS)
    cut = volumes.Cut.of(head.mask, (1.0, 1.0, 1.0), SLICES)
    inside = cut.labels(head.mask)
    levels = volumes.eight_bits(cut.image(volumes.to_unit(head.image, head.mask, 98.0)), inside)
    assert levels.shape == inside.shape == (1, SLICES.size, SLICES.size)
    assert inside.sum() == head.mask.sum()
    if scan.labels:
        ids = png_scan.read_volume(folder, scan.labels, SLICES.plane, MOST_VOXELS)
        grouped, unknown = volumes.group_labels(ids, GROUPS)
        assert not unknown
        assert cut.labels(grouped).shape == inside.shape
