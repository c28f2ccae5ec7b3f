"""Entries of plain values and arrays in two files: values as JSON, arrays as one compressed .npz."""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness.engine.store import write_atomically
from harness.problems import Problem, UserError


def write_entries(folder: Path, name: str, found: list[Any], arrays: tuple[str, ...]) -> None:
    """Replace `name`.json and `name`.npz of a folder by dataclasses whose fields `arrays` are arrays, or None.

    Equal arrays are kept once.
    """
    kept: dict[str, np.ndarray] = {}
    known: dict[bytes, str] = {}
    index = []
    for item in found:
        places = {}
        for array in arrays:
            value = getattr(item, array)
            if value is None:
                continue
            identity = value.tobytes() + f"{value.dtype}{value.shape}".encode()
            places[array] = known.setdefault(identity, str(len(known)))
            kept.setdefault(places[array], value)
        plain = {key: value for key, value in asdict(item).items() if key not in arrays}
        index.append({**plain, "arrays": places})
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}-{uuid.uuid4().hex[:8]}.npz"
    try:
        np.savez_compressed(temporary, allow_pickle=False, **kept)
        os.replace(temporary, folder / f"{name}.npz")
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps(index, indent=1))


def read_entries(folder: Path, name: str) -> list[dict[str, Any]]:
    """The fields of each entry, arrays among them; none where nothing was ever written.

    Raises UserError where the files are damaged.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return []
    try:
        index = json.loads(path.read_text())
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            loaded = {key: arrays[key] for key in arrays.files}
        return [
            {**{k: v for k, v in row.items() if k != "arrays"}, **{k: loaded[at] for k, at in row["arrays"].items()}}
            for row in index
        ]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        what = f"is damaged ({error}); the next `harness run` writes it anew"
        raise UserError(Problem(str(path), what)) from None
