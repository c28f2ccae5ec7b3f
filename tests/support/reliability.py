"""What the fault suite saw, row by row; `docs/reliability.md` is made of it.

    note("a worker is killed", saw="! train segmenter_2d KKI: ... trying again", seconds=41.2)

appends a line to the file that HARNESS_RELIABILITY names; without it nothing is kept. Every row that any test
notes must be listed in `ROWS`, so that a row which did not run is seen to be missing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

HEAD = """# Reliability

Faults are injected into real runs by `make test-faults`, which writes this page: real processes, a real Ray, a real
MLflow. After each fault the final records equal those of an undisturbed run and no stage that had finished ran again,
unless the fault destroyed its artifact; both are asserted, not read off. The last column is what the user saw.
"""

ROWS: tuple[tuple[str, str], ...] = (
    ("a worker is killed", "SIGKILL while it trains"),
    ("a worker runs out of memory", "Ray's memory threshold lowered"),
    ("a worker hangs", "per-stage time limit"),
    ("a node is lost", "three nodes, one taken away while its stages run"),
    ("a node is lost with the inputs it held", "as above, and finished artifacts vanish with it"),
    ("Ray's own processes are killed", "gcs_server and raylet of the session"),
    ("the driver is killed", "SIGKILL at twenty random moments"),
    ("the store's disk is full", "a small tmpfs"),
    ("a file of the store is truncated", "between two runs"),
    ("a bit of the store flips", "visible from outside (time of change), and not"),
    ("MLflow's server goes down", "during the run, and is back later"),
    ("MLflow's database is locked", "by another process, for the whole projection"),
    ("two drivers on one store", "started together"),
    ("the clock is moved backwards", "by a day, in the middle, for the driver and all that it starts"),
    ("a plugin forks", "a copy of itself, and a child that sleeps on"),
    ("a plugin exits", "sys.exit and os._exit"),
    ("a plugin leaks memory", "without end"),
    ("a plugin writes to stdout", "through Python and past it"),
    ("fuzzed benchmark files", "Hypothesis: no traceback, no hang"),
    ("fuzzed data set cards", "Hypothesis: no traceback, no hang"),
    ("fuzzed PNG files", "Hypothesis: no traceback, no hang"),
    ("fuzzed NIfTI files", "atheris, coverage-guided: refused or read, no traceback, no hang"),
)
"""Every row of the table, in its order: what happens, and how it is brought about."""


def note(row: str, *, saw: str = "", inputs: int = 0, seconds: float = 0.0) -> None:
    """Keep that `row` passed. saw: what the user saw, one line. inputs: how many were tried."""
    if row not in {name for name, _ in ROWS}:
        raise KeyError(f"{row!r} is not in ROWS")
    if path := os.environ.get("HARNESS_RELIABILITY"):
        with open(path, "a") as file:
            file.write(json.dumps({"row": row, "saw": saw, "inputs": inputs, "seconds": seconds}) + "\n")


def _code(text: str) -> str:
    """As Markdown's code, whatever backticks are in it."""
    return "" if not text else f"`` {text} ``" if "`" in text else f"`{text}`"


def page(lines: Sequence[str]) -> str:
    """The page from the noted lines of one or more passes."""
    found: dict[str, list[dict[str, object]]] = {}
    for line in lines:
        entry = json.loads(line)
        found.setdefault(entry["row"], []).append(entry)
    out = [HEAD, "| fault | how | passed | inputs | median s | what the user saw |", "|---|---|---|---|---|---|"]
    for row, how in ROWS:
        entries = found.get(row, [])
        inputs = sum(int(str(e["inputs"])) for e in entries)
        seconds = [float(str(e["seconds"])) for e in entries if e["seconds"]]
        saw = next((str(e["saw"]) for e in reversed(entries) if e["saw"]), "").replace("|", "\\|")
        saw = re.sub(r"/\S*/(?=runs/)", "…/", saw)  # where it happened to run says nothing
        cells = [row, how, f"{len(entries)}×" if entries else "not run", f"{inputs:,}" if inputs else ""]
        cells += [f"{statistics.median(seconds):.0f}" if seconds else "", _code(saw)]
        out.append(f"| {' | '.join(cells)} |")
    out += ["", f"Last written on {platform.system()} with Python {platform.python_version()}.", ""]
    return "\n".join(out)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(page(source.read_text().splitlines()))
