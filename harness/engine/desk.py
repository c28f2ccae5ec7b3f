"""Where runs on one store leave notes for each other: a folder, or a prefix of object storage."""

from __future__ import annotations

import contextlib
import os
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Desk(ABC):
    """Small texts by name ("leases/KEY", "runs/RUN.json"). A name is created by one of all that try."""

    @abstractmethod
    def create(self, name: str, text: str) -> bool:
        """Leave a note unless there is one. False if there is."""

    @abstractmethod
    def read(self, name: str) -> str | None:
        """The note, None where there is none."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Leave a note in place of any that is there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a note away, if it is there."""

    @abstractmethod
    def seize(self, name: str) -> None:
        """Take away a note whose author is dead; of several that do so at once, all may go on to `create`."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of all notes of a folder, without it."""


class FolderDesk(Desk):
    """Notes as files."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("runs", "leases"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def create(self, name: str, text: str) -> bool:
        try:
            descriptor = os.open(self.root / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return True

    def read(self, name: str) -> str | None:
        try:
            return (self.root / name).read_text()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        temporary.write_text(text)
        os.replace(temporary, path)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def seize(self, name: str) -> None:
        path = self.root / name
        grave = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # of several heirs one rename succeeds
            os.rename(path, grave)
            grave.unlink()

    def names(self, folder: str) -> list[str]:
        return [path.name for path in (self.root / folder).iterdir() if not path.name.startswith(".")]


class ObjectDesk(Desk):
    """Notes as objects behind an fsspec filesystem that can create conditionally, as S3 and GCS do.

    Where two heirs seize a dead run's note at the same moment, both may end up computing: a waste, no harm.
    """

    def __init__(self, fs: Any, base: str):
        self.fs, self.base = fs, base

    def create(self, name: str, text: str) -> bool:
        try:
            self.fs.pipe_file(f"{self.base}/{name}", text.encode(), mode="create")
        except FileExistsError:
            return False
        return True

    def read(self, name: str) -> str | None:
        try:
            return bytes(self.fs.cat_file(f"{self.base}/{name}")).decode()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        self.fs.pipe_file(f"{self.base}/{name}", text.encode())

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.base}/{name}")

    seize = remove

    def names(self, folder: str) -> list[str]:
        try:
            return [str(path).rpartition("/")[2] for path in self.fs.ls(f"{self.base}/{folder}", detail=False)]
        except FileNotFoundError:
            return []
