"""The application that the commands register with."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="harness",
    help="Find out which brain-MRI method really works: one YAML file, one protocol, every method.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
