"""MLflow through the command line: a tracking server elsewhere, one that is lost, and `harness ui`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import tiny
from mlflow_server import TrackingServer, free_port

from harness.results import leaderboard

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    found = TrackingServer(tmp_path_factory.mktemp("server"))
    try:
        found.start()
        yield found
    finally:
        found.kill()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: TrackingServer) -> Path:
    """A folder in which the tiny benchmark has run once, tracked by the server."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.write(folder)
    answer = tiny.run_json("run", "tiny.yaml", "-j", "2", "--tracking", server.uri, cwd=folder)
    assert (answer["failed"], answer["blocked"], answer["warnings"]) == (0, 0, [])
    return folder


def fetch(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def experiment(uri: str, name: str = "tiny") -> dict[str, Any]:
    found: dict[str, Any] = fetch(f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")["experiment"]
    return found


def runs(uri: str, kind: str, name: str = "tiny") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    order = ["metrics.`dsc` DESC"]
    return list(client.search_runs([experiment(uri, name)["experiment_id"]], f"tags.kind = '{kind}'", order_by=order))


# ------------------------------------------------------------------------------------------- a server elsewhere


def test_a_server_elsewhere_gets_every_number(finished: Path, server: TrackingServer) -> None:
    board = leaderboard.build(finished / "runs" / "tiny")
    shown = runs(server.uri, "leaderboard")
    assert [run.data.tags["method"] for run in shown] == [row.method for row in board.rows]
    for run, row in zip(shown, board.rows, strict=True):
        for metric in board.metrics:
            assert run.data.metrics[metric] == pytest.approx(row.scores[metric].mean, rel=1e-12)
    assert len(runs(server.uri, "cell")) == 2 * 2 + 2, "two methods and the task model, from two sources"
    assert len(runs(server.uri, "invocation")) == 1
    assert not (finished / "runs" / "mlflow.db").exists()


def test_its_artifacts_come_back_as_they_were(finished: Path, server: TrackingServer, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    folder = finished / "runs" / "tiny"
    (invocation,), best = runs(server.uri, "invocation"), runs(server.uri, "leaderboard")[0]
    assert invocation.info.artifact_uri.startswith("mlflow-artifacts:/")
    for name in ("report.html", "records.parquet", "run.json", "figures/matrix-dsc.svg"):
        found = client.download_artifacts(invocation.info.run_id, name, str(tmp_path))
        assert Path(found).read_bytes() == (folder / name).read_bytes(), name
    for name in ("report.html", "leaderboard.csv", "figures/critical-difference.svg"):
        assert Path(client.download_artifacts(best.info.run_id, name, str(tmp_path))).stat().st_size > 0
    table = pl.read_csv(tmp_path / "leaderboard.csv")
    assert table["method"][0] == best.data.tags["method"]
    assert table["dsc_mean"][0] == pytest.approx(best.data.metrics["dsc"], rel=1e-9)


def test_its_security_defaults_are_on(server: TrackingServer, finished: Path) -> None:
    """So the runs above got through them."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0", {"Host": "elsewhere.example"})
    with refused.value as answer:
        assert answer.code == 403
        assert b"Invalid Host header" in answer.read()


def test_the_link_leads_into_the_server_elsewhere(server: TrackingServer, finished: Path) -> None:
    answer = tiny.run_json("ui", "--tracking", server.uri, cwd=finished)
    known = experiment(server.uri)["experiment_id"]
    assert answer["url"] == server.uri
    assert answer["leaderboard"].startswith(f"{server.uri}/#/experiments/{known}/runs?")
    # From a folder in which nothing has run, by name.
    elsewhere = tiny.harness("ui", "tiny", "--tracking", server.uri, "--home", finished / "none", cwd=finished)
    assert elsewhere.stdout == f"leaderboard of tiny: {answer['leaderboard']}\n"
    unknown = tiny.harness("ui", "tinny", "--tracking", server.uri, cwd=finished)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("no leaderboard of 'tinny'")


def test_no_password_is_printed_or_kept(server: TrackingServer, finished: Path, tmp_path: Path) -> None:
    inside = server.uri.replace("http://", f"http://me:{SECRET}@")
    nobody = f"http://me:{SECRET}@127.0.0.1:{free_port()}"
    database = f"postgresql://me:{SECRET}@127.0.0.1:{free_port()}/x?password={SECRET}"
    answer = tiny.run_json("ui", "--tracking", inside, cwd=finished)
    assert answer["tracking_uri"] == server.uri.replace("http://", "http://***@")
    assert answer["leaderboard"].startswith(f"{server.uri}/#/")
    home = tmp_path / "runs"
    shutil.copytree(finished / "runs" / "tiny", home / "tiny")
    said = [json.dumps(answer)]
    for uri, code in ((inside, 0), (nobody, 2), (database, 2)):
        for options in ([], ["--json"]):
            done = tiny.harness("sync", "--home", home, "--tracking", uri, *options, cwd=tmp_path)
            assert done.returncode == code, done.stderr
            said += [done.stdout, done.stderr]
    assert tiny.harness("ui", "--home", home, "--tracking", database, cwd=tmp_path).returncode == 2
    said += [path.read_text() for path in (home / "tiny").glob("*.json")]
    for command in (["run", "tiny.yaml"], ["doctor"]):
        for uri in (inside, nobody):
            for options in ([], ["--json"]):
                done = tiny.harness(*command, "--tracking", uri, *options, cwd=finished)
                said += [done.stdout, done.stderr]
    said += [path.read_text() for path in (finished / "runs" / "tiny").glob("*.json")]
    assert not [text for text in said if SECRET in text]
    # The folder is known to be there, by the same address.
    assert tiny.run_json("sync", "--home", home, "--tracking", inside, cwd=tmp_path)["synced"] == 0


def test_a_server_lost_half_way_is_a_warning_and_sync_catches_up(
    server: TrackingServer, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "lost"
    shutil.copytree(finished / "runs" / "tiny", folder)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"benchmark": "lost", "run_id": "lostrun"}))
    (folder / "synced.json").unlink()

    def cut() -> None:
        query = "select count(*) from runs join experiments using (experiment_id) where experiments.name = 'lost'"
        with contextlib.closing(sqlite3.connect(f"file:{server.database}?mode=ro", uri=True)) as store:
            while store.execute(query).fetchone()[0] < 4:
                time.sleep(0.01)
        server.kill()

    thread = threading.Thread(target=cut)
    thread.start()
    first = tiny.harness("sync", "--tracking", server.uri, cwd=tmp_path)
    thread.join()
    assert first.returncode == 1
    (line,) = first.stderr.splitlines()
    assert line.startswith(f"warning: not logged to MLflow at {server.uri}: ")
    assert tiny.harness("sync", "--tracking", server.uri, cwd=tmp_path).returncode == 2
    server.start()
    again = tiny.run_json("sync", "--tracking", server.uri, cwd=tmp_path)
    assert (again["synced"], again["warnings"]) == (1, [])
    assert {run.info.status for kind in ("cell", "leaderboard") for run in runs(server.uri, kind, "lost")} == {
        "FINISHED"
    }
    counts = [len(runs(server.uri, kind, "lost")) for kind in ("invocation", "cell", "leaderboard")]
    assert counts == [1, 6, 2], "nothing twice"


# ------------------------------------------------------------------------------------------- pages of our own


@pytest.mark.parametrize(("options", "end"), [(["--json"], signal.SIGINT), ([], signal.SIGTERM)])
def test_pages_open_the_leaderboard_and_end_with_the_command(
    finished: Path, options: list[str], end: signal.Signals
) -> None:
    tiny.run_json("sync", cwd=finished)
    port = free_port()
    command = [sys.executable, "-m", "harness", "ui", "tiny.yaml", "--port", str(port), *options]
    # A proxy that does not answer must not stand between the command and its own server.
    environment = tiny.environment(http_proxy="http://127.0.0.1:9")
    with subprocess.Popen(command, cwd=finished, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while options and lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], "the answer ended early"
        link = json.loads("".join(lines))["leaderboard"] if options else lines[0].split()[3]
        url = f"http://127.0.0.1:{port}"
        found = experiment(url)
        page, _, query = link.removeprefix(f"{url}/#").partition("?")
        assert page == f"/experiments/{found['experiment_id']}/runs"
        key = urllib.parse.parse_qs(query)["viewStateShareKey"][0]
        tags = {tag["key"]: tag["value"] for tag in found["tags"]}
        assert json.loads(tags[f"mlflow.sharedViewState.{key}"])["orderByKey"] == "metrics.`dsc`"
        assert [run.data.tags["method"] for run in runs(url, "leaderboard")][:1] == [
            leaderboard.build(finished / "runs" / "tiny").rows[0].method
        ]
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        # Other machines cannot reach it.
        listening = {c.laddr.ip for child in children for c in child.net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        os.kill(process.pid, end)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_taken_port_is_one_line(finished: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tiny.harness("ui", "--port", str(port), cwd=finished)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"port {port}: cannot be used (")
    assert "--port" in done.stderr


def test_no_tracking_has_no_pages(finished: Path) -> None:
    for command in ("ui", "sync"):
        done = tiny.harness(command, "--tracking", "none", cwd=finished)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
