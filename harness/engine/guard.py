"""Keeps a stage to its own inputs: while it runs, Python may open no other artifact and no raw data.

Methods are handed objects, not paths, so this only matters to code that goes looking. It catches mistakes and
shortcuts with a clear message; it is no sandbox (compiled code can open files unseen): plugins run with the
user's rights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.api import AccessDenied

_EVENTS = {"open", "os.listdir", "os.scandir"}
_CODE = (".py", ".pyc", ".so")


class _Guard:
    installed = False
    protected: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


@contextmanager
def only(allowed: tuple[str, ...], protected: tuple[str, ...]) -> Iterator[None]:
    """Within the block, opening a file below `protected` raises AccessDenied unless it is below `allowed`."""
    if not _Guard.installed:
        sys.addaudithook(_check)  # hooks cannot be removed; ours is idle outside the block
        _Guard.installed = True
    _Guard.allowed = tuple(os.path.realpath(path) for path in allowed)
    _Guard.protected = tuple(os.path.realpath(path) for path in protected)
    try:
        yield
    finally:
        _Guard.protected = ()


def _check(event: str, args: tuple[Any, ...]) -> None:
    if not _Guard.protected or event not in _EVENTS:
        return
    path = args[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return
    name = os.path.realpath(os.fsdecode(path))
    if _below(name, _Guard.protected) and not _below(name, _Guard.allowed) and not name.endswith(_CODE):
        what = os.path.basename(name)
        raise AccessDenied(f"{what} is not among this stage's inputs; read what the harness hands over")


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)
