"""What has to be said beside the numbers of a run: lines of text in files of the results folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.engine.store import write_atomically
from harness.problems import Problem, UserError

REMARKS = "remarks.json"
"""What the run showed of the methods; footnotes of the leaderboard."""


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace the file, a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(list(lines), indent=1, ensure_ascii=False))


def read_lines(path: Path) -> tuple[str, ...]:
    """Its lines, none where there is no file. Raises UserError where it is damaged."""
    if not path.is_file():
        return ()
    try:
        lines = json.loads(path.read_text())
        if not isinstance(lines, list):
            raise TypeError("it holds no list")
        return tuple(map(str, lines))
    except (OSError, ValueError, TypeError) as error:
        what = f"is damaged ({error}); the next `harness run` writes it anew"
        raise UserError(Problem(str(path), what)) from None
