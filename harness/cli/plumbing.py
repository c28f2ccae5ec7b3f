"""What the commands share: their options, how they answer, and how they turn errors into lines."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.problems import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.home import Home

File = Annotated[Path, typer.Argument(help="Benchmark file.", metavar="FILE")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: --set methods.NAME.FIELD=VALUE", metavar="KEY=VALUE"),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        show_envvar=False,
        help="Ray cluster to run on: auto, HOST:PORT, or ray://HOST:PORT. [RAY_ADDRESS, or a local Ray]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Root = Annotated[Path | None, typer.Option("--root", help="Folder that holds the data, in place of data.root.")]
HomeOption = Annotated[Path | None, typer.Option("--home", help="Results, store, caches. [HARNESS_HOME or ./runs]")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Artifact store: folder or URL. [HARNESS_STORE]")]
Tracking = Annotated[
    str | None, typer.Option("--tracking", help='MLflow URI, or "none". [MLFLOW_TRACKING_URI or HOME/mlflow.db]')
]
Several = Annotated[
    list[str] | None,
    typer.Argument(
        help="Benchmark names, their YAML files, or results folders; default: the last run.", metavar="NAME"
    ),
]
Against = Annotated[
    str | None, typer.Option(help='Published numbers to show beside ours: "paper", or a CSV.', metavar="TABLE")
]


@contextmanager
def answering(as_json: bool) -> Iterator[dict[str, Any]]:
    """Collects a command's answer and prints it as JSON if asked; turns user errors into lines and exit code 2.

    With --json, file descriptor 1 points at stderr meanwhile: Ray writes to it from outside Python.
    """
    answer: dict[str, Any] = {}
    saved = None
    if as_json:
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        yield answer
    except UserError as error:
        answer.clear()
        answer["errors"] = [{"where": p.where, "what": p.what} for p in error.problems]
        for problem in error.problems:
            note(str(problem))
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"no space left on the disk of {error.filename or 'the results'}; make room, then run the same again"
        answer.clear()
        answer["errors"] = [{"where": str(error.filename or ""), "what": what}]
        note(what)
        raise typer.Exit(1) from None
    finally:
        if saved is not None:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
            print(json.dumps(answer, indent=1), flush=True)


def home_of(home: Path | None = None, store: str | None = None, tracking: str | None = None) -> Home:
    from harness.home import Home

    return Home.of(home, store, tracking)


def console_of(*, stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(stderr=stderr, width=120)
    return console


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def show_leaderboard(folder: Path, console: Console) -> None:
    from harness.results import leaderboard as boards
    from harness.results import terminal

    terminal.show(boards.build(folder), console)
