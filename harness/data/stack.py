"""Slices of many scans, stacked on disk: memory stays at one scan however large the site."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np


class Stack:
    """Arrays [n, H, W] of one dtype, appended to a file of the scratch folder and mapped back as one.

    Use as a context manager; `array()` after the last `append`. The file goes with the scratch folder.
    """

    def __init__(self, path: Path, dtype: type[np.generic]):
        self.path = path
        self.dtype = np.dtype(dtype)
        self.shape: tuple[int, int, int] | None = None

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def append(self, slices: np.ndarray) -> None:
        """Add [n, H, W]; H and W must be those of the first. Raises ValueError otherwise."""
        if self.shape is not None and slices.shape[1:] != self.shape[1:]:
            raise ValueError(f"slices of {slices.shape[1:]} after slices of {self.shape[1:]}")
        self._file.write(np.ascontiguousarray(slices, dtype=self.dtype).data)
        self.shape = (len(self) + len(slices), slices.shape[1], slices.shape[2])

    def array(self) -> np.ndarray:
        """All slices, memory-mapped, read-only. Raises ValueError when nothing was appended."""
        if not len(self):
            raise ValueError("no slices: this split of the site has no scans")
        self._file.flush()
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=self.shape)
