"""The command line. Thin: each command parses, calls one function, prints. Heavy imports stay inside commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.problems import Problem, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.home import Home

app = typer.Typer(
    name="harness",
    help="Find out which brain-MRI method really works: one YAML file, one protocol, every method.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="Benchmark file.", metavar="FILE")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: --set methods.NAME.FIELD=VALUE", metavar="KEY=VALUE"),
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


@app.command()
def run(
    file: File,
    overrides: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Stages at a time. [CPU cores]")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on: auto, or HOST:PORT. [a local Ray]")
    ] = None,
    root: Root = None,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: Tracking = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark: only what is missing, to records, leaderboard, report and MLflow."""
    with _answering(as_json) as answer:
        from harness import run as running
        from harness.progress import LiveProgress, PlainProgress

        place = _home(home, store, tracking)
        console = _console(stderr=as_json)
        progress = LiveProgress(console) if console.is_terminal and not as_json else PlainProgress()
        result = running.run(
            file, overrides or [], place, root=root, workers=workers, address=address, progress=progress,
            say=lambda text: _note(f"  {text}"),
        )  # fmt: skip
        for warning in result.warnings:
            _note(f"warning: {warning}")
        for failure in [f for f in result.failures if f["status"] == "failed"]:
            _note(f"failed: {failure['stage']}: {failure['error']}")
        answer.update(result.as_json())
        if not as_json and not result.interrupted:
            _show_leaderboard(result.folder, console)
            console.print(f"report   {_short(result.folder / 'report.html')}", highlight=False, soft_wrap=True)
            console.print(f"records  {_short(result.folder / 'records.parquet')}", highlight=False, soft_wrap=True)
            console.print("browse   harness ui", highlight=False)
    raise typer.Exit(result.exit_code)


@app.command()
def sweep(
    files: Annotated[list[Path], typer.Argument(help="Sweep files.", metavar="FILE...")],
    overrides: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Stages at a time. [CPU cores]")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on: auto, or HOST:PORT. [a local Ray]")
    ] = None,
    root: Root = None,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: Tracking = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the trials and what they share; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Vary fields of a method over a benchmark: ablations and searches, in which trials share their stages."""
    code = 0
    with _answering(as_json) as answer:
        from harness.progress import LiveProgress, PlainProgress
        from harness.sweep import run as sweeping
        from harness.sweep import view as sweepview

        place = _home(home, store, "none" if plan else tracking)
        console = _console(stderr=as_json)
        sweeps = sweeping.prepare(files, overrides or [], place, root)
        answer["sweeps"] = []
        for each in sweeps:
            if plan:
                overview = sweepview.overview(each, place, workers)
                answer["sweeps"].append(overview.as_json())
                if not as_json:
                    sweepview.show_overview(overview, console)
                continue
            progress = LiveProgress(console) if console.is_terminal and not as_json else PlainProgress()
            result = sweeping.run(
                each, place, workers=workers, address=address, progress=progress, say=lambda text: _note(f"  {text}")
            )
            answer["sweeps"].append(result.as_json())
            code = max(code, result.exit_code)
            for warning in result.warnings:
                _note(f"warning: {warning}")
            for failure in [f for f in result.failures if f.status == "failed"]:
                _note(f"failed: {failure.title}: {failure.error}")
            if not as_json:
                sweepview.show(result, console)
            if result.interrupted:
                _note("interrupted; continue with the same command")
                break
            if not as_json:
                console.print(f"report   {_short(result.folder / 'report.html')}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@app.command()
def plan(
    file: File,
    overrides: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Workers to estimate for.")] = None,
    root: Root = None,
    home: HomeOption = None,
    store: StoreOption = None,
    stages: Annotated[bool, typer.Option("--stages", help="List every stage.")] = False,
    as_json: Json = False,
) -> None:
    """What a run would do: stages per kind, cached and to do, trainings saved, time. Runs nothing."""
    with _answering(as_json) as answer:
        from harness import planning

        overview = planning.overview(file, overrides or [], _home(home, store, "none"), root, workers)
        answer.update(overview.as_json())
        if not as_json:
            planning.show(overview, _console(), stages=stages)


@app.command()
def explain(
    stage: Annotated[str, typer.Argument(help="Title, part of a title, or key of a stage.")],
    file: Annotated[Path | None, typer.Argument(help="Benchmark file; default: the last run's.")] = None,
    overrides: Set = None,
    root: Root = None,
    home: HomeOption = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Why a stage would run, or why it would not: which component of its key changed."""
    with _answering(as_json) as answer:
        from harness import planning

        found = planning.explain(stage, file, overrides or [], _home(home, store, "none"), root)
        answer.update({"stages": [item.as_json() for item in found]})
        if not as_json:
            planning.show_explained(found, _console())


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
    with _answering(as_json) as answer:
        from harness.results import leaderboard as boards
        from harness.results import published, terminal

        place = _home(home)
        if results and len(results) > 1:
            from harness.results import combined

            if csv or markdown or against:
                raise UserError("--csv, --markdown and --against take one benchmark; name one")
            ranking = combined.build([place.find_results(name) for name in results])
            answer.update(ranking.as_json())
            if not as_json:
                terminal.show_combined(ranking, _console())
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
            terminal.show(board, _console())
            if beside:
                terminal.show_beside(beside, published.caution(board), _console())


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
    with _answering(as_json) as answer:
        from harness.results import published
        from harness.results.html import write_combined, write_report

        place = _home(home)
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
            _console().print(f"report   {_short(path)}", highlight=False, soft_wrap=True)


@app.command()
def methods(
    method_id: Annotated[str | None, typer.Argument(help="A method's id: print its card.", metavar="ID")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or print the card of one: reference, traits, fields with defaults and origin."""
    with _answering(as_json) as answer:
        from harness import cards

        if method_id is None:
            answer.update({"methods": cards.method_list()})
            if not as_json:
                cards.show_methods(_console())
        else:
            answer.update(cards.method_card(method_id))
            if not as_json:
                cards.show_method(method_id, _console())


@app.command()
def datasets(
    card: Annotated[str | None, typer.Argument(help="A card's id or file.", metavar="ID")] = None,
    as_json: Json = False,
) -> None:
    """List the dataset cards, or print one."""
    with _answering(as_json) as answer:
        from harness import cards

        if card is None:
            answer.update({"datasets": cards.dataset_list()})
            if not as_json:
                cards.show_datasets(_console())
        else:
            answer.update(cards.dataset_card(card))
            if not as_json:
                cards.show_dataset(card, _console())


@app.command()
def prepare(
    card: Annotated[str, typer.Argument(help="A dataset card (id or file), or a benchmark file.", metavar="CARD")],
    root: Root = None,
    home: HomeOption = None,
    split_file: Annotated[Path | None, typer.Option(help="Write the split by subject here.")] = None,
    as_json: Json = False,
) -> None:
    """Audit a data set before any work: every file, every problem at once; print its splits."""
    with _answering(as_json) as answer:
        from harness import cards

        audited = cards.audit(card, root, _home(home), split_file)
        answer.update(audited)
        if not as_json:
            cards.show_audit(audited, _console())


@app.command()
def check(
    method_id: Annotated[str, typer.Argument(help="A method's id.", metavar="ID")],
    as_json: Json = False,
) -> None:
    """Run the conformance checks on a method, your own included."""
    with _answering(as_json) as answer:
        from harness import cards

        results = cards.conformance(method_id)
        passed = all(result["passed"] or result["advisory"] for result in results)
        answer.update({"method": method_id, "passed": passed, "checks": results})
        if not as_json:
            cards.show_conformance(method_id, results, _console())
    raise typer.Exit(0 if passed else 1)


@app.command()
def sync(home: HomeOption = None, tracking: Tracking = None, as_json: Json = False) -> None:
    """Log to MLflow what could not be logged when it was run."""
    with _answering(as_json) as answer:
        from harness.results import tracking as mlflow_side

        place = _home(home, None, tracking)
        trouble = mlflow_side.check_uri(place.tracking)
        if trouble:
            raise UserError(Problem(place.tracking, trouble))
        outcomes = [mlflow_side.project(folder, place.tracking) for folder in mlflow_side.pending(place.root)]
        bad = [outcome.warning for outcome in outcomes if outcome.warning]
        answer.update({"tracking_uri": place.tracking, "synced": len(outcomes) - len(bad), "warnings": bad})
        if not as_json:
            _console().print(f"{len(outcomes) - len(bad)} synced to {place.tracking}", highlight=False, soft_wrap=True)
            for line in bad:
                _note(f"warning: {line}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    home: HomeOption = None,
    tracking: Tracking = None,
    as_json: Json = False,
) -> None:
    """Open MLflow's pages on this machine (127.0.0.1 only)."""
    with _answering(as_json) as answer:
        from harness.results import tracking as mlflow_side

        place = _home(home, None, tracking)
        answer.update({"url": f"http://127.0.0.1:{port}", "tracking_uri": place.tracking})
        if as_json:
            return
        _console().print(f"MLflow at http://127.0.0.1:{port}  (Ctrl-C ends it)", highlight=False)
        code = mlflow_side.serve(place.tracking, port)
    raise typer.Exit(code)


@app.command()
def doctor(
    home: HomeOption = None, store: StoreOption = None, tracking: Tracking = None, as_json: Json = False
) -> None:
    """Check this installation: versions, devices, memory, store, tracking, plugins."""
    with _answering(as_json) as answer:
        from harness import diagnosis

        findings = diagnosis.examine(_home(home, store, tracking))
        fine = all(finding.ok for finding in findings)
        answer.update({"ok": fine, "findings": [finding.as_json() for finding in findings]})
        if not as_json:
            diagnosis.show(findings, _console())
    raise typer.Exit(0 if fine else 1)


# ------------------------------------------------------------------------------------------- plumbing


@contextmanager
def _answering(as_json: bool) -> Iterator[dict[str, Any]]:
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
            _note(str(problem))
        raise typer.Exit(2) from None
    finally:
        if saved is not None:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
            print(json.dumps(answer, indent=1), flush=True)


def _home(home: Path | None = None, store: str | None = None, tracking: str | None = None) -> Home:
    from harness.home import Home

    return Home.of(home, store, tracking)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(stderr=stderr, width=120)
    return console


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _show_leaderboard(folder: Path, console: Console) -> None:
    from harness.results import leaderboard as boards
    from harness.results import terminal

    terminal.show(boards.build(folder), console)


def main() -> None:
    """Console-script entry. Ctrl-C outside a run ends without a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
