"""What shows finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    """Log to MLflow what could not be logged when it was run."""
    with answering(as_json) as answer:
        from harness.results import tracking as mlflow_side

        place = home_of(home, None, tracking)
        trouble = mlflow_side.check_uri(place.tracking)
        if trouble:
            raise UserError(Problem(place.tracking, trouble))
        outcomes = [mlflow_side.project(folder, place.tracking) for folder in mlflow_side.pending(place.root)]
        bad = [outcome.warning for outcome in outcomes if outcome.warning]
        answer.update({"tracking_uri": place.tracking, "synced": len(outcomes) - len(bad), "warnings": bad})
        if not as_json:
            console_of().print(
                f"{len(outcomes) - len(bad)} synced to {place.tracking}", highlight=False, soft_wrap=True
            )
            for line in bad:
                note(f"warning: {line}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    home: HomeOption = None,
    tracking: Tracking = None,
    as_json: Json = False,
) -> None:
    """Open MLflow's pages on this machine (127.0.0.1 only)."""
    with answering(as_json) as answer:
        from harness.results import tracking as mlflow_side

        place = home_of(home, None, tracking)
        answer.update({"url": f"http://127.0.0.1:{port}", "tracking_uri": place.tracking})
        if as_json:
            return
        console_of().print(f"MLflow at http://127.0.0.1:{port}  (Ctrl-C ends it)", highlight=False)
        code = mlflow_side.serve(place.tracking, port)
    raise typer.Exit(code)
