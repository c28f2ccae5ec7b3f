"""Tracking URIs: whether one can be written to, found out in seconds, and MLflow's pages on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.problems import Problem, UserError

DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PROBE = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


def check_uri(uri: str, timeout: float = 4.0) -> str | None:
    """Why nothing could be logged to a tracking URI, in one line, or None. Does not import mlflow."""
    scheme = urlsplit(uri).scheme.split("+")[0].lower() if "://" in uri else uri.partition(":")[0] if ":" in uri else ""
    if scheme == "sqlite":
        return _check_sqlite(uri)
    if scheme in ("http", "https"):
        return _check_server(uri, timeout)
    if scheme in DATABASES:
        return _check_port(uri, DATABASES[scheme], timeout)
    if scheme == "databricks" or uri == "databricks":
        return None
    if scheme in ("file", ""):
        return f"MLflow 3 no longer logs to plain folders ({uri}); use sqlite:////absolute/path/mlflow.db or a server"
    return f"unknown tracking scheme {scheme!r}; use sqlite:////absolute/path/mlflow.db, http(s)://HOST or a database"


def sqlite_path(uri: str) -> Path | None:
    """The file behind a sqlite URI, absolute; None for other URIs."""
    scheme, _, rest = uri.partition(":///")
    if scheme.split("+")[0] != "sqlite":
        return None
    return Path(unquote(rest.partition("?")[0])).absolute()


def _check_sqlite(uri: str) -> str | None:
    path = sqlite_path(uri)
    if path is None or path.name == "" or path.is_dir():
        return f"{uri} names no sqlite file; write sqlite:////absolute/path/mlflow.db"
    existing = next(folder for folder in path.parents if folder.exists())
    if not existing.is_dir():
        return f"{existing} is no folder, so {path} cannot be written"
    if path.exists():
        if not os.access(path, os.R_OK | os.W_OK):
            return f"{path} is not writable"
        with path.open("rb") as file:
            head = file.read(16)
        if head not in (b"", b"SQLite format 3\0"):
            return f"{path} exists and is no sqlite database"
    try:
        # Tried, not asked: permissions say nothing about a read-only or a full filesystem, nor to root.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return f"the folder {existing} is not writable ({error.strerror or error})"
    return None


def _check_server(uri: str, timeout: float) -> str | None:
    try:
        host, port = urlsplit(uri).hostname, urlsplit(uri).port
    except ValueError as error:
        return f"{uri} is no valid address ({error})"
    if not host:
        return f"{uri} names no host"
    try:
        with urllib.request.urlopen(uri.rstrip("/") + PROBE, timeout=timeout) as answer:
            return _judge(uri, answer.status, answer.read(65536))
    except urllib.error.HTTPError as error:
        with error:
            return _judge(uri, error.code, error.read(65536))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no answer from {uri} within {timeout:g} s"
        detail = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return f"no MLflow server answers at {host}{f':{port}' if port else ''} ({detail})"


def _judge(uri: str, status: int, body: bytes) -> str | None:
    """An MLflow server answers the probe with an experiment, or with an error in its own words."""
    if status in (401, 403):
        if any(os.environ.get(name) for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")):
            return None
        if b"Invalid Host header" in body:
            return f"{uri} refuses this host name; start the server with --allowed-hosts"
        return f"{uri} wants credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a token"
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        if isinstance(answer, dict) and ({"experiment", "error_code"} & answer.keys()) and status < 500:
            return None
    return f"{uri} answers, but not as an MLflow server (HTTP {status})"


def _check_port(uri: str, default: int, timeout: float) -> str | None:
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname or "localhost", parts.port or default
        with socket.create_connection((host, port), timeout=timeout):
            return None
    except (OSError, ValueError) as error:
        # The URI itself may carry a password: it is not repeated here.
        return f"no database answers at {parts.hostname}:{parts.port or default} ({error})"


# ------------------------------------------------------------------------------------------- pages


def serve_command(uri: str, port: int) -> list[str]:
    """The command that serves MLflow's pages over a local store, reachable from this machine only."""
    path = sqlite_path(uri)
    places = ["--artifacts-destination", (path.parent / "mlartifacts").as_uri()] if path else []
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, *places]
    return [*server, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def serve(
    uri: str, port: int, *, ready: Callable[[str], None] = lambda url: None, timeout: float = 120, quiet: bool = True
) -> int:
    """Serve MLflow's pages on 127.0.0.1 until Ctrl-C; the exit code. `ready` is called once with the address.

    Raises UserError where the URI cannot be served, the port is taken, or the server does not come up.
    """
    _refuse_unservable(uri, port)
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Its job runners would take ten processes and twice the time to start.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    sink = subprocess.DEVNULL if quiet else None
    # A group of its own: the server starts workers, which must end with it.
    command = serve_command(uri, port)
    server = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    try:
        _await(server, port, timeout, shlex.join(command))
        ready(f"http://127.0.0.1:{port}")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _refuse_unservable(uri: str, port: int) -> None:
    if urlsplit(uri).scheme in ("http", "https"):
        raise UserError(Problem(uri, "is a server already; open it in a browser"))
    if trouble := check_uri(uri):
        raise UserError(Problem(uri, trouble))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            what = f"cannot be used ({error.strerror}); name another with --port"
            raise UserError(Problem(f"port {port}", what)) from None


def _await(server: subprocess.Popen[bytes], port: int, timeout: float, command: str) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(
                f"MLflow ended with code {server.returncode} while starting; run this to see why: {command}"
            )
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.3)
    raise UserError(f"MLflow did not answer on port {port} within {timeout:g} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
            return
