"""Content-addressed artifacts: committed whole or not at all, verified when read.

    STORE/objects/ab/abcd…/   the files of one artifact and manifest.json (sizes, sha256, what made it)
    STORE/scratch/KEY/        checkpoints of unfinished stages; survive a kill
    STORE/tmp/RUN/…           artifacts being written; a dead run's are swept away
    STORE/corrupt/            artifacts that failed their checksum, set aside
    STORE/failures/KEY.json   the last failure of a stage, with the worker's own traceback
    STORE/verified.json       how files looked when their contents were last checked; may be deleted at any time
    STORE/runs, leases        who is computing what (engine/lease.py)

A commit writes to tmp on the same filesystem, syncs, and renames once. remote_store.py keeps the same layout behind any
fsspec URL, works in a local cache, and uploads the manifest last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.engine.desk import Desk, FolderDesk
from harness.problems import Problem, UserError

MANIFEST = "manifest.json"
DOWNLOADS = "download-"
"""In STORE/tmp, followed by the process that downloads there."""
VERIFIED = "verified.json"
Look = tuple[str, int, int, int]
"""How a file looks without opening it: name, bytes, time of change in ns, inode."""
LAST_WORDS = "last-words.txt"
"""In a stage's scratch: where its process was when its time limit ended it."""


class CorruptArtifact(Exception):
    """An artifact that is not what its manifest says. Carries the key and the first difference."""

    def __init__(self, key: str, reason: str):
        super().__init__(key, reason)
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class Manifest:
    """What is kept beside an artifact's files.

    files: name → (bytes, sha256). components: what the key was made of. code: reachable definition → digest.
    seconds: wall time of the stage function. peak_mib: peak memory of the worker process. made: host, versions.
    """

    key: str
    kind: str
    title: str
    components: Mapping[str, Any]
    code: Mapping[str, str]
    seconds: float
    peak_mib: float
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def parse(cls, key: str, text: bytes) -> Manifest:
        """The manifest of `key` as read from a store. Raises CorruptArtifact if it is not one, or another key's."""
        try:
            raw = json.loads(text)
            raw["files"] = {name: (int(size), str(digest)) for name, (size, digest) in raw["files"].items()}
            manifest = cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CorruptArtifact(key, "the manifest is unreadable") from None
        if any(name.startswith("/") or ".." in name.split("/") for name in manifest.files):
            raise CorruptArtifact(key, "the manifest names a file outside the artifact")
        if manifest.key != key:
            raise CorruptArtifact(key, "the manifest names another key")
        return manifest


class Store(ABC):
    """Artifacts by key. `open_store` chooses the implementation from a path or URL."""

    url: str

    @abstractmethod
    def keys(self) -> set[str]:
        """Keys of all committed artifacts (not verified)."""

    @abstractmethod
    def manifest(self, key: str) -> Manifest | None:
        """The manifest, None where there is no such artifact. Raises CorruptArtifact if it is unreadable."""

    @abstractmethod
    def has(self, key: str) -> bool:
        """Whether the artifact seems to be there; looks at nothing in it."""

    @abstractmethod
    def forget(self, key: str) -> None:
        """Verify anew at the next read, whatever was verified before."""

    @abstractmethod
    def read(self, key: str) -> Path:
        """A local folder with the artifact's files, verified. Raises KeyError or CorruptArtifact."""

    @abstractmethod
    def begin(self, key: str, run: str) -> Path:
        """An empty folder to write an artifact into."""

    @abstractmethod
    def commit(self, folder: Path, manifest: Manifest) -> None:
        """Publish a folder from `begin` atomically. If another run was first, ours is dropped."""

    @abstractmethod
    def set_aside(self, key: str, reason: str) -> None:
        """Move a corrupt artifact out of the way, keeping it for inspection."""

    @abstractmethod
    def scratch(self, key: str) -> Path:
        """A local folder for checkpoints of this key; created if absent."""

    @abstractmethod
    def note_failure(self, key: str, failure: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def failure(self, key: str) -> dict[str, Any] | None: ...

    @property
    @abstractmethod
    def root(self) -> Path:
        """The local folder: of the store itself, or of a remote store's cache."""

    def verify(self, key: str) -> None:
        """Check every file against the manifest. Raises KeyError or CorruptArtifact."""
        self.read(key)

    @abstractmethod
    def desk(self) -> Desk:
        """Where runs on this store leave notes for each other."""

    def remember(self) -> None:
        """Keep what `verify` has found whole, so that the next run need not read it again."""
        return

    def recover(self, key: str) -> bool:
        """Publish a finished artifact that was left unpublished. False if there is none."""
        return False

    def last_words(self, key: str) -> str:
        """Where a stage was when its time limit ended it, as far as it can be read from here."""
        try:
            return (self.scratch(key) / LAST_WORDS).read_text()
        except OSError:
            return ""


class LocalStore(Store):
    """A store in a folder. Safe for any number of processes on any number of hosts that share the folder."""

    def __init__(self, root: Path):
        self._root = Path(os.path.abspath(root))
        self.url = str(self._root)
        self._verified: dict[str, tuple[Look, ...]] = {}
        self._known: dict[str, tuple[Look, ...]] | None = None
        self._news = False
        self._loading = threading.Lock()

    @property
    def root(self) -> Path:
        return self._root

    def prepare(self) -> None:
        """Create the folders. Raises UserError if the store cannot be written."""
        try:
            for name in ("objects", "tmp", "scratch", "failures", "leases", "runs", "corrupt"):
                (self._root / name).mkdir(parents=True, exist_ok=True)
            probe = self._root / "tmp" / f"probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            what = f"the store cannot be written: {error.strerror or error}; name another with --store"
            raise UserError(Problem(self.url, what)) from None

    def _object(self, key: str) -> Path:
        return self._root / "objects" / key[:2] / key

    def keys(self) -> set[str]:
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            for shelf in os.scandir(self._root / "objects"):
                found.update(entry.name for entry in os.scandir(shelf.path))
        return found

    def manifest(self, key: str) -> Manifest | None:
        try:
            text = (self._object(key) / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if self._object(key).exists():
                raise CorruptArtifact(key, "the manifest is missing") from None
            return None
        return Manifest.parse(key, text)

    def has(self, key: str) -> bool:
        return (self._object(key) / MANIFEST).exists()

    def forget(self, key: str) -> None:
        self._verified.pop(key, None)
        self._remembered().pop(key, None)

    def desk(self) -> Desk:
        return FolderDesk(self._root)

    def read(self, key: str) -> Path:
        manifest = self.manifest(key)
        if manifest is None:
            raise KeyError(key)
        folder = self._object(key)
        seen: list[Look] = []
        for name in manifest.files:
            try:
                seen.append(_look(folder, name))
            except OSError:
                raise CorruptArtifact(key, f"{name} is missing") from None
        if self._verified.get(key) != tuple(seen):
            self._check_files(key, folder, manifest)
            self._verified[key] = tuple(seen)
        return folder

    def verify(self, key: str) -> None:
        """Check every file: by its contents, unless all look as they did when that was last done, by any run.

        A bit that flips on the disk and changes nothing else is therefore left to readers, who always check contents.
        """
        folder, known = str(self._object(key)), self._remembered()
        with contextlib.suppress(OSError):
            if key in known and all(_look(folder, look[0]) == look for look in known[key]):
                return
        try:
            described = _look(folder, MANIFEST)  # before it is read: a later change must show
        except OSError:
            self.read(key)  # says what is wrong
            raise KeyError(key) from None
        self.read(key)
        known[key] = (described, *self._verified[key])
        self._news = True

    def remember(self) -> None:
        if self._news:
            self._news = False
            there = self.keys()
            known = {key: looks for key, looks in self._remembered().items() if key in there}
            with contextlib.suppress(OSError):  # a store that cannot be written is checked anew each time
                write_atomically(self._root / VERIFIED, json.dumps(known, separators=(",", ":")))

    def _remembered(self) -> dict[str, tuple[Look, ...]]:
        with self._loading:
            if self._known is None:
                self._known = {}
                with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                    found = json.loads((self._root / VERIFIED).read_bytes())
                    self._known = {
                        key: tuple((str(name), int(size), int(at), int(inode)) for name, size, at, inode in looks)
                        for key, looks in found.items()
                        if looks
                    }
            return self._known

    def _check_files(self, key: str, folder: Path, manifest: Manifest) -> None:
        for name, (size, digest) in manifest.files.items():
            if (folder / name).stat().st_size != size:
                raise CorruptArtifact(key, f"{name} has {(folder / name).stat().st_size} bytes instead of {size}")
            if file_digest(folder / name) != digest:
                raise CorruptArtifact(key, f"{name} fails its checksum")

    def begin(self, key: str, run: str) -> Path:
        folder = self._root / "tmp" / run / f"{key[:16]}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, manifest: Manifest) -> None:
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        files = {name: ((folder / name).stat().st_size, file_digest(folder / name)) for name in names}
        full = Manifest(**{**manifest.__dict__, "files": files})
        (folder / MANIFEST).write_text(full.to_json())
        for name in (*names, MANIFEST):
            _sync(folder / name)
        _sync(folder)
        final = self._object(manifest.key)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, final)
        except OSError:
            if not (final / MANIFEST).exists():
                raise
            shutil.rmtree(folder, ignore_errors=True)  # another run committed the same key first
        _sync(final.parent)
        shutil.rmtree(self._root / "scratch" / manifest.key, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self._root / "failures" / f"{manifest.key}.json").unlink()

    def set_aside(self, key: str, reason: str) -> None:
        self._verified.pop(key, None)
        aside = self._root / "corrupt" / f"{key[:16]}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._object(key), aside)
            (aside / "REASON.txt").write_text(f"{key}: {reason}\n")

    def scratch(self, key: str) -> Path:
        folder = self._root / "scratch" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def note_failure(self, key: str, failure: Mapping[str, Any]) -> None:
        write_atomically(self._root / "failures" / f"{key}.json", json.dumps(dict(failure), indent=1))

    def failure(self, key: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self._root / "failures" / f"{key}.json").read_text()))
        except (OSError, ValueError):
            return None


def open_store(url: str, cache: Path | None = None, *, create: bool = True) -> Store:
    """A store from a path or an fsspec URL. Raises UserError if it cannot be written (where `create`)."""
    store: Store
    if "://" in url and not url.startswith("file://"):
        from harness.engine.remote_store import RemoteStore

        default = Path(os.environ.get("HARNESS_CACHE", Path.home() / ".cache" / "harness"))
        store = RemoteStore(url, cache or default)
    else:
        store = LocalStore(Path(url.removeprefix("file://")))
    if create:
        store.prepare()
    return store


def _look(folder: str | Path, name: str) -> Look:
    stat = os.stat(f"{folder}/{name}")
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ino


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.write_text(text)
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network filesystems cannot sync a folder
    finally:
        os.close(descriptor)
