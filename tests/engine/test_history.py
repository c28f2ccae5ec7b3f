"""What stages are expected to take, before and after some were seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.engine.history import DEFAULTS, PER_ITERATION, History
from harness.engine.plan import Stage


def fit(iterations: int, kind: str = "fit", **fields: Any) -> Stage:
    method = {"id": "toy", "net": {"training": {"iterations": iterations}}, **fields}
    return Stage(kind, f"{kind} {iterations}", "toy_stages:add", {"method": method})


def test_training_is_priced_by_its_iterations(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.estimate(fit(500)) == pytest.approx(500 * PER_ITERATION), "never seen"
    history.add(fit(500), 50.0)
    assert history.estimate(fit(2000)) == pytest.approx(200), "the same work, four times as long"
    assert not history.known([fit(2000)])


def test_methods_have_rates_of_their_own(tmp_path: Path) -> None:
    history = History(tmp_path)
    slow, fast = (Stage("fit", name, "toy_stages:add", fit(500).params, code=(f"m:{name}",)) for name in "ab")
    history.add(slow, 500.0)
    assert history.estimate(fast) == pytest.approx(500 * PER_ITERATION)


def test_the_same_settings_count_most(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add(fit(500), 50.0)
    history.add(fit(1000, width=8), 300.0)
    history.save()
    again = History(tmp_path)
    assert again.estimate(fit(500)) == pytest.approx(50)
    assert again.known([fit(500), fit(1000, width=8)])


def test_applying_a_trained_method_is_not_training(tmp_path: Path) -> None:
    assert History(tmp_path).estimate(fit(500, kind="apply")) == DEFAULTS["apply"]
