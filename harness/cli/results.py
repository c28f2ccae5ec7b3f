"""What shows finished runs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import app
from harness.cli.plumbing import (
    Against,
    HomeOption,
    Json,
    Several,
    Tracking,
    answering,
    console_of,
    home_of,
    note,
    short,
)
from harness.problems import Problem, UserError

if TYPE_CHECKING:
    from harness.home import Home


@app.command()
def leaderboard(
    results: Several = None,
    home: HomeOption = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
    against: Against = None,
    as_json: Json = False,
) -> None:
    """Print the leaderboard of a finished run; of several benchmarks, one ranking over all their settings."""
    with answering(as_json) as answer:
        from harness.results import leaderboard as boards
        from harness.results import published, terminal

        place = home_of(home)
        if results and len(results) > 1:
            from harness.results import combined

            if csv or markdown or against:
                raise UserError("--csv, --markdown and --against take one benchmark; name one")
            ranking = combined.build([place.find_results(name) for name in results])
            answer.update(ranking.as_json())
            if not as_json:
                terminal.show_combined(ranking, console_of())
            return
        board = boards.build(place.find_results(results[0] if results else None))
        answer.update(board.as_json())
        beside = published.beside(board, published.read(published.table_path(against))) if against else ()
        if beside:
            answer["published"] = [{**vars(item), "texts": list(item.texts)} for item in beside]
        if csv:
            csv.write_text(terminal.to_csv(board))
        if markdown:
            markdown.write_text(terminal.to_markdown(board))
        if not as_json:
            terminal.show(board, console_of())
            if beside:
                terminal.show_beside(beside, published.caution(board), console_of())


@app.command()
def report(
    results: Several = None,
    home: HomeOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write it; default: in the results.")] = None,
    name: Annotated[
        str, typer.Option(help="Folder in the results for the report of several benchmarks.", metavar="NAME")
    ] = "combined",
    against: Against = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of a finished run again; of several benchmarks, one ranking over all their settings."""
    with answering(as_json) as answer:
        from harness.results import published
        from harness.results.html import write_combined, write_report

        place = home_of(home)
        if results and len(results) > 1:
            from harness.results import combined
            from harness.tracks.base import RESERVED

            if against:
                raise UserError("--against takes one benchmark; name one")
            folder = place.results(name)
            outside = folder.resolve().parent != place.root.resolve()
            if outside or name in RESERVED - {"combined"} or (folder / "run.json").is_file():
                what = f"{name!r} is reserved, the name of a benchmark, or of no folder; take another"
                raise UserError(Problem("--name", what))
            ranking = combined.build([place.find_results(each) for each in results])
            path = out or folder / "report.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_combined(ranking, path)
        else:
            folder = place.find_results(results[0] if results else None)
            table = published.read(published.table_path(against)) if against else ()
            path = write_report(folder, out or folder / "report.html", table)
        answer.update({"report": str(path)})
        if not as_json:
            console_of().print(f"report   {short(path)}", highlight=False, soft_wrap=True)


@app.command()
def sync(home: HomeOption = None, tracking: Tracking = None, as_json: Json = False) -> None:
    """Bring MLflow to what the results say: log what could not be logged, or was to be kept out, when it was run."""
    with answering(as_json) as answer:
        from harness.results import tracking as mlflow_side

        place = home_of(home, None, tracking)
        name = mlflow_side.shown(place.tracking)
        if place.tracking == "none":
            raise UserError(Problem("--tracking", "none is nowhere to log to; name a URI"))
        if trouble := mlflow_side.check_uri(place.tracking):
            raise UserError(Problem(name, trouble))
        folders = mlflow_side.pending(place.root, place.tracking)
        outcomes = [mlflow_side.project(folder, place.tracking) for folder in folders]
        bad = [outcome.warning for outcome in outcomes if outcome.warning]
        answer.update({"tracking_uri": name, "synced": len(outcomes) - len(bad), "warnings": bad})
        if not as_json:
            console_of().print(f"{len(outcomes) - len(bad)} synced to {name}", highlight=False, soft_wrap=True)
            for line in bad:
                note(f"warning: {line}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def ui(
    benchmark: Annotated[
        str | None,
        typer.Argument(help="Benchmark name, its YAML file, or results folder; default: the last run.", metavar="NAME"),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
    home: HomeOption = None,
    tracking: Tracking = None,
    as_json: Json = False,
) -> None:
    """Serve MLflow's pages on this machine (127.0.0.1 only) and print the link to a leaderboard; Ctrl-C ends it.

    Where results are tracked by a server, print the link into that one.
    """
    code, server = 130, None
    try:
        with ExitStack() as stack:
            with answering(as_json) as answer:
                from harness.results import connection, pages

                place = home_of(home, None, tracking)
                if place.tracking == "none":
                    raise UserError(Problem("--tracking", "none has no pages; name a URI"))
                name = _experiment_of(place, benchmark)
                if connection.is_server(place.tracking):
                    asked, url = place.tracking, connection.address(place.tracking)
                    if trouble := connection.check_uri(asked):
                        raise UserError(Problem(connection.shown(asked), trouble))
                else:
                    asked = url = f"http://{pages.HOST}:{port}"
                    note("starting MLflow's pages")
                    server = stack.enter_context(pages.serving(place.tracking, port))
                link = _leaderboard_link(asked, url, name, benchmark)
                answer.update({"url": url, "benchmark": name, "leaderboard": link})
                answer["tracking_uri"] = connection.shown(place.tracking)
                code = 0
                if not as_json:
                    found = f"leaderboard of {name}" if link else "MLflow"
                    line = f"{found}: {link or url}{'  (Ctrl-C ends the server)' if server else ''}"
                    console_of().print(line, highlight=False, markup=False, soft_wrap=True)
            if server and server.wait():
                note(f"MLflow ended with code {server.returncode}")
                code = 1
    except KeyboardInterrupt:
        pass
    raise typer.Exit(code)


def _experiment_of(place: Home, name: str | None) -> str | None:
    """The experiment that holds a benchmark; a name without results here may still be known to the server."""
    from harness.results import runinfo

    try:
        return runinfo.read(place.find_results(name)).benchmark
    except UserError:
        return name


def _leaderboard_link(server: str, url: str, name: str | None, asked_for: str | None) -> str | None:
    """The link to a benchmark's leaderboard; None, with a line that says why, where the server has none.

    Raises UserError where the benchmark was asked for by name.
    """
    from harness.results import tracking as mlflow_side

    if name is None:
        note("nothing has run here yet, so there is no leaderboard to open")
        return None
    try:
        found = mlflow_side.experiment_id(server, name)
    except OSError as error:
        raise UserError(Problem(url, f"does not answer any more ({error})")) from None
    if found:
        return mlflow_side.leaderboard_url(url, found)
    what = f"no leaderboard of {name!r} at {url}; `harness sync` logs results that are not there yet"
    if asked_for:
        raise UserError(what)
    note(what)
    return None
