"""MLflow as a projection: what is there, that repeating it changes nothing, and what happens without a server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.problems import UserError
from harness.results import connection, exhibits, leaderboard, pages, records, tracking


class Store:
    """A real sqlite store, shared by this file: creating one takes seconds."""

    def __init__(self, folder: Path):
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"

    def runs(self, kind: str, order: str = "", experiment: str = "toy") -> list[Any]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        return list(
            client.search_runs([found.experiment_id], f"tags.kind = '{kind}'", order_by=[order] if order else [])
        )

    def experiment(self, name: str = "toy") -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri).get_experiment_by_name(name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def first(store: Store, folder: Path) -> tracking.Projection:
    return tracking.project(folder, store.uri)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# ------------------------------------------------------------------------------------------- what is logged


def test_the_leaderboard_is_the_page_sorted_by_the_headline(store: Store, first: tracking.Projection) -> None:
    assert first.warning == ""
    runs = store.runs("leaderboard", "metrics.`dsc` DESC")
    names = [run.data.tags["method"] for run in runs]
    assert names == ["good", "adapter", "<script>alert(1)</script>", "worse", "none", "broken"]
    assert [run.data.metrics["position"] for run in runs] == [1, 2, 3, 4, 5, 6]
    assert runs[0].data.metrics["dsc"] == pytest.approx(0.8)
    assert runs[0].data.params["source_free"] == "true"


def test_an_incomplete_mean_is_no_mean(store: Store, first: tracking.Projection) -> None:
    broken = store.runs("leaderboard", "metrics.`dsc` DESC")[-1].data
    assert "dsc" not in broken.metrics
    assert broken.metrics["partial/dsc"] == pytest.approx(0.9125)
    assert broken.metrics["failed_cells"] == 2
    assert broken.tags["complete"] == "false"


def test_cells_hang_below_their_invocation(store: Store, first: tracking.Projection) -> None:
    (parent,) = store.runs("invocation")
    assert parent.data.tags["harness.run_id"] == "run1"
    assert parent.data.params["simulated"] == "true"
    cells = {(run.data.tags["method"], run.data.tags["source"]): run for run in store.runs("cell")}
    assert len(cells) == 6 * 3 + 3, "six methods and the task model, from three sources"
    assert {run.data.tags["mlflow.parentRunId"] for run in cells.values()} == {parent.info.run_id}
    good = cells["good", "A"].data
    assert good.metrics["dsc"] == pytest.approx(0.775)
    assert good.metrics["dsc/B"] == pytest.approx(0.77)
    assert good.params["field.net.width"] == "[8, 16]"
    assert cells["none", "A"].data.metrics["in_domain/dsc"] == pytest.approx(0.95)
    assert cells["task", "A"].data.params["field.width"] == "8"
    broken = cells["broken", "A"].data
    assert "dsc" not in broken.metrics
    assert broken.metrics["failed_cells"] == 2
    assert "B: ValueError: the <b>loss</b> is nan" in broken.tags["errors"]


def test_curves_and_files_are_logged(store: Store, first: tracking.Projection) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    (run,) = [r for r in store.runs("cell") if (r.data.tags["method"], r.data.tags["source"]) == ("good", "A")]
    history = client.get_metric_history(run.info.run_id, "fit/loss")
    assert [(m.step, round(m.value, 3)) for m in history] == [(0, 1.0), (1, 0.5), (2, 0.333)]
    (parent,) = store.runs("invocation")
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "leaderboard.csv", "leaderboard.md", "records.parquet", "figures"} <= names
    place = Path(store.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / "toy"
    assert parent.info.artifact_uri.startswith(place.as_uri())


def test_the_first_row_has_the_report_and_every_row_its_own(store: Store, first: tracking.Projection) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    (parent,) = store.runs("invocation")
    rows = {run.data.tags["method"]: run for run in store.runs("leaderboard")}
    names = {name: {item.path for item in client.list_artifacts(run.info.run_id)} for name, run in rows.items()}
    tables = {"leaderboard.csv", "leaderboard.md"}
    assert names["good"] == {*tables, "report.html", "figures"}
    assert names["none"] == tables
    assert {item.path for item in client.list_artifacts(rows["good"].info.run_id, "figures")} == {
        item.path for item in client.list_artifacts(parent.info.run_id, "figures")
    }
    for run in rows.values():
        assert f"/runs/{parent.info.run_id}/artifacts/report.html" in run.data.tags["mlflow.note.content"]


def test_rows_below_the_first_keep_their_own_figures(store: Store, build: Callable[..., Path], toy: Any) -> None:
    from mlflow.tracking import MlflowClient

    methods = [m for m in toy.info_of().methods if m.name in ("good", "adapter", "worse")]
    # "good" has samples, but a row of 0.9 stands above it.
    better = [r for t in ("B", "C") for r in toy.table_of("broken", "B", "C" if t == "B" else "A")]
    rows = [*better, *(r for m in methods[:1] for t in ("A", "C") for r in toy.table_of(m.name, "B", t))]
    folder = build(rows, benchmark="below", methods=tuple(methods))
    assert tracking.project(folder, store.uri).ok
    board = {run.data.tags["method"]: run for run in store.runs("leaderboard", experiment="below")}
    client = MlflowClient(tracking_uri=store.uri)
    assert [item.path for item in client.list_artifacts(board["good"].info.run_id, "figures")] == [
        "figures/samples-good.png"
    ]


def test_the_experiment_carries_its_view(store: Store, first: tracking.Projection) -> None:
    tags = store.experiment().tags
    view = json.loads(tags["mlflow.sharedViewState.leaderboard"])
    assert view["orderByKey"] == "metrics.`dsc`"
    assert view["orderByAsc"] is False
    assert view["columnOrder"][1] == "tags.`DSC`"
    assert set(view["selectedColumns"]) <= set(view["columnOrder"])
    assert "simulated" in tags["mlflow.note.content"]
    url = tracking.leaderboard_url("http://127.0.0.1:5000/", first.experiment_id)
    assert url.startswith(f"http://127.0.0.1:5000/#/experiments/{first.experiment_id}/runs?")


def test_rows_read_as_the_tables_do(store: Store, first: tracking.Projection, folder: Path) -> None:
    shown = {run.data.tags["method"]: run.data.tags for run in store.runs("leaderboard")}
    assert shown["good"]["DSC"] == "80.00 ± 2.16 %"
    assert shown["broken"]["DSC"] == "91.25 ± 1.48† %"
    assert shown["adapter"]["WD"] == "–"
    for row in leaderboard.build(folder).rows:
        assert shown[row.method]["HD95"] == f"{row.scores['hd95'].text} mm"


# ------------------------------------------------------------------------------------------- repeating it


def test_a_second_projection_writes_nothing(store: Store, folder: Path, first: tracking.Projection) -> None:
    again = tracking.project(folder, store.uri)
    assert (again.written, again.kept, again.warning) == (0, first.written, "")
    assert len(store.runs("leaderboard")) == 6
    assert len(store.runs("invocation")) == 1
    assert tracking.is_synced(folder, store.uri)
    assert not tracking.is_synced(folder, "sqlite:////elsewhere.db")


def test_a_later_run_replaces_the_leaderboard_and_keeps_the_history(
    store: Store, build: Callable[..., Path], toy: Any
) -> None:
    names = {"benchmark": "later", "with_exhibits": False}
    methods = [m for m in toy.info_of().methods if m.name in ("none", "good", "worse")]
    for run_id, some in (("run1", methods), ("run2", methods[:2])):
        rows = [r for m in some for t in ("B", "C") for r in toy.table_of(m.name, "A", t) if r.metric == "dsc"]
        folder = build(rows, run_id=run_id, methods=tuple(some), metrics=("dsc",), **names)
        assert tracking.project(folder, store.uri).warning == ""
    assert len(store.runs("invocation", experiment="later")) == 2
    board = store.runs("leaderboard", "metrics.`dsc` DESC", experiment="later")
    assert [run.data.tags["method"] for run in board] == ["good", "none"]


def test_a_half_written_run_is_replaced(store: Store, build: Callable[..., Path], toy: Any) -> None:
    from mlflow.tracking import MlflowClient

    rows = [r for s, t in toy.pairs for r in toy.table_of("good", s, t)]
    folder = build(rows, benchmark="halves", with_exhibits=False, methods=toy.info_of().methods[1:2])
    assert tracking.project(folder, store.uri).warning == ""
    (run,) = store.runs("leaderboard", experiment="halves")
    MlflowClient(tracking_uri=store.uri).set_terminated(run.info.run_id, "KILLED")
    again = tracking.project(folder, store.uri)
    assert (again.written, len(store.runs("leaderboard", experiment="halves"))) == (1, 1)


# ------------------------------------------------------------------------------------------- without a server


def test_an_unreachable_server_is_a_warning_and_sync_catches_up(
    store: Store, build: Callable[..., Path], toy: Any, closed_port: int
) -> None:
    rows = [r for s, t in toy.pairs for r in toy.table_of("good", s, t)]
    folder = build(rows, benchmark="offline", with_exhibits=False, methods=toy.info_of().methods[1:2])
    started = time.monotonic()
    outcome = tracking.project(folder, f"http://127.0.0.1:{closed_port}")
    assert time.monotonic() - started < 5
    assert "no MLflow server answers" in outcome.warning
    assert "\n" not in outcome.warning
    assert tracking.pending(folder.parent, store.uri) == [folder]
    assert not tracking.is_synced(folder, store.uri)
    for waiting in tracking.pending(folder.parent, store.uri):
        assert tracking.project(waiting, store.uri).ok
    assert tracking.pending(folder.parent, store.uri) == []
    assert len(store.runs("leaderboard", experiment="offline")) == 1


def test_what_was_kept_out_of_mlflow_waits_for_sync(store: Store, build: Callable[..., Path], toy: Any) -> None:
    folder = build(toy.table_of("good", "A", "B"), benchmark="kept_out", with_exhibits=False)
    assert tracking.pending(folder.parent, store.uri) == [folder]
    assert tracking.project(folder, store.uri).ok
    assert tracking.pending(folder.parent, store.uri) == []
    assert tracking.pending(folder.parent, "sqlite:////elsewhere.db") == [folder]


def test_a_damaged_folder_is_a_warning(store: Store, build: Callable[..., Path]) -> None:
    folder = build(with_exhibits=False, benchmark="damaged")
    (folder / records.FILE).write_bytes(b"half")
    outcome = tracking.project(folder, store.uri)
    assert "damaged" in outcome.warning
    assert tracking.pending(folder.parent, store.uri) == [folder]


def test_a_changed_folder_is_not_synced(store: Store, build: Callable[..., Path], toy: Any) -> None:
    folder = build(toy.table_of("good", "A", "B"), benchmark="changed", with_exhibits=False)
    assert tracking.project(folder, store.uri).ok
    assert tracking.is_synced(folder, store.uri)
    exhibits.write_curves(folder, [])
    assert not tracking.is_synced(folder, store.uri)


# ------------------------------------------------------------------------------------------- addresses


def test_sqlite_addresses(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but a text")
    assert tracking.check_uri(f"sqlite:///{tmp_path}/new/folder/mlflow.db") is None
    assert "is no sqlite database" in str(tracking.check_uri(f"sqlite:///{tmp_path}/text.db"))
    assert "is no folder" in str(tracking.check_uri(f"sqlite:///{tmp_path}/text.db/mlflow.db"))
    assert "names no sqlite file" in str(tracking.check_uri(f"sqlite:///{tmp_path}"))
    assert "names no sqlite file" in str(tracking.check_uri("sqlite://"))
    assert "not writable" in str(tracking.check_uri("sqlite:////proc/mlflow.db"))


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("file:///tmp/mlruns", "no longer logs to plain folders"),
        ("./mlruns", "no longer logs to plain folders"),
        ("htp://localhost:5000", "unknown tracking scheme 'htp'"),
        ("http://", "names no host"),
        ("http://localhost:port", "is no valid address"),
        ("http://no-such-host.invalid", "no MLflow server answers at no-such-host.invalid"),
        ("postgresql://user:secret@127.0.0.1:9/x", "no database answers at 127.0.0.1:9"),
        ("http://user:secret@127.0.0.1:9", "no MLflow server answers at 127.0.0.1:9"),
        ("http://user:sec ret@[::1", "is no valid address"),
        ("http://user:secret@host:port", "is no valid address"),
        ("file://user:secret@host/mlruns", "no longer logs to plain folders"),
    ],
)
def test_bad_addresses_are_explained_in_one_line(uri: str, part: str) -> None:
    found = tracking.check_uri(uri, timeout=2)
    assert found is not None
    assert part in found
    assert "\n" not in found
    assert "secret" not in found


def test_a_silent_server_does_not_hold_anyone_up(silent_port: int) -> None:
    started = time.monotonic()
    assert "no answer" in str(tracking.check_uri(f"http://127.0.0.1:{silent_port}", timeout=0.3))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("status", "body", "part"),
    [
        (200, b'{"experiment": {}}', None),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}', None),
        (404, b"<html>not found</html>", "not as an MLflow server (HTTP 404)"),
        (503, b'{"error_code": "X"}', "HTTP 503"),
        (401, b"", "wants credentials"),
        (403, b"", "wants credentials"),
        (403, b"Invalid Host header", "--allowed-hosts"),
    ],
)
def test_answers_are_told_apart(status: int, body: bytes, part: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = tracking.check_uri(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert found is None if part is None else part in str(found)


def test_pages_are_for_this_machine_only(tmp_path: Path) -> None:
    command = pages.serve_command(f"sqlite:///{tmp_path}/mlflow.db", 5123)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5123"


def test_a_password_is_on_no_command_line() -> None:
    assert "secret" not in " ".join(pages.serve_command("postgresql://me:secret@db/x", 5123))


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("http://me:secret@127.0.0.1:5000", "http://***@127.0.0.1:5000: is a server already"),
        ("mlruns", "plain folders"),
        ("databricks", "open the workspace"),
        ("sqlite:///{tmp}/mlflow.db", "--port"),
    ],
)
def test_serving_what_cannot_be_served_is_a_user_error(tmp_path: Path, silent_port: int, uri: str, part: str) -> None:
    with pytest.raises(UserError) as mistake, pages.serving(uri.replace("{tmp}", str(tmp_path)), silent_port):
        pass
    assert part in str(mistake.value)
    assert "secret" not in str(mistake.value)


def test_a_server_that_does_not_come_up_is_a_user_error(tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"and nothing more")
    with (
        pytest.raises(UserError, match="MLflow ended with code"),
        pages.serving(f"sqlite:///{tmp_path}/mlflow.db", closed_port),
    ):
        pass


# ------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://me:secret@host:5000/mlflow", "http://***@host:5000/mlflow"),
        ("https://secret@host", "https://***@host"),
        ("http://me:se/cr?et#@secret@host", "http://***@host"),
        ("postgresql+psycopg2://me:secret@db/x", "postgresql+psycopg2://***@db/x"),
        ("postgresql://db/x?user=me&password=secret", "postgresql://db/x?***"),
        ("me:secret@host", "***@host"),
        ("sqlite:////home/me@work/mlflow.db?timeout=3", "sqlite:////home/me@work/mlflow.db?timeout=3"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_addresses_are_shown_without_secrets(uri: str, expected: str) -> None:
    assert connection.shown(uri) == expected


def test_messages_of_others_are_censored() -> None:
    uri = "http://me:s%40cret@host:5000"
    for leak in (
        uri,
        "http://me:s%40cret@host:5000/api: refused",
        "no login for me with s@cret",
        "nonnumeric 's%40cret'",
    ):
        found = connection.censored(leak, uri)
        assert "cret" not in found
    assert connection.censored(f"{uri}: refused", uri) == "http://***@host:5000: refused"
    assert connection.censored("plain", "http://host") == "plain"
    assert "secret" not in connection.censored("password=secret", "postgresql://db/x?password=secret")


def test_credentials_go_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that wants them redirects to another one, which must not see them."""
    seen: dict[str, list[str | None]] = {"first": [], "second": []}

    class Second(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen["second"].append(self.headers["Authorization"])
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class First(Second):
        def do_GET(self) -> None:
            seen["first"].append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{second.server_port}/api")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), First) as first, HTTPServer(("127.0.0.1", 0), Second) as second:
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in (first, second)]
        for thread in threads:
            thread.start()
        try:
            address = f"127.0.0.1:{first.server_port}"
            assert tracking.check_uri(f"http://me:s%40cret@{address}") is None
            monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
            assert tracking.check_uri(f"http://{address}") is None
        finally:
            for server in (first, second):
                server.shutdown()
            for thread in threads:
                thread.join()
    assert seen["first"] == ["Basic bWU6c0BjcmV0", "Bearer token"]
    assert seen["second"] == [None, None]
