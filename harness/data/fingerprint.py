"""sha256 of file contents, remembered by path, size and modification time.

The memory is one JSON file in the cache folder. It is replaced whole, so a reader never sees half of it; two
processes that write at once may lose an entry, which is then computed again. A broken memory is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.engine.store import write_atomically
from harness.untrusted import open_regular

YOUNG_NS = 2_000_000_000
"""A file changed this recently may change again within one tick of a coarse clock: it is not remembered."""


class JsonCache:
    """A dictionary of JSON values in one file; without a path it lasts as long as the object."""

    def __init__(self, path: Path | None):
        self.path = path
        self._entries = self._read()
        self._new: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self._new.get(key, self._entries.get(key))

    def put(self, key: str, value: Any) -> None:
        self._new[key] = value

    def save(self) -> None:
        """Merge what is new into the file. A cache that cannot be written is no error."""
        if self.path is not None and self._new:
            merged = {**self._read(), **self._new}
            with contextlib.suppress(OSError):
                write_atomically(self.path, json.dumps(merged))
        self._entries |= self._new
        self._new = {}

    def _read(self) -> dict[str, Any]:
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError):
                entries = json.loads(self.path.read_text())
                if isinstance(entries, dict):
                    return entries
        return {}


def default_cache() -> Path:
    """HARNESS_HOME/cache, or ./runs/cache."""
    from harness.home import Home

    return Home.of().cache


def fingerprints(paths: Iterable[Path], cache: Path | None) -> dict[Path, str | None]:
    """sha256 of each file's bytes; None where a file cannot be read. `cache`: folder of the memory, None for none."""
    memory = JsonCache(cache / "fingerprints.json" if cache else None)
    found: dict[Path, str | None] = {}
    for path in paths:
        if path not in found:
            found[path] = _remembered(path, memory)
    memory.save()
    return found


def sha256_of(path: Path) -> str:
    """sha256 of a regular file's bytes, in hex. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(path: Path, memory: JsonCache) -> str | None:
    try:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = memory.get(str(path.absolute()))
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3 and _is_digest(entry[2]):
            return str(entry[2])
        digest = sha256_of(path)
    except OSError:
        return None
    if time.time_ns() - status.st_mtime_ns > YOUNG_NS:
        memory.put(str(path.absolute()), [*stamp, digest])
    return digest


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def contents_of(paths: Iterable[str], cache: Path | None) -> str:
    """sha256 of what these files, and all files of these folders, hold; "" without any. What is absent counts as such.

    Where they lie does not matter, nor what they are called; the order does.
    """
    found: list[str] = []
    for given in paths:
        path = Path(given).expanduser()
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        present = [each for each in files if each.is_file()]
        hashes = fingerprints(present, cache)
        found += [hashes[each] or "unreadable" for each in present] or ["absent"]
    return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""
