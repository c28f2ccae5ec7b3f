"""A store on object storage, or behind any other fsspec URL, worked on through a local cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.engine.desk import Desk, ObjectDesk
from harness.engine.store import DOWNLOADS, MANIFEST, CorruptArtifact, LocalStore, Manifest, Store, file_digest
from harness.problems import Problem, UserError

BUCKETS = ("s3:", "s3a:", "gs:", "gcs:", "az:", "abfs:", "adl:")
"""Object storage, whose credentials come from the environment alone."""


class RemoteStore(Store):
    """A store behind an fsspec URL (s3://, gs://, memory://, sftp://…), worked on through a local cache.

    An artifact exists once its manifest does; the manifest is uploaded last. Credentials come from the
    environment, as fsspec's backends read them.
    """

    def __init__(self, url: str, cache: Path):
        import fsspec

        self.url = url.rstrip("/")
        if "@" in urlsplit(self.url).netloc and self.url.startswith(BUCKETS):
            shown = f"{urlsplit(self.url).scheme}://…@{urlsplit(self.url).netloc.rpartition('@')[2]}"
            raise UserError(Problem(shown, "credentials do not belong in an address; leave them to the environment"))
        try:
            # a cached listing would hide what others commit meanwhile
            self.fs, self.base = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(Problem(url, f"no such kind of store: {error}")) from None
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.cache = LocalStore(cache / name)

    @property
    def root(self) -> Path:
        return self.cache.root

    def prepare(self) -> None:
        self.cache.prepare()
        probe = f"{self.base}/tmp/probe-{uuid.uuid4().hex}"
        try:
            self._make_folder(f"{self.base}/tmp")
            self.fs.pipe_file(probe, b"x")
            self.fs.rm_file(probe)
        except Exception as error:
            what = f"the store cannot be written: {type(error).__name__}; check the URL and credentials"
            raise UserError(Problem(self.url, what)) from None

    def _make_folder(self, path: str) -> None:
        """Where there are folders. On object storage this would make a bucket of a name that was mistyped."""
        if not self.url.startswith(BUCKETS):
            self.fs.makedirs(path, exist_ok=True)

    def _object(self, key: str) -> str:
        return f"{self.base}/objects/{key[:2]}/{key}"

    def keys(self) -> set[str]:
        try:
            paths = self.fs.glob(f"{self.base}/objects/*/*/{MANIFEST}")
        except FileNotFoundError:
            return set()
        return {str(path).split("/")[-2] for path in paths}

    def manifest(self, key: str) -> Manifest | None:
        try:
            text = self.fs.cat_file(f"{self._object(key)}/{MANIFEST}")
        except FileNotFoundError:
            return None
        return Manifest.parse(key, text)

    def has(self, key: str) -> bool:
        return bool(self.fs.exists(f"{self._object(key)}/{MANIFEST}"))

    def forget(self, key: str) -> None:
        self.fs.invalidate_cache()
        self.cache.forget(key)

    def desk(self) -> Desk:
        return ObjectDesk(self.fs, self.base)

    def read(self, key: str) -> Path:
        manifest = self.manifest(key)
        if manifest is None:
            raise KeyError(key)
        try:
            if self.cache.manifest(key) == manifest:
                return self.cache.read(key)
        except CorruptArtifact as error:
            self.cache.set_aside(key, error.reason)
        folder = self.cache.begin(key, f"{DOWNLOADS}{os.getpid()}")
        for name, (size, digest) in manifest.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.fs.get_file(f"{self._object(key)}/{name}", str(folder / name))
            except FileNotFoundError:
                raise CorruptArtifact(key, f"{name} is missing") from None
            if (folder / name).stat().st_size != size or file_digest(folder / name) != digest:
                raise CorruptArtifact(key, f"{name} fails its checksum")
        self.cache.commit(folder, manifest)
        return self.cache.read(key)

    def verify(self, key: str) -> None:
        manifest = self.manifest(key)
        if manifest is None:
            raise KeyError(key)
        for name, (size, _) in manifest.files.items():  # contents are checked when a stage downloads them
            try:
                if self.fs.size(f"{self._object(key)}/{name}") != size:
                    raise CorruptArtifact(key, f"{name} has the wrong size")
            except FileNotFoundError:
                raise CorruptArtifact(key, f"{name} is missing") from None

    def begin(self, key: str, run: str) -> Path:
        return self.cache.begin(key, run)

    def commit(self, folder: Path, manifest: Manifest) -> None:
        self.cache.commit(folder, manifest)
        self._publish(manifest.key)

    def recover(self, key: str) -> bool:
        """Publish what an earlier attempt on this machine finished but could not upload. False if there is nothing."""
        try:
            self._publish(key)
        except (KeyError, CorruptArtifact):
            return False
        return True

    def _publish(self, key: str) -> None:
        local = self.cache.read(key)
        full = self.cache.manifest(key)
        assert full is not None
        self._make_folder(self._object(key))
        for name in full.files:
            remote = f"{self._object(key)}/{name}"
            self._make_folder(remote.rsplit("/", 1)[0])
            self.fs.put_file(str(local / name), remote)
        self.fs.pipe_file(f"{self._object(key)}/{MANIFEST}", full.to_json().encode())

    def set_aside(self, key: str, reason: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            # the manifest goes first: without it the artifact no longer exists for anybody
            self.fs.rm_file(f"{self._object(key)}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self.fs.mv(self._object(key), f"{self.base}/corrupt/{key[:16]}-{uuid.uuid4().hex[:8]}", recursive=True)
        self.cache.set_aside(key, reason)

    def scratch(self, key: str) -> Path:
        return self.cache.scratch(key)

    def note_failure(self, key: str, failure: Mapping[str, Any]) -> None:
        self.cache.note_failure(key, failure)

    def failure(self, key: str) -> dict[str, Any] | None:
        return self.cache.failure(key)
