"""Files that a training leaves while it runs, so that a kill costs little of it."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values so that a kill at any moment leaves the old file or the new one.

    The file is what torch.save wrote, then its SHA-256 (torch itself does not notice a flipped bit).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w+b") as file:
        torch.save(dict(content), file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote, on the CPU; None, with a warning in the log, where that is not there whole."""
    if not path.exists():
        return None
    content = path.read_bytes()
    body, digest = content[:-32], content[-32:]
    if hashlib.sha256(body).digest() != digest:
        logger.warning("%s is damaged; training starts afresh", path)
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
