"""`harness doctor`: whether this installation can run, and what is in the way."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.home import Home
from harness.problems import UserError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES = ("mri-harness", "torch", "ray", "mlflow", "monai", "numpy", "nilearn", "polars", "pydantic")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `detail` says what was found, and what to do where it is not fine."""

    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(home: Home) -> list[Finding]:
    """Look at versions, devices, memory, store, tracking, plugins and the embedded data."""
    return [
        Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *_packages(),
        _guarded("devices", _devices),
        _guarded("memory", _memory),
        _guarded("shared memory", _shared_memory),
        _guarded("store", lambda: _store(home)),
        _guarded("tracking", lambda: _tracking(home)),
        _guarded("embedded data", _template),
        *_plugins(),
    ]


def _guarded(name: str, look: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        ok, detail = look()
    except UserError as error:
        ok, detail = False, str(error)
    except Exception as error:
        ok, detail = False, f"{type(error).__name__}: {error}"
    return Finding(name, ok, detail)


def _packages() -> list[Finding]:
    found = []
    for package in PACKAGES:
        try:
            found.append(Finding(package, True, version(package)))
        except PackageNotFoundError:
            found.append(Finding(package, False, "not installed; run pip install -c constraints.txt -e ."))
    return found


def _devices() -> tuple[bool, str]:
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    if not torch.cuda.is_available():
        return True, f"{cores}, no GPU: stages run on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return True, f"{cores}; {', '.join(names)}"


def _memory() -> tuple[bool, str]:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = pages * size / 2**30
    return free > 2, f"{free:.1f} GiB free" + ("" if free > 2 else "; at least 2 GiB are needed")


def _shared_memory() -> tuple[bool, str]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return True, "not used on this system"
    free = shutil.disk_usage(path).free / 2**20
    hint = "" if free > 300 else "; Ray wants 256 MiB there (docker: --shm-size=1g)"
    return free > 300, f"{free:.0f} MiB free in {path}{hint}"


def _store(home: Home) -> tuple[bool, str]:
    from harness.engine.store import open_store

    home.create()
    store = open_store(home.store)
    free = shutil.disk_usage(store.root).free / 2**30
    return free > 1, f"{home.store}, {len(store.keys())} artifacts, {free:.0f} GiB free"


def _tracking(home: Home) -> tuple[bool, str]:
    from harness.results.connection import check_uri, shown

    trouble, name = check_uri(home.tracking), shown(home.tracking)
    return trouble is None, f"{name}: {trouble}" if trouble else name


def _template() -> tuple[bool, str]:
    from harness.phantom.template import template

    return True, f"ICBM152 template of nilearn, painted with {len(template().memberships)} structures"


def _plugins() -> list[Finding]:
    from harness import registry

    found = []
    entries = registry.entries()
    for method_id, entry in entries.items():
        try:
            registry.load(method_id)
        except registry.BrokenPlugin as error:
            found.append(Finding(f"method {method_id}", False, str(error)))
            continue
        if entry.origin != "built-in":
            found.append(Finding(f"method {method_id}", True, entry.origin))
    built_in = sum(entry.origin == "built-in" for entry in entries.values())
    return [Finding("methods", True, f"{built_in} built in, {len(entries) - built_in} from other packages"), *found]


def show(findings: list[Finding], console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]problem[/]"
        table.add_row(mark, f"[bold]{finding.name}", finding.detail)
    console.print(table)
