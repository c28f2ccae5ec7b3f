"""The cluster launcher's file, as Ray itself reads it, and what a run may expect of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from harness.engine import cluster
from harness.engine.resources import Capacity, Resources

REPO = Path(__file__).resolve().parents[2]


def test_ray_accepts_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((REPO / "ray_cluster.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"][config["head_node_type"]]["max_workers"] == 0


def test_gpus_that_the_launcher_may_start_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the head of a cluster without workers yet: the run asks for GPUs, so that Ray starts them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cluster._groups_of_launcher() == []
    shutil.copy(REPO / "ray_cluster.yaml", tmp_path / "ray_bootstrap_config.yaml")
    coming = tuple(cluster._groups_of_launcher())
    assert coming == (({"CPU": 16.0, "GPU": 1.0}, 8),)
    grows = Capacity(({"CPU": 2.0},), coming)
    assert grows.ask(Resources(gpus=0.5)).each == {"CPU": 1, "GPU": 0.5}
    assert grows.impossible(grows.ask(Resources(cpus=16, gpus=1), workers=8)) == ""
    assert "room for 8" in grows.impossible(grows.ask(Resources(cpus=16, gpus=1), workers=9))


def test_a_damaged_file_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("", "[]", "available_node_types: 3", "max_workers: many", "\x00"):
        (tmp_path / "ray_bootstrap_config.yaml").write_text(text)
        assert cluster._groups_of_launcher() == []
