"""Tracking URIs: whether one can be written to, found out in seconds, and how one is printed without its secrets.

Whatever leaves the process (a warning, an answer, a file) names a URI as `shown` does.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
BY_NAME = "/api/2.0/mlflow/experiments/get-by-name?experiment_name="
HIDDEN = "***"


def shown(uri: str) -> str:
    """A tracking URI as it may be printed: without who logs in, with what, and without the values of a query."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        scheme, rest = "", uri
    if scheme.split("+")[0].lower() == "sqlite":
        return uri
    # Up to the last "@": a password that should have been quoted may hold any character.
    _, at, place = rest.rpartition("@")
    place, question, _ = place.partition("?")
    return f"{scheme}{mark}{HIDDEN if at else ''}{at}{place}{question}{HIDDEN if question else ''}"


def censored(text: str, uri: str) -> str:
    """A message of somebody else about a URI, without the secrets of the URI."""
    if shown(uri) == uri:
        return text
    user, at, place = uri.partition("://")[2].rpartition("@")
    query = place.partition("?")[2]
    password = user.partition(":")[2] or user
    values = [pair.partition("=")[2] for pair in query.split("&")]
    secrets = {uri, user + at, password, unquote(password), query, *values, *map(unquote, values)} - {""}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, shown(uri) if secret == uri else HIDDEN + at if secret == user + at else HIDDEN)
    return text


def is_server(uri: str) -> bool:
    """Whether a URI names an MLflow server, which has pages of its own."""
    return uri.lower().startswith(("http://", "https://"))


def address(uri: str) -> str:
    """The address of a server for a browser: no credentials, no "/" at the end."""
    scheme, mark, rest = uri.partition("://")
    return scheme + mark + rest.rpartition("@")[2].partition("?")[0].rstrip("/")


def experiment_id(server: str, name: str, timeout: float = 10.0) -> str | None:
    """The id of an experiment by its name, asked of a server; None if there is none, or it is deleted.

    Raises OSError where the server gives no answer.
    """
    status, body = _ask(server, BY_NAME + quote(name, safe=""), timeout)
    if status != 200:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(body)["experiment"]
        return str(found["experiment_id"]) if found.get("lifecycle_stage", "active") == "active" else None
    return None


def _ask(server: str, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and beginning of the body of an answer. Raises OSError or ValueError where there is none."""
    request = urllib.request.Request(address(server) + path)
    if credentials := _credentials(server):
        # A server elsewhere, to which this one may redirect, is not told them.
        request.add_unredirected_header("Authorization", credentials)
    # No proxy stands between this machine and itself.
    here = urlsplit(request.full_url).hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
    try:
        with opener.open(request, timeout=timeout) as answer:
            return answer.status, answer.read(65536)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(65536)


def _credentials(server: str) -> str:
    """What MLflow would send as "Authorization": the URI's user and password, or those of the environment."""
    user, _, password = server.partition("://")[2].rpartition("@")[0].partition(":")
    user, password = unquote(user), unquote(password)
    if not user:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else ""


def check_uri(uri: str, timeout: float = 4.0) -> str | None:
    """Why nothing could be logged to a tracking URI, in one line, or None. Does not import mlflow."""
    scheme = uri.partition("://" if "://" in uri else ":")[0].split("+")[0].lower() if ":" in uri else ""
    if scheme == "sqlite":
        return _check_sqlite(uri)
    if is_server(uri):
        return _check_server(uri, timeout)
    if scheme in DATABASES:
        return _check_port(uri, DATABASES[scheme], timeout)
    if scheme == "databricks" or uri == "databricks":
        return None
    if scheme in ("file", ""):
        what = "use sqlite:////absolute/path/mlflow.db or a server"
        return f"MLflow 3 no longer logs to plain folders ({shown(uri)}); {what}"
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
        host, port = urlsplit(address(uri)).hostname, urlsplit(address(uri)).port
    except ValueError as error:
        return f"{shown(uri)} is no valid address ({censored(str(error), uri)})"
    if not host:
        return f"{shown(uri)} names no host"
    try:
        return _judge(uri, *_ask(uri, BY_NAME + "Default", timeout))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no answer from {shown(uri)} within {timeout:g} s"
        detail = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return f"no MLflow server answers at {host}{f':{port}' if port else ''} ({censored(detail, uri)})"


def _judge(uri: str, status: int, body: bytes) -> str | None:
    """An MLflow server answers the probe with an experiment, or with an error in its own words."""
    if status in (401, 403):
        if b"Invalid Host header" in body:
            return f"{shown(uri)} refuses this host name; start the server with --allowed-hosts"
        # Who may log in need not be allowed to see the experiment that is asked for.
        if _credentials(uri) and status == 403:
            return None
        if _credentials(uri):
            return f"{shown(uri)} does not accept these credentials"
        if (Path.home() / ".mlflow" / "credentials").is_file() or os.environ.get("MLFLOW_TRACKING_AUTH"):
            return None
        return f"{shown(uri)} wants credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a token"
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        if isinstance(answer, dict) and ({"experiment", "error_code"} & answer.keys()) and status < 500:
            return None
    return f"{shown(uri)} answers, but not as an MLflow server (HTTP {status})"


def _check_port(uri: str, default: int, timeout: float) -> str | None:
    try:
        parts = urlsplit(address(uri))
        host, port = parts.hostname or "localhost", parts.port or default
    except ValueError as error:
        return f"{shown(uri)} is no valid address ({censored(str(error), uri)})"
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return None
    except OSError as error:
        return f"no database answers at {host}:{port} ({error})"
