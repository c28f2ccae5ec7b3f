"""A store on object storage: a real S3-speaking server, the real command, credentials only from the environment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import s3
import tiny

BUCKET = "studies"
STORE = f"s3://{BUCKET}/lab/store"


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    with s3.server(BUCKET) as environment:
        yield environment


@pytest.fixture(scope="module")
def finished(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s3")
    tiny.write(folder)
    answer = _run(folder, bucket, cache="first")
    assert answer["failed"] == answer["blocked"] == 0
    assert answer["executed"] > 20
    return folder


def _run(folder: Path, bucket: dict[str, str], cache: str) -> dict:
    arguments = ("run", "tiny.yaml", "--store", STORE, "--tracking", "none")
    return tiny.run_json(*arguments, cwd=folder, HARNESS_CACHE=str(folder / cache), **bucket)


def test_another_machine_finds_everything_done(finished: Path, bucket: dict[str, str]) -> None:
    records = pl.read_parquet(finished / "runs" / "tiny" / "records.parquet")
    shutil.rmtree(finished / "runs")
    answer = _run(finished, bucket, cache="second")
    assert (answer["executed"], answer["failed"]) == (0, 0)
    assert answer["cached"] > 20
    assert pl.read_parquet(finished / "runs" / "tiny" / "records.parquet").equals(records)


def test_credentials_are_kept_nowhere(finished: Path) -> None:
    holding = [
        path
        for path in finished.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in (s3.SECRET, s3.ID))
    ]
    assert holding == []


def test_what_was_not_uploaded_is_not_computed_again(bucket: dict[str, str], tmp_path: Path) -> None:
    """The upload of an artifact is interrupted: the next attempt publishes what the cache holds."""
    import os

    from harness.engine.remote_store import RemoteStore
    from harness.engine.store import Manifest, open_store

    before = dict(os.environ)
    os.environ.update(bucket)
    try:
        store = open_store(f"s3://{BUCKET}/other", tmp_path)
        assert isinstance(store, RemoteStore)
        key = "ab" * 32
        folder = store.begin(key, "run")
        (folder / "number.txt").write_text("7")
        store.cache.commit(folder, Manifest(key, "score", "seven", {}, {}, 1.0, 1.0))
        assert not store.has(key)
        assert store.recover(key)
        assert store.has(key)
        assert (open_store(f"s3://{BUCKET}/other", tmp_path / "elsewhere").read(key) / "number.txt").read_text() == "7"
        assert not store.recover("cd" * 32)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(
    ("store", "changes", "message"),
    [
        ("s3://no-such-bucket/store", {}, "the store cannot be written"),
        (STORE, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store cannot be written"),
        ("s3://id:hunter2@studies/store", {}, "credentials do not belong in an address"),
        ("nonsense://studies/store", {}, "no such kind of store"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(
    tmp_path: Path, bucket: dict[str, str], store: str, changes: dict[str, str], message: str
) -> None:
    tiny.write(tmp_path)
    done = tiny.harness("run", "tiny.yaml", "--store", store, cwd=tmp_path, **(bucket | changes))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert "hunter2" not in done.stderr
    assert s3.SECRET not in done.stderr
