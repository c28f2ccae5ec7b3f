"""A Ray cluster of several nodes on this machine, in a process of its own, which need not know the harness.

    with Nodes([{"num_cpus": 1}, {"num_cpus": 1}], bare_python(folder)) as nodes:
        nodes.address          # for --address
        nodes.kill(1)          # as when the plug is pulled
        nodes.add(num_cpus=2)

Run as a script it is that process: it takes one JSON command a line, and answers each with one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

AUTH = {"RAY_AUTH_MODE": "disabled"}
"""For drivers too: a cluster has its own rule, and a fresh machine has no token yet."""


class Nodes:
    """The first entry is the head; each is what Ray's test cluster takes for a node (num_cpus, num_gpus, ...)."""

    def __init__(self, nodes: Sequence[Mapping[str, Any]], python: str = sys.executable, **environment: str):
        unwanted = ("PYTHONPATH", "RAY_ADDRESS")
        env = {name: value for name, value in os.environ.items() if name not in unwanted}
        env |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **AUTH, **environment}
        self.process = subprocess.Popen(
            [python, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        answer = self._ask({"do": "start", "nodes": list(nodes)})
        self.address, self.client = answer["address"], answer["client"]

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self, index: int) -> None:
        """Take the node that was added as number `index` (the head is 0) away, ungracefully."""
        self._ask({"do": "kill", "index": index})

    def await_work(self, index: int, title: str, seconds: float = 120) -> None:
        """Until a worker of that node runs a stage whose title starts so."""
        raylet = psutil.Process(self._ask({"do": "raylet", "index": index})["pid"])
        deadline = time.monotonic() + seconds
        while not any(_titled(process, title) for process in raylet.children()):
            assert time.monotonic() < deadline, f"node {index} never ran {title}"
            time.sleep(0.05)

    def add(self, **node: Any) -> None:
        self._ask({"do": "add", "node": node})

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # Ray has things to say on stdout too
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the cluster's process ended")


def _titled(process: psutil.Process, title: str) -> bool:
    try:
        return " ".join(process.cmdline()).startswith(f"ray::{title}")
    except psutil.Error:
        return False


def _await_port(host: str, port: int, seconds: float = 60) -> None:
    """Ray calls a node up before its proxy for clients listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def bare_python(folder: Path) -> str:
    """An interpreter with this environment's packages but without this project: what a cluster's node has."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    # Folders named in a .pth file are searched, but .pth files in them, such as that of an editable install, are not.
    (site / "packages.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return str(folder / "bin" / "python")


def _serve() -> None:
    from ray.cluster_utils import Cluster

    cluster, nodes = None, []
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "start":
            head, *others = command["nodes"]
            cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
            nodes = [cluster.head_node, *(cluster.add_node(**node) for node in others)]
            cluster.wait_for_nodes()
            port = head.get("ray_client_server_port")
            host = cluster.address.partition(":")[0]
            if port:
                _await_port(host, port)
            answer = {"address": cluster.address, "client": f"ray://{host}:{port}" if port else ""}
        elif command["do"] == "kill":
            cluster.remove_node(nodes[command["index"]], allow_graceful=False)
            answer = {"killed": command["index"]}
        elif command["do"] == "raylet":
            answer = {"pid": nodes[command["index"]].all_processes["raylet"][0].process.pid}
        else:
            nodes.append(cluster.add_node(**command["node"]))
            answer = {"added": len(nodes) - 1}
        print("\n" + json.dumps(answer), flush=True)
    if cluster is not None:
        cluster.shutdown()


if __name__ == "__main__":
    _serve()
