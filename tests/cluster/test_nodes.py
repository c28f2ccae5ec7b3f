"""A cluster of several nodes that know nothing of this project: code reaches them, stages are packed, errors told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from drive import drive, refusal
from nodes import Nodes, bare_python

CLIENT_PORT = 23417


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = bare_python(tmp_path_factory.mktemp("bare") / "venv")
    ask = [found, "-c", "import ray\ntry:\n    import harness.api\nexcept ImportError:\n    print('bare')"]
    assert subprocess.run(ask, capture_output=True, text=True, env={}, cwd="/").stdout == "bare\n"
    return found


@pytest.fixture(scope="module")
def nodes(python: str) -> Iterator[Nodes]:
    """A head without GPUs that takes clients, and a node with two (declared, not there)."""
    head = {"num_cpus": 1, "ray_client_server_port": CLIENT_PORT}
    with Nodes([head, {"num_cpus": 8, "num_gpus": 2}], python) as found:
        yield found


def seen(store: Path, answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title → what the stage saw of its node."""
    objects = store / "objects"
    return {t: json.loads((objects / k[:2] / k / "seen.json").read_text()) for t, k in answer["keys"].items()}


def test_gpu_stages_are_packed_and_others_see_no_gpu(nodes: Nodes, tmp_path: Path) -> None:
    halves = [{"name": f"half{i}", "fn": "where", "resources": "apply", "params": {"sleep": 1.5}} for i in range(6)]
    whole = [{"name": "whole", "fn": "where", "resources": "train", "params": {"sleep": 1.5}}]
    none = [{"name": f"none{i}", "fn": "where"} for i in range(2)]
    answer = drive(nodes.address, str(tmp_path), [*halves, *whole, *none])
    assert answer["executed"] == 9, answer
    found = seen(tmp_path, answer)
    assert {found[n["name"]]["gpus"] for n in none} == {""}
    shares = {"half": 0.5, "whole": 1.0}
    on_gpu = {title: one for title, one in found.items() if not title.startswith("none")}
    assert {one["gpus"] for one in on_gpu.values()} == {"0", "1"}, "one GPU was left idle while stages waited"
    for one in on_gpu.values():
        beside = [t for t, o in on_gpu.items() if o["gpus"] == one["gpus"] and o["from"] <= one["from"] < o["to"]]
        load = sum(shares[title.rstrip("0123456789")] for title in beside)
        assert load <= 1.0
    assert len({one["pid"] for one in on_gpu.values()}) == len(on_gpu), (
        "a process keeps the GPU that it was given first"
    )


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["from"] < other["to"] and other["from"] < one["to"])


def test_what_no_single_node_has_is_told_at_once(nodes: Nodes, tmp_path: Path) -> None:
    wanted = {"score": {"cpus": 9}, "apply": {"gpus": 4}, "train": {"cpus": 1, "gpus": 1}}
    stages = [{"name": "cpus", "fn": "where"}, {"name": "gpus", "fn": "where", "resources": "apply"}]
    answer = drive(nodes.address, str(tmp_path), stages, wanted)
    assert answer["failures"] == {
        "cpus": "asks for 9 CPU, the largest node has 8 CPU; see resources in the YAML",
        "gpus": "asks for 4 GPU, the largest node has 2 GPU; see resources in the YAML",
    }


def test_a_client_runs_stages_too(nodes: Nodes, tmp_path: Path) -> None:
    answer = drive(
        nodes.client, str(tmp_path), [{"name": f"s{i}", "fn": "add", "params": {"value": i}} for i in range(3)]
    )
    assert (answer["executed"], answer["failures"]) == (3, {})


def test_a_client_whose_server_died_at_its_start_asks_again(tmp_path: Path) -> None:
    """Ray's proxy forks among threads: under load the process for a client is dead before it is one."""
    python, tried = bare_python(tmp_path / "venv"), tmp_path / "tried"
    next((tmp_path / "venv").glob("lib/python*/site-packages")).joinpath("sitecustomize.py").write_text(
        f"""
import os, signal, sys
if any("mode=specific-server" in word for word in sys.orig_argv) and not os.path.exists({str(tried)!r}):
    open({str(tried)!r}, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    (tmp_path / "store").mkdir()
    with Nodes([{"num_cpus": 2, "ray_client_server_port": CLIENT_PORT + 1}], python) as found:
        hasty = {"RAY_CLIENT_RECONNECT_GRACE_PERIOD": "1"}  # how long Ray waits before it tells
        answer = drive(found.client, str(tmp_path / "store"), [{"name": "s", "fn": "add"}], **hasty)
    assert tried.exists()
    assert (answer["executed"], answer["failures"]) == (1, {})


def test_an_address_where_nothing_listens_is_refused(tmp_path: Path) -> None:
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        (told,) = refusal(address, str(tmp_path), [{"name": "s", "fn": "add"}])
        assert "no Ray cluster can be reached" in told


def test_a_store_that_nodes_do_not_see_is_refused(python: str, tmp_path: Path) -> None:
    """The nodes live where another filesystem lies over the store's folder."""
    store = tmp_path / "store"
    store.mkdir()
    apart = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {store} && exec {python} "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "-c", ""], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount within a namespace")
    wrapper = tmp_path / "python-apart"
    wrapper.write_text(
        f'#!/bin/sh\nexec unshare --mount sh -c \'mount -t tmpfs none {store} && exec {python} "$@"\' sh "$@"\n'
    )
    wrapper.chmod(0o755)
    with Nodes([{"num_cpus": 1}], str(wrapper)) as apart_nodes:
        (told,) = refusal(apart_nodes.address, str(store), [{"name": "s", "fn": "add"}])
    assert told.startswith(f"{store}: is not seen by every node; put it on a shared path")
    assert os.listdir(store / "objects") == []


def test_a_node_added_while_a_run_goes_on_is_used(python: str, tmp_path: Path) -> None:
    stages = [{"name": f"s{i}", "fn": "where", "params": {"sleep": 2}} for i in range(12)]
    with Nodes([{"num_cpus": 1}], python) as growing, ThreadPoolExecutor(1) as driver:
        running = driver.submit(drive, growing.address, str(tmp_path), stages)
        while not any((tmp_path / "objects").glob("*/*/seen.json")):
            time.sleep(0.2)
        growing.add(num_cpus=2)
        found = list(seen(tmp_path, running.result()).values())
    assert max(sum(_overlap(one, other) for other in found) for one in found) >= 3
