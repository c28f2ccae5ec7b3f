"""What runs stages, or says what would run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.plumbing import (
    Address,
    File,
    HomeOption,
    Json,
    Root,
    Set,
    StoreOption,
    Tracking,
    answering,
    console_of,
    home_of,
    note,
    short,
    show_leaderboard,
)


@app.command()
def run(
    file: File,
    overrides: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Stages at a time. [CPU cores]")] = None,
    address: Address = None,
    root: Root = None,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: Tracking = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark: only what is missing, to records, leaderboard, report and MLflow."""
    with answering(as_json) as answer:
        from harness import run as running
        from harness.progress import LiveProgress, PlainProgress

        place = home_of(home, store, tracking)
        console = console_of(stderr=as_json)
        progress = LiveProgress(console) if console.is_terminal and not as_json else PlainProgress()
        result = running.run(
            file, overrides or [], place, root=root, workers=workers, address=address, progress=progress,
            say=lambda text: note(f"  {text}"),
        )  # fmt: skip
        for warning in result.warnings:
            note(f"warning: {warning}")
        for failure in [f for f in result.failures if f["status"] == "failed"]:
            note(f"failed: {failure['stage']}: {failure['error']}")
        answer.update(result.as_json())
        if not as_json and result.complete:
            show_leaderboard(result.folder, console)
            console.print(f"report   {short(result.folder / 'report.html')}", highlight=False, soft_wrap=True)
            console.print(f"records  {short(result.folder / 'records.parquet')}", highlight=False, soft_wrap=True)
            console.print("browse   harness ui", highlight=False)
    raise typer.Exit(result.exit_code)


@app.command()
def sweep(
    files: Annotated[list[Path], typer.Argument(help="Sweep files.", metavar="FILE...")],
    overrides: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Stages at a time. [CPU cores]")] = None,
    address: Address = None,
    root: Root = None,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: Tracking = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the trials and what they share; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Vary fields of a method over a benchmark: ablations and searches, in which trials share their stages."""
    code = 0
    with answering(as_json) as answer:
        from harness.progress import LiveProgress, PlainProgress
        from harness.sweep import run as sweeping
        from harness.sweep import view as sweepview

        place = home_of(home, store, "none" if plan else tracking)
        console = console_of(stderr=as_json)
        sweeps = sweeping.prepare(files, overrides or [], place, root, to_run=not plan)
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
                each, place, workers=workers, address=address, progress=progress, say=lambda text: note(f"  {text}")
            )
            answer["sweeps"].append(result.as_json())
            code = max(code, result.exit_code)
            for warning in result.warnings:
                note(f"warning: {warning}")
            for failure in [f for f in result.failures if f.status == "failed"]:
                note(f"failed: {failure.title}: {failure.error}")
            if not as_json:
                sweepview.show(result, console)
            if not result.complete:
                note(result.stopped or "interrupted; continue with the same command")
                break
            if not as_json:
                console.print(f"report   {short(result.folder / 'report.html')}", highlight=False, soft_wrap=True)
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
    with answering(as_json) as answer:
        from harness import planning

        overview = planning.overview(file, overrides or [], home_of(home, store, "none"), root, workers)
        answer.update(overview.as_json())
        if not as_json:
            planning.show(overview, console_of(), stages=stages)


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
    with answering(as_json) as answer:
        from harness import planning

        found = planning.explain(stage, file, overrides or [], home_of(home, store, "none"), root)
        answer.update({"stages": [item.as_json() for item in found]})
        if not as_json:
            planning.show_explained(found, console_of())
