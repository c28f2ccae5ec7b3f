"""What was found whole is not read again by the next run, unless anything about it looks different."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.engine.store import VERIFIED, CorruptArtifact, LocalStore, Manifest

KEY = "ab" + "0" * 62
OTHER = "cd" + "1" * 62


def put(store: LocalStore, key: str = KEY) -> Path:
    folder = store.begin(key, "run")
    (folder / "a.bin").write_bytes(b"\x00" * 100)
    store.commit(folder, Manifest(key, "score", "a title", {"seed": 1}, {}, 0.5, 10.0))
    return store.read(key) / "a.bin"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of an artifact that a run has verified, and remembered."""
    found = put(LocalStore(tmp_path))
    store = LocalStore(tmp_path)
    store.verify(KEY)
    store.remember()
    return found


def flip(path: Path) -> None:
    """One bit of the contents, as a disk may do it: size, times and inode stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_bit_that_flips_unseen_is_left_to_readers(tmp_path: Path, file: Path) -> None:
    flip(file)
    store = LocalStore(tmp_path)
    store.verify(KEY)
    with pytest.raises(CorruptArtifact, match="fails its checksum"):
        store.read(KEY)


@pytest.mark.parametrize("name", [VERIFIED, "nothing"])
def test_without_the_memory_contents_are_read(tmp_path: Path, file: Path, name: str) -> None:
    flip(file)
    (tmp_path / name).unlink(missing_ok=True)
    store = LocalStore(tmp_path)
    if name == VERIFIED:
        with pytest.raises(CorruptArtifact, match="fails its checksum"):
            store.verify(KEY)
    else:
        store.verify(KEY)


@pytest.mark.parametrize("damage", ["touch", "replace", "truncate", "remove", "manifest", "no manifest"])
def test_whatever_looks_different_is_read_again(tmp_path: Path, file: Path, damage: str) -> None:
    described = file.with_name("manifest.json")
    flip(file)
    if damage == "touch":
        os.utime(file)
    elif damage == "replace":
        stat = file.stat()
        copy = file.with_name("copy")
        copy.write_bytes(file.read_bytes())
        os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.replace(copy, file)
    elif damage == "truncate":
        os.truncate(file, 10)
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        described.write_text(described.read_text())
    else:
        described.unlink()
    with pytest.raises(CorruptArtifact):
        LocalStore(tmp_path).verify(KEY)


def test_what_is_absent_is_no_corruption(tmp_path: Path, file: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(KeyError):
        store.verify(OTHER)
    store.set_aside(KEY, "tests")
    with pytest.raises(KeyError):
        LocalStore(tmp_path).verify(KEY)


@pytest.mark.parametrize("text", ["", "{]", "[]", '{"KEY": 3}', '{"KEY": []}', '{"KEY": [["a.bin"]]}', '{"KEY": [1]}'])
def test_a_damaged_memory_is_none(tmp_path: Path, file: Path, text: str) -> None:
    (tmp_path / VERIFIED).write_text(text.replace("KEY", KEY))
    flip(file)
    with pytest.raises(CorruptArtifact):
        LocalStore(tmp_path).verify(KEY)


def test_the_memory_holds_what_is_there_and_was_verified(tmp_path: Path, file: Path) -> None:
    store = LocalStore(tmp_path)
    put(store, OTHER)
    store.verify(KEY)
    store.remember()
    assert set(json.loads((tmp_path / VERIFIED).read_text())) == {KEY}, "nobody has verified the other"
    store.verify(OTHER)
    store.set_aside(KEY, "tests")
    store.remember()
    assert set(json.loads((tmp_path / VERIFIED).read_text())) == {OTHER}


def test_reading_alone_writes_no_memory(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store)
    store.remember()
    assert not (tmp_path / VERIFIED).exists()
