"""Libraries that talk too much, kept quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module


@contextlib.contextmanager
def quietly(module: str, environment: Mapping[str, str], loggers: Iterable[str], level: int) -> Iterator[None]:
    """Import a library and use it without its warnings, and its loggers at `level`.

    environment: variables that it reads; those that the user has set stay.
    """
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Imported first: an import may set the level of its loggers, which is then turned down.
        import_module(module)
        found = [logging.getLogger(name) for name in loggers]
        before = [logger.level for logger in found]
        for logger in found:
            logger.setLevel(level)
        try:
            yield
        finally:
            for logger, old in zip(found, before, strict=True):
                logger.setLevel(old)
