"""`harness plan` and `harness explain`: what a run would do, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engine.executor import survey, to_do
from harness.engine.history import History
from harness.engine.plan import Plan, Stage, uncollected
from harness.engine.simulate import Replay, Workload, counts, enough
from harness.engine.store import CorruptArtifact, Manifest, Store, open_store
from harness.home import Home
from harness.problems import UserError
from harness.progress import KINDS, duration
from harness.spec import load

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Overview:
    """A plan in numbers. Seconds are an estimate; `measured` tells whether it rests on recorded durations.

    path: seconds of the longest chain of stages, which no number of workers beats. scaling: the same plan on 1, 2, 4 …
    workers, where a number of workers was asked for.
    """

    benchmark: str
    cells: int
    methods: list[str]
    sites: list[str]
    kinds: dict[str, dict[str, int]]
    saved: int
    seconds: float
    path: float
    workers: int
    measured: bool
    scaling: list[Replay]
    missing: list[str]
    corrupt: list[str]
    stages: list[dict[str, str]]

    def as_json(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        scaling = [
            asdict(replay) | {"efficiency": replay.efficiency, "worker_hours": replay.worker_hours}
            for replay in self.scaling
        ]
        return {**found, "scaling": scaling, "trainings_saved": self.saved}


def overview(file: Path, overrides: Iterable[str], home: Home, root: Path | None, workers: int | None) -> Overview:
    """Plan a file and compare it with the store. Writes nothing but caches; works without the data.

    workers: CPU cores to estimate for; without them the estimate is for this machine's.
    """
    import os

    with uncollected():
        benchmark = load(file, overrides, cache=home.cache, root=root)
    plan, store = benchmark.plan, open_store(home.store, create=False)
    whole, corrupt = survey(plan, store)
    pending = to_do(plan, whole, corrupt)
    history = History(store.root)
    workload = Workload(pending, history.estimate, benchmark.spec.resources)
    replays = [workload.on(count) for count in (counts(workers) if workers else (os.cpu_count() or 1,))]
    kinds: dict[str, Counter[str]] = {}
    for stage in plan.stages:
        kinds.setdefault(stage.kind, Counter()).update(total=1, cached=int(stage.key in whole))
    for stage in pending:
        kinds[stage.kind]["todo"] += 1
    todo = {stage.key for stage in pending}
    return Overview(
        benchmark=plan.benchmark,
        cells=len(plan.cells),
        methods=[row.name for row in benchmark.rows],
        sites=list(benchmark.sites),
        kinds={k: {"total": c["total"], "cached": c["cached"], "todo": c["todo"]} for k, c in kinds.items()},
        saved=plan.trainings_saved(),
        seconds=replays[-1].seconds,
        path=workload.path,
        workers=replays[-1].workers,
        measured=history.known(pending),
        scaling=replays if workers and pending else [],
        missing=benchmark.dataset.missing(),
        corrupt=[f"{plan.by_key[key].title}: {reason}" for key, reason in corrupt.items()],
        stages=[
            {"title": s.title, "kind": s.kind, "key": s.key, "state": "todo" if s.key in todo else "cached"}
            for s in plan.stages
        ],
    )


def estimate(plan: Plan, pending: list[Stage], history: History, workers: int) -> float:
    """Seconds of a run of what is pending, replayed on so many CPU cores."""
    return Workload(pending, history.estimate).on(workers).seconds


def show(view: Overview, console: Console, *, stages: bool) -> None:
    from rich.table import Table

    console.print(
        f"[bold]{view.benchmark}[/]  {len(view.methods)} methods × {len(view.sites)} sites, {view.cells} cells",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "total", "cached", "to do"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for kind in sorted(view.kinds, key=lambda k: KINDS.index(k) if k in KINDS else len(KINDS)):
        row = view.kinds[kind]
        table.add_row(kind, str(row["total"]), str(row["cached"]), str(row["todo"]))
    sums = {name: sum(row[name] for row in view.kinds.values()) for name in ("total", "cached", "todo")}
    table.add_row("[bold]all", f"[bold]{sums['total']}", f"[bold]{sums['cached']}", f"[bold]{sums['todo']}")
    console.print(table)
    console.print(f"{view.saved} trainings saved by sharing", highlight=False)
    if sums["todo"]:
        guess = "a guess from small runs: some stages never ran here with these settings"
        basis = "from recorded durations" if view.measured else guess
        workers = f"{view.workers} worker{'s' if view.workers > 1 else ''}"
        console.print(f"about {duration(view.seconds)} on {workers} ({basis})", highlight=False)
        _show_scaling(view, console)
    else:
        console.print("nothing to do", highlight=False)
    for line in (*view.missing, *(f"corrupt: {c}" for c in view.corrupt)):
        console.print(f"[yellow]{line}", highlight=False, soft_wrap=True)
    if stages:
        for stage in view.stages:
            console.print(f"{stage['state']:7} {stage['key'][:12]}  {stage['title']}", highlight=False, soft_wrap=True)


def _show_scaling(view: Overview, console: Console) -> None:
    """The plan on 1, 2, 4 … workers, and where more of them stop helping."""
    from rich.table import Table

    if not view.scaling:
        return
    best = enough(view.scaling)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("workers", "time", "busy", "worker-hours"):
        table.add_column(name, justify="right")
    for replay in view.scaling:
        style = "dim" if replay.workers > best.workers else ""
        hours = f"{replay.worker_hours:.3g}" if replay.worker_hours < 100 else f"{replay.worker_hours:.0f}"
        table.add_row(str(replay.workers), duration(replay.seconds), f"{replay.efficiency:.0%}", hours, style=style)
    console.print(table)
    chain = f"the longest chain of stages takes {duration(view.path)}"
    if best.workers < view.workers:
        console.print(f"more than {best.workers} gain less than 5 %; {chain}", highlight=False)
    else:
        console.print(chain, highlight=False)


# ------------------------------------------------------------------------------------------- explain


@dataclass(frozen=True)
class Explained:
    """Why one stage would run or not. `changes`: component → what differs from the nearest earlier artifact."""

    title: str
    key: str
    verdict: str
    changes: dict[str, list[str]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(name: str, file: Path | None, overrides: Iterable[str], home: Home, root: Path | None) -> list[Explained]:
    """Explain every stage that `name` may mean. Raises UserError if there is none."""
    if Path(name).suffix in (".yaml", ".yml") and file is not None:  # the other order is as good
        name, file = str(file), Path(name)
    benchmark = load(file or home.last_file(), overrides, cache=home.cache, root=root)
    store = open_store(home.store, create=False)
    stages = benchmark.plan.find(name)
    if not stages:
        raise UserError(
            f"no stage is called {name!r}; list them with `harness plan {file or home.last_file()} --stages`"
        )
    whole, corrupt = survey(benchmark.plan, store)
    todo = {stage.key for stage in to_do(benchmark.plan, whole, corrupt)}
    earlier = _manifests(store) if any(stage.key in todo for stage in stages) else []
    return [_explain(stage, stage.key in whole, stage.key in todo, corrupt, store, earlier) for stage in stages]


def _explain(
    stage: Stage, whole: bool, todo: bool, corrupt: dict[str, str], store: Store, earlier: list[Manifest]
) -> Explained:
    def answer(verdict: str, changes: dict[str, list[str]] | None = None) -> Explained:
        return Explained(stage.title, stage.key, verdict, changes or {})

    if whole:
        return answer("cached: its artifact is in the store and whole")
    if stage.key in corrupt:
        return answer(f"would run: its artifact is corrupt ({corrupt[stage.key]})")
    if not todo:
        return answer("would not run: no missing result needs it")
    failure = store.failure(stage.key)
    if failure:
        return answer(f"would run: it failed before ({failure.get('error', '')})")
    same = [m for m in earlier if m.title == stage.title and m.kind == stage.kind]
    if not same:
        return answer("would run: it never ran with this store")
    now = stage.components
    nearest = max(same, key=lambda m: sum(m.components.get(k) == v for k, v in now.items()))
    return answer("would run: its key changed", _differences(nearest, stage))


def _differences(old: Manifest, stage: Stage) -> dict[str, list[str]]:
    from harness.engine import code

    found: dict[str, list[str]] = {}
    for name in dict.fromkeys((*stage.components, *old.components)):
        before: Any = old.components.get(name)
        now: Any = stage.components.get(name)
        if before == now:
            continue
        if name == "code":
            current = code.symbols(tuple(dict.fromkeys((stage.fn, *stage.code))))
            changed = [s for s in {*current, *old.code} if current.get(s) != old.code.get(s)]
            found[name] = sorted(changed)
        elif name == "inputs":
            titles = {need_name: need.title for need_name, need in stage.needs.items()}
            changed = [n for n in {*now, *(before or {})} if (before or {}).get(n) != now.get(n)]
            found[name] = sorted(f"{n} ({titles[n]})" if n in titles else n for n in changed)
        else:
            found[name] = sorted(_changed_values(name, before, now))
    return found


def _changed_values(name: str, before: Any, now: Any) -> list[str]:
    """Leaf by leaf: 'method.fields.learning_rate: 0.0001 → 0.001'."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
            for line in _changed_values(f"{name}.{key}", before.get(key), now.get(key))
        ]
    return [f"{name}: {_brief(before)} → {_brief(now)}"]


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _manifests(store: Store) -> list[Manifest]:
    found = []
    for key in store.keys():
        try:
            manifest = store.manifest(key)
        except CorruptArtifact:
            continue
        if manifest:
            found.append(manifest)
    return found


def show_explained(found: list[Explained], console: Console) -> None:
    for item in found:
        console.print(f"[bold]{item.title}[/]  [dim]{item.key[:12]}[/]", highlight=False)
        console.print(f"  {item.verdict}", highlight=False, soft_wrap=True)
        for name, lines in item.changes.items():
            console.print(f"  {name}", highlight=False)
            for line in lines[:12]:
                console.print(f"    {line}", highlight=False, soft_wrap=True, markup=False)
            if len(lines) > 12:
                console.print(f"    … and {len(lines) - 12} more", highlight=False)
