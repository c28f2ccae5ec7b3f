"""MLflow's pages: a server of our own over a local store, reachable from this machine only."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from types import FrameType

from harness.problems import Problem, UserError
from harness.results.connection import check_uri, is_server, shown, sqlite_path

HOST = "127.0.0.1"


def serve_command(uri: str, port: int) -> list[str]:
    """The command that serves MLflow's pages over a store. A URI with secrets is no part of it (see `serving`)."""
    path = sqlite_path(uri)
    places = ["--artifacts-destination", (path.parent / "mlartifacts").as_uri()] if path else []
    store = ["--backend-store-uri", uri] if shown(uri) == uri else []
    server = [sys.executable, "-m", "mlflow", "server", *store, *places]
    return [*server, "--host", HOST, "--port", str(port), "--workers", "1"]


@contextlib.contextmanager
def serving(uri: str, port: int, *, timeout: float = 120, quiet: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's pages at http://127.0.0.1:PORT for as long as the context lasts; entered once they answer.

    Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt inside; the server and all it started end with the
    context. Raises UserError where the URI cannot be served, the port is taken, or the server does not come up.
    """
    _refuse_unservable(uri, port)
    environment = os.environ | {
        # Not on the command line: every user of the machine can read those.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Its job runners would take ten processes and twice the time to start.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    sink = subprocess.DEVNULL if quiet else None
    command = serve_command(uri, port)
    with _signals_interrupt():
        # A group of its own: the server starts workers, which must end with it.
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            _await(server, port, timeout, shlex.join(command))
            yield server
        finally:
            _end(server)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """What would end this process without a chance to end the server raises KeyboardInterrupt instead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A shell starts a job in the background with SIGINT ignored: it must still end by one.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_unservable(uri: str, port: int) -> None:
    if is_server(uri):
        raise UserError(Problem(shown(uri), "is a server already; open it in a browser"))
    if uri.startswith("databricks"):
        raise UserError(Problem(shown(uri), "has pages of its own; open the workspace in a browser"))
    if trouble := check_uri(uri):
        raise UserError(Problem(shown(uri), trouble))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no port has this number"
            what = f"cannot be used ({reason}); name another with --port"
            raise UserError(Problem(f"port {port}", what)) from None


def _await(server: subprocess.Popen[bytes], port: int, timeout: float, command: str) -> None:
    # A proxy of the environment knows nothing of this machine's own ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(
                f"MLflow ended with code {server.returncode} while starting; run this to see why: {command}"
            )
        with contextlib.suppress(OSError), opener.open(f"http://{HOST}:{port}/health", timeout=2):
            return
        time.sleep(0.3)
    raise UserError(f"MLflow did not answer on port {port} within {timeout:g} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            os.killpg(server.pid, 0)  # raises once nobody is left
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
