"""Commits are whole or absent, corruption is noticed, and remote stores behave as local ones."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from harness.engine.remote_store import RemoteStore
from harness.engine.store import CorruptArtifact, LocalStore, Manifest, Store, open_store
from harness.problems import UserError

KEY = "ab" + "0" * 62


def manifest(key: str = KEY) -> Manifest:
    return Manifest(key, "score", "a title", {"seed": 1}, {}, 0.5, 10.0)


def put(store: Store, text: str = "hello", key: str = KEY) -> None:
    folder = store.begin(key, "run")
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text(text)
    (folder / "b.bin").write_bytes(b"\x00" * 1000)
    store.commit(folder, manifest(key))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LocalStore | RemoteStore:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}/store"
    return open_store(url, cache=tmp_path / "cache")


def test_what_was_committed_is_read_back(store: Store) -> None:
    assert store.manifest(KEY) is None
    with pytest.raises(KeyError):
        store.read(KEY)
    put(store)
    assert (store.read(KEY) / "sub" / "a.txt").read_text() == "hello"
    assert store.keys() == {KEY}
    found = store.manifest(KEY)
    assert found is not None
    assert found.components == {"seed": 1}
    assert set(found.files) == {"sub/a.txt", "b.bin"}


def test_the_first_commit_of_a_key_stays(store: Store) -> None:
    put(store, "first")
    put(store, "second")
    assert (store.read(KEY) / "sub" / "a.txt").read_text() == "first"
    assert store.keys() == {KEY}


def test_an_artifact_set_aside_is_gone_and_kept(store: Store, tmp_path: Path) -> None:
    put(store)
    store.set_aside(KEY, "why not")
    assert store.manifest(KEY) is None
    assert "why not" in next((store.root / "corrupt").glob("*/REASON.txt")).read_text()
    put(store)
    assert store.read(KEY)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "empty manifest", "no manifest"])
def test_damage_is_noticed_on_read(tmp_path: Path, damage: str) -> None:
    put(LocalStore(tmp_path))
    store = LocalStore(tmp_path)
    file = tmp_path / "objects" / KEY[:2] / KEY / "b.bin"
    described = file.parent / "manifest.json"
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[500] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "truncate":
        os.truncate(file, 10)
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        described.write_text("{]")
    elif damage == "empty manifest":
        described.write_text("")
    else:
        described.unlink()
    with pytest.raises(CorruptArtifact):
        store.read(KEY)


def test_damage_after_a_first_read_is_noticed_too(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store)
    file = store.read(KEY) / "b.bin"
    file.write_bytes(b"\x01" * 1000)
    with pytest.raises(CorruptArtifact, match=r"b\.bin fails its checksum"):
        store.read(KEY)


def test_remote_damage_is_noticed(tmp_path: Path) -> None:
    remote = open_store(f"memory://{tmp_path.name}/r", cache=tmp_path / "one")
    assert isinstance(remote, RemoteStore)
    put(remote)
    remote.fs.pipe_file(f"{remote._object(KEY)}/b.bin", b"\x02" * 1000)
    elsewhere = open_store(f"memory://{tmp_path.name}/r", cache=tmp_path / "two")
    with pytest.raises(CorruptArtifact, match=r"b\.bin"):
        elsewhere.read(KEY)


def test_a_half_written_artifact_does_not_exist(store: Store) -> None:
    folder = store.begin(KEY, "run")
    (folder / "a.txt").write_text("half")
    assert store.manifest(KEY) is None
    assert store.keys() == set()


def test_concurrent_commits_of_one_key_leave_one_whole_artifact(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.prepare()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                put(store)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (LocalStore(tmp_path).read(KEY) / "sub" / "a.txt").read_text() == "hello"
    assert not list((tmp_path / "tmp" / "run").iterdir())


def test_an_unwritable_store_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"the store cannot be written: .*; name another with --store"):
        open_store(str(tmp_path / "file" / "store"))


def test_an_unknown_kind_of_store_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="no such kind of store"):
        open_store("nosuch://bucket/x")


def test_failures_are_kept_until_the_key_is_committed(store: Store) -> None:
    store.note_failure(KEY, {"error": "ValueError: x"})
    assert store.failure(KEY) == {"error": "ValueError: x"}
    put(store)
    assert store.failure(KEY) is None


@pytest.mark.parametrize("name", ["../../escape.txt", "/tmp/escape.txt", "a/../../b"])
def test_a_manifest_cannot_name_a_file_outside_its_artifact(tmp_path: Path, name: str) -> None:
    """Whoever shares a bucket may write a manifest; what it names is never fetched to elsewhere."""
    text = Manifest("k" * 64, "score", "t", {}, {}, 1.0, 1.0, {name: (1, "0" * 64)}).to_json()
    with pytest.raises(CorruptArtifact, match="outside the artifact"):
        Manifest.parse("k" * 64, text.encode())
