"""Lines of text beside the records of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.problems import UserError
from harness.results.remarks import REMARKS, read_lines, write_lines


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / REMARKS
    assert read_lines(path) == ()
    write_lines(path, ["één", "<b>two</b>"])
    assert read_lines(path) == ("één", "<b>two</b>")
    write_lines(path, [])
    assert read_lines(path) == ()


@pytest.mark.parametrize("content", [b"[", b"{}", b"\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / REMARKS).write_bytes(content)
    with pytest.raises(UserError, match=r"remarks\.json.*damaged.*harness run"):
        read_lines(tmp_path / REMARKS)
