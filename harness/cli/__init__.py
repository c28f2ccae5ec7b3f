"""The command line. Thin: each command parses, calls one function, prints. Heavy imports stay inside commands."""

from __future__ import annotations

import sys

from harness.cli import runs, results, catalogue  # isort: skip  # noqa: F401 - in the order in which help lists them
from harness.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Console-script entry. Ctrl-C outside a run ends without a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
