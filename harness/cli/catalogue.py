"""What there is to run, and whether it is sound: methods, data, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.plumbing import HomeOption, Json, Root, StoreOption, Tracking, answering, console_of, home_of


@app.command()
def methods(
    method_id: Annotated[str | None, typer.Argument(help="A method's id: print its card.", metavar="ID")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or print the card of one: reference, traits, fields with defaults and origin."""
    with answering(as_json) as answer:
        from harness import cards

        if method_id is None:
            answer.update({"methods": cards.method_list()})
            if not as_json:
                cards.show_methods(console_of())
        else:
            answer.update(cards.method_card(method_id))
            if not as_json:
                cards.show_method(method_id, console_of())


@app.command()
def datasets(
    card: Annotated[str | None, typer.Argument(help="A card's id or file.", metavar="ID")] = None,
    as_json: Json = False,
) -> None:
    """List the dataset cards, or print one."""
    with answering(as_json) as answer:
        from harness import cards

        if card is None:
            answer.update({"datasets": cards.dataset_list()})
            if not as_json:
                cards.show_datasets(console_of())
        else:
            answer.update(cards.dataset_card(card))
            if not as_json:
                cards.show_dataset(card, console_of())


@app.command()
def prepare(
    card: Annotated[str, typer.Argument(help="A dataset card (id or file), or a benchmark file.", metavar="CARD")],
    root: Root = None,
    home: HomeOption = None,
    split_file: Annotated[Path | None, typer.Option(help="Write the split by subject here.")] = None,
    as_json: Json = False,
) -> None:
    """Audit a data set before any work: every file, every problem at once; print its splits."""
    with answering(as_json) as answer:
        from harness import cards

        audited = cards.audit(card, root, home_of(home), split_file)
        answer.update(audited)
        if not as_json:
            cards.show_audit(audited, console_of())


@app.command()
def check(
    method_id: Annotated[str, typer.Argument(help="A method's id.", metavar="ID")],
    as_json: Json = False,
) -> None:
    """Run the conformance checks on a method, your own included."""
    with answering(as_json) as answer:
        from harness import cards

        results = cards.conformance(method_id)
        passed = all(result["passed"] or result["advisory"] for result in results)
        answer.update({"method": method_id, "passed": passed, "checks": results})
        if not as_json:
            cards.show_conformance(method_id, results, console_of())
    raise typer.Exit(0 if passed else 1)


@app.command()
def doctor(
    home: HomeOption = None, store: StoreOption = None, tracking: Tracking = None, as_json: Json = False
) -> None:
    """Check this installation: versions, devices, memory, store, tracking, plugins."""
    with answering(as_json) as answer:
        from harness import diagnosis

        findings = diagnosis.examine(home_of(home, store, tracking))
        fine = all(finding.ok for finding in findings)
        answer.update({"ok": fine, "findings": [finding.as_json() for finding in findings]})
        if not as_json:
            diagnosis.show(findings, console_of())
    raise typer.Exit(0 if fine else 1)
