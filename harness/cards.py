"""Cards of methods and data sets, their lists, audits and conformance results: what the CLI shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.anomaly import Component
from harness.api import Adaptive, Generalizer, Method
from harness.brain_age import VolumeSegmenter
from harness.home import Home
from harness.problems import Problem, UserError

if TYPE_CHECKING:
    from rich.console import Console

TRAITS = ("source_free", "task_agnostic", "unknown_domains")
_SHARED = (Component, VolumeSegmenter)  # what methods hold as fields and is learnt once for all of them


# ------------------------------------------------------------------------------------------- methods


def method_list() -> list[dict[str, Any]]:
    """Every registered method; one that cannot be imported is listed with its error."""
    rows = []
    for method_id, entry in registry.entries().items():
        row: dict[str, Any] = {"id": method_id, "origin": entry.origin, "error": None}
        try:
            cls = registry.load(method_id)
            row |= {"family": cls.family, "reference": cls.reference, "traits": traits(cls), "summary": summary(cls)}
        except registry.BrokenPlugin as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def traits(cls: type[Method]) -> dict[str, bool] | None:
    """The three declared traits of a harmoniser, adapter or generalizer, None for other families."""
    return {name: bool(getattr(cls, name)) for name in TRAITS} if issubclass(cls, Adaptive | Generalizer) else None


def method_card(method_id: str) -> dict[str, Any]:
    """The card of a method: reference, traits, notes, and its fields with defaults and their origin."""
    cls = _load(method_id)
    return {
        "id": method_id,
        "family": cls.family,
        "origin": registry.entries()[method_id].origin,
        "class": registry.entries()[method_id].target,
        "reference": cls.reference,
        "traits": traits(cls),
        "description": _doc(cls),
        "notes": cls.notes,
        "fields": fields(cls),
        "components": components(cls),
    }


def components(cls: type[Method]) -> dict[str, str]:
    """Field → id of the component or segmenter that it holds by default, which has a card of its own."""
    defaults = {name: info.get_default(call_default_factory=True) for name, info in cls.model_fields.items()}
    return {name: default.id for name, default in defaults.items() if isinstance(default, _SHARED)}


def fields(cls: type[Any], prefix: str = "") -> list[dict[str, Any]]:
    """Fields of a method, those of nested groups under dotted names."""
    from pydantic import BaseModel

    rows: list[dict[str, Any]] = []
    for name, info in cls.model_fields.items():
        default = info.get_default(call_default_factory=True)
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        if isinstance(default, BaseModel):
            nested = fields(type(default), f"{prefix}{name}.")
            values = _flat(default.model_dump(mode="json"), f"{prefix}{name}.")
            rows += [{**row, "default": values.get(row["name"], row["default"])} for row in nested]
            continue
        rows.append(
            {
                "name": f"{prefix}{name}",
                "default": default if isinstance(default, int | float | str | bool | list | None) else str(default),
                "description": info.description or "",
                "origin": str(extra.get("origin", "")),
            }
        )
    return rows


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found


def _load(method_id: str) -> type[Method]:
    try:
        return registry.load(method_id)
    except registry.BrokenPlugin as error:
        raise UserError(str(error)) from None


def _doc(cls: type[Method]) -> str:
    import inspect

    return inspect.getdoc(cls) or ""


def summary(cls: type[Method]) -> str:
    """The first paragraph of a method's docstring, in one line."""
    return _doc(cls).split("\n\n")[0].replace("\n", " ")


def _mark(value: bool) -> str:
    return "[green]✓[/]" if value else "[dim]✗[/]"


def show_methods(console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("method", "family", "source-\nfree", "task-\nagnostic", "unknown\ndomains", "what", "from"):
        table.add_column(name, overflow="fold")
    for row in method_list():
        if row["error"]:
            table.add_row(row["id"], "[red]broken", "", "", "", row["error"], row["origin"])
            continue
        marks = [_mark(row["traits"][t]) if row["traits"] else "" for t in TRAITS]
        table.add_row(f"[bold]{row['id']}", row["family"], *marks, row["summary"], row["origin"])
    console.print(table)
    console.print("[dim]harness methods ID prints a card, harness check ID runs its checks", highlight=False)


def show_method(method_id: str, console: Console) -> None:
    from rich.table import Table

    card = method_card(method_id)
    console.print(f"[bold]{card['id']}[/]  {card['family']}, {card['origin']}", highlight=False)
    console.print(f"[dim]{card['reference']}", highlight=False)
    if card["traits"]:
        marks = "   ".join(f"{name.replace('_', '-')} {_mark(card['traits'][name])}" for name in TRAITS)
        console.print(marks, highlight=False)
    console.print(f"\n{card['description']}\n", highlight=False, markup=False)
    if card["notes"]:
        console.print(f"Notes: {card['notes']}\n", highlight=False, markup=False)
    if card["fields"]:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("field", "default", "meaning", "origin"):
            table.add_column(name, overflow="fold")
        shown: set[str] = set()
        for row in card["fields"]:
            field = row["name"].partition(".")[0]
            if field not in card["components"]:
                table.add_row(f"[bold]{row['name']}", str(row["default"]), row["description"], row["origin"])
            elif field not in shown:
                component = card["components"][field]
                meaning, where = "a method of its own, learnt once for all that use it", f"harness methods {component}"
                table.add_row(f"[bold]{field}.…", component, meaning, f"its fields: {where}")
                shown.add(field)
        console.print(table)


# ------------------------------------------------------------------------------------------- conformance


def conformance(method_id: str) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from harness.conformance import check_method

    return [asdict(result) for result in check_method(_load(method_id))]


def show_conformance(method_id: str, results: list[dict[str, Any]], console: Console) -> None:
    for result in results:
        worst = "[yellow]warn[/]" if result["advisory"] else "[red]FAIL[/]"
        mark = "[green]pass[/]" if result["passed"] else worst
        console.print(f"{mark}  {result['name']}", highlight=False)
        if result["detail"] and not result["passed"]:
            console.print(f"      {result['detail']}", highlight=False, markup=False, soft_wrap=True)
    failed = sum(not result["passed"] and not result["advisory"] for result in results)
    console.print(f"{method_id}: {len(results) - failed} passed, {failed} failed", highlight=False)


# ------------------------------------------------------------------------------------------- data sets


def dataset_list() -> list[dict[str, Any]]:
    from harness.data.card import card_ids, read_card

    rows: list[dict[str, Any]] = []
    for card_id in card_ids():
        try:
            card = read_card(card_id)
        except UserError as error:
            rows.append({"id": card_id, "error": str(error).splitlines()[0]})
            continue
        rows.append(
            {
                "id": card_id,
                "name": card.name,
                "kind": card.kind,
                "simulated": card.simulated,
                "sites": list(card.sites),
                "licence": card.licence,
                "error": None,
            }
        )
    return rows


def dataset_card(card_id: str) -> dict[str, Any]:
    from harness.data.card import read_card

    found: dict[str, Any] = read_card(card_id).model_dump(mode="json")
    return found


def show_datasets(console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("data set", "what", "images", "sites", "licence"):
        table.add_column(name, overflow="fold")
    for row in dataset_list():
        if row["error"]:
            table.add_row(row["id"], f"[red]{row['error']}", "", "", "")
            continue
        kind = "simulated" if row["simulated"] else "real"
        table.add_row(f"[bold]{row['id']}", row["name"], kind, ", ".join(row["sites"]), row["licence"])
    console.print(table)


def show_dataset(card_id: str, console: Console) -> None:
    import yaml

    console.print(yaml.safe_dump(dataset_card(card_id), sort_keys=False, allow_unicode=True), markup=False)


def audit(card: str, root: Path | None, home: Home, split_file: Path | None) -> dict[str, Any]:
    """Audit a card's data, or a benchmark file's. Raises UserError with every problem."""
    import json

    from harness.data.card import read_card
    from harness.data.dataset import open_dataset
    from harness.derived import read_derived

    sites = None
    if Path(card).suffix in (".yaml", ".yml") and isinstance(read_derived(card).data.get("track"), str):
        from harness.spec import load

        benchmark = load(card, cache=home.cache, root=root)
        dataset, sites = benchmark.dataset, benchmark.sites
    else:
        dataset = open_dataset(read_card(card), root, home.cache)
    missing = dataset.missing()
    if missing:
        raise UserError([Problem(card, line) for line in missing])
    problems = dataset.audit(sites or dataset.sites)
    if problems:
        raise UserError(problems)
    summary = dataset.summary()
    if split_file:
        split_file.write_text(json.dumps(dataset.splits(), indent=1))
    return {"card": card, "problems": 0, **summary}


def show_audit(audited: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    kind = "simulated" if audited.get("simulated") else "real scans"
    console.print(f"[bold]{audited.get('name', audited['card'])}[/]  {kind}: no problems", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    sites = audited.get("sites", {})
    for name in ("site", "train", "validation", "test", "labels", ""):
        table.add_column(name, justify="left" if name in ("site", "labels", "") else "right")
    for site, row in sites.items():
        counts = [str(row.get(split, "")) for split in ("train", "validation", "test")]
        table.add_row(site, *counts, "yes" if row.get("labelled") else "no", str(row.get("shift") or ""))
    console.print(table)
    for line in audited.get("warnings", ()):
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False)
