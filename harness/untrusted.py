"""Names and files that come from elsewhere: shown in one line, asked about without raising, opened without waiting."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def plain(text: str) -> str:
    """The text in one line of printable characters, others as escapes: what a terminal can be shown."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; False, never an error, for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False, never an error, for a name that none can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading.

    A pipe or a device has no end and may keep its reader waiting, so neither is opened. Raises OSError: the usual
    ones, IsADirectoryError for a folder, and EINVAL for what is no regular file or no possible name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, no regular file")
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def leads_out(root: Path, path: Path) -> str | None:
    """Where `path`, below `root`, really lies if a link leads out of `root`; else None."""
    home, place = os.path.realpath(root), os.path.realpath(path)
    return None if place == home or place.startswith(home.rstrip(os.sep) + os.sep) else place
