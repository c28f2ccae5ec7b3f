"""Fingerprints follow contents; their memory is a convenience that may break."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from harness.data.fingerprint import fingerprints


def old_file(path: Path, text: str) -> Path:
    path.write_text(text)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_it_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a", "hello")
    assert fingerprints([path], None)[path] == hashlib.sha256(b"hello").hexdigest()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a", "hello")
    cache = tmp_path / "cache"
    first = fingerprints([path], cache)
    old_file(path, "HELLO")  # same size, same time: the one change the memory cannot see
    assert fingerprints([path], cache) == first
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert fingerprints([path], cache) != first


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    path, cache = tmp_path / "a", tmp_path / "cache"
    path.write_text("hello")
    fingerprints([path], cache)
    assert not (cache / "fingerprints.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"PATH": 3}', '{"PATH": [5, 1000000000000000000, "short"]}', "\x00"])
def test_a_broken_memory_is_ignored(tmp_path: Path, text: str) -> None:
    path, cache = old_file(tmp_path / "a", "hello"), tmp_path / "cache"
    cache.mkdir()
    (cache / "fingerprints.json").write_text(text.replace("PATH", str(path)))
    assert fingerprints([path], cache)[path] == hashlib.sha256(b"hello").hexdigest()
    assert str(path) in json.loads((cache / "fingerprints.json").read_text())


def test_what_another_process_remembered_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = [old_file(tmp_path / name, name) for name in "ab"]
    fingerprints(paths[:1], cache)
    fingerprints(paths[1:], cache)
    assert set(json.loads((cache / "fingerprints.json").read_text())) == set(map(str, paths))


def test_an_unreadable_file_has_none(tmp_path: Path) -> None:
    assert fingerprints([tmp_path / "absent", tmp_path], None) == {tmp_path / "absent": None, tmp_path: None}


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a", "hello")
    (tmp_path / "cache").write_text("a file, where a folder should be")
    assert fingerprints([path], tmp_path / "cache")[path]
