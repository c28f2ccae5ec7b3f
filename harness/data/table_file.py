"""Tables in CSV, TSV and Parquet files, read with polars; what a cell says is read here, what it means elsewhere.

Files are untrusted: sizes are judged first, and text in a cell is read as JSON or as a Python literal, never run.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.layout import LARGEST_TABLE, LONGEST_TABLE, path_trouble
from harness.problems import did_you_mean
from harness.untrusted import leads_out, open_regular, plain

ENDINGS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"

MOST_CELLS = 2**27
"""Cells of a table: 100,000 scans with a thousand features stay below it."""

LONGEST_CELL = 2**20
"""Characters of a cell that holds a dictionary or a list."""

NOTHING = frozenset({"", "n/a", "na", "nan", "null", "none"})
"""What an empty cell may be written as, in lower case."""

HINT = 200
"""Characters of a list of a table's columns in a message: tables of features have hundreds."""

_NAN = re.compile(r"\bnan\b", re.IGNORECASE)


class BadTable(ValueError):
    """A file that is no readable table. One line that says what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table as read.

    shown: its path. cells: column → text of each row (Parquet: text, number, list or dictionary), None where empty.
    rows: the number of each row as a spreadsheet shows it, where the names of the columns are row 1.
    """

    shown: str
    cells: dict[str, list[Any]]
    rows: list[int]

    def place(self, index: int) -> str:
        return f"{self.shown}:{self.rows[index]}"

    def lacks(self, column: str) -> str:
        """That there is no such column, and which was meant."""
        hint = did_you_mean(column, self.cells)
        return f"has no column {column!r}{hint if len(hint) <= HINT else hint[:HINT] + ' …'}"


def read_table(root: Path, name: str) -> RawTable:
    """The table in a file below `root`, empty rows left out. Raises BadTable."""
    path = root / name
    trouble = path_trouble(name)
    if trouble:
        raise BadTable(trouble)
    if leads_out(root, path) is not None:
        raise BadTable("is a link out of the data root; copy the table, or name a root that holds both")
    ending = path.suffix.lower()
    if ending not in (*ENDINGS, PARQUET):
        raise BadTable(f"is none of {', '.join((*ENDINGS, PARQUET))}; save it as one of them")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_TABLE:
                raise BadTable(f"the table has {size / 2**20:.0f} MiB; keep the rows and columns that are needed")
            content = file.read()
    except FileNotFoundError:
        raise BadTable("no such table; add it, or mend the file's name in the card") from None
    except OSError as error:
        raise BadTable(f"the table cannot be read: {error.strerror or error}") from None
    columns, first = _parquet(content) if ending == PARQUET else _text(content, ENDINGS[ending])
    length = len(next(iter(columns.values()), []))
    kept = [i for i in range(length) if any(cells[i] is not None for cells in columns.values())]
    if not kept:
        raise BadTable("the table has no rows; export it again")
    cells = {name: values if len(kept) == length else [values[i] for i in kept] for name, values in columns.items()}
    return RawTable(plain(str(path)), cells, [first + i for i in kept])


def _text(content: bytes, separator: str) -> tuple[dict[str, list[Any]], int]:
    """Columns of a file of text, and the number of the first row below their names."""
    import polars as pl

    source = io.BytesIO(content)
    try:
        frame = pl.read_csv(source, has_header=False, infer_schema=False, separator=separator)
    except pl.exceptions.NoDataError:
        raise BadTable("the file is empty; export the table again") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise BadTable(f"the table cannot be read: {_first_line(error)}; save it as UTF-8 text") from None
    _check_size(frame.height, frame.width)
    names = [str(name or "").strip() for name in frame.row(0)]
    if len(names) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark in names[0]), None)
        if other:
            raise BadTable(f"its columns are parted by {other!r}; save it with {separator!r} between them")
    twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if twice is not None:
        raise BadTable(f"has two columns {twice!r}; rename one")
    body = frame.slice(1)
    return {name: [cell(value) for value in body[:, i].to_list()] for i, name in enumerate(names)}, 2


def _parquet(content: bytes) -> tuple[dict[str, list[Any]], int]:
    import polars as pl

    try:
        # What the file claims is judged before its rows are unpacked.
        lazy = pl.scan_parquet(io.BytesIO(content))
        width = len(lazy.collect_schema())
        _check_size(int(lazy.select(pl.len()).collect().item()), width)
        frame = lazy.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise BadTable(f"the table cannot be read: {_first_line(error)}; export it again") from None
    return {name: [cell(value) for value in frame[name].to_list()] for name in frame.columns}, 2


def _check_size(rows: int, columns: int) -> None:
    if rows > LONGEST_TABLE or rows * columns > MOST_CELLS:
        raise BadTable(f"the table has {rows:,} rows of {columns:,} columns; keep those that are needed")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return plain(lines[0])[:300] if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------- cells


def cell(value: Any) -> Any:
    """A cell without the spaces around it, None where it is empty however that is written."""
    if isinstance(value, str):
        value = value.strip()
        return None if value.lower() in NOTHING else value
    return None if isinstance(value, float) and value != value else value


def words(value: Any) -> str:
    """A cell as text: a name. Whole numbers are written without a fraction, as 7 of 7.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def number(value: Any) -> float | None:
    """A cell as a number, infinite ones included; None where it is empty. Raises ValueError."""
    value = cell(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    try:
        if isinstance(value, str) and "_" in value:
            raise ValueError
        found = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is no number") from None
    return found


def numbers(value: Any) -> dict[str, Any] | list[Any]:
    """A cell that holds a dictionary or a list: its entries, unread. Raises ValueError."""
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, dict):
        found = {words(key): entry for key, entry in value.items()}
        if len(found) < len(value):
            raise ValueError("holds a key twice, as text and as a number")
        return found
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(f"holds a {type(value).__name__}, neither a dictionary nor a list of numbers")


def _literal(text: str) -> Any:
    if len(text) > LONGEST_CELL:
        raise ValueError(f"has {len(text):,} characters, more than any dictionary of regions")
    if sum(text.count(bracket) for bracket in "([{") > 1:
        raise ValueError("is nested or holds calls, where one dictionary or list of plain numbers is needed")
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        # Python writes an undefined number as nan, which is no literal.
        return ast.literal_eval(_NAN.sub("None", text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("is neither a dictionary nor a list of numbers, in Python's writing or as JSON") from None
