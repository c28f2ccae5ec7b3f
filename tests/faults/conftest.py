"""What all fault tests share: an undisturbed run to compare with, and ways to start from a part of it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mischief
import polars as pl
import pytest
import reliability
from lab import METHODS, Lab


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The benchmark run once with nothing in its way, MLflow included."""
    plugin = mischief.install(tmp_path_factory.mktemp("site"))
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), plugin)
    lab.write()
    answer, _ = lab.run()
    assert answer["failed"] == answer["blocked"] == 0
    return lab


@pytest.fixture
def lab(undisturbed: Lab, tmp_path: Path) -> Lab:
    """A folder in which nothing has run."""
    found = Lab(tmp_path, undisturbed.plugin)
    found.write()
    return found


@pytest.fixture
def trained(undisturbed: Lab, lab: Lab) -> Lab:
    """A folder in which images are made and task models trained."""
    for manifest in undisturbed.store.glob("objects/*/*/manifest.json"):
        if json.loads(manifest.read_text())["kind"] in ("images", "labels", "train"):
            shelf = manifest.parent.parent.name
            shutil.copytree(manifest.parent, lab.store / "objects" / shelf / manifest.parent.name)
    return lab


@pytest.fixture
def complete(undisturbed: Lab, lab: Lab) -> Lab:
    """A folder in which all stages are finished, but nothing is collected or logged."""
    shutil.copytree(undisturbed.store / "objects", lab.store / "objects")
    return lab


@pytest.fixture
def survived(undisturbed: Lab) -> Callable[..., None]:
    """Asserts what must hold after every fault, and keeps the row for the page.

    before:  what was finished when the fault struck, as `Lab.finished` gave it.
    ruined:  titles whose artifacts the fault destroyed: only these may have been made again.
    methods: rows to compare; all unless a plugin's own are rightly missing.
    """
    started = time.monotonic()

    def check(
        row: str,
        lab: Lab,
        saw: str = "",
        before: dict[str, tuple[str, int]] | None = None,
        ruined: Sequence[str] = (),
        methods: tuple[str, ...] = tuple(METHODS),
    ) -> None:
        wanted, found = ((each.records().filter(pl.col("method").is_in(methods))) for each in (undisturbed, lab))
        assert found.equals(wanted), "the records differ from those of an undisturbed run"
        after = lab.finished()
        again = {title for key, (title, at) in (before or {}).items() if after.get(key, ("", 0))[1] != at}
        assert again <= set(ruined), "what had finished ran again"
        reliability.note(row, saw=saw, seconds=time.monotonic() - started)

    return check


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1500))
