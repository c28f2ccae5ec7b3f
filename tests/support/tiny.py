"""A benchmark file that runs in seconds: real phantom, real training, real Ray, tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]


def tiny(**changes: Any) -> dict[str, Any]:
    """The benchmark as data; keyword arguments replace top-level keys."""
    return {
        "benchmark": "tiny",
        "track": "cross_site",
        "data": {
            "card": "phantom_adult_t1",
            "sites": ["CALTECH", "KKI"],
            "with": {"scans": 5, "slices": {"size": 64, "pixel_mm": 3.0, "count": 4}},
        },
        "task": {
            "id": "segmenter_2d",
            "filters": [4, 8, 8],
            "training": {"iterations": 12, "batch_size": 4, "learning_rate": 0.01, "validate_every": 6},
        },
        "methods": {"none": None, "histogram_matching": None},
        "metrics": ["dsc", "hd95", "wasserstein", "psnr"],
        **changes,
    }


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(**changes), sort_keys=False))
    return path


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def harness(*arguments: str | Path, cwd: Path, limit_s: float = 500, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, for so long at most."""
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=limit_s)


def run_json(
    *arguments: str | Path, cwd: Path, code: int | None = 0, limit_s: float = 500, **extra: str
) -> dict[str, Any]:
    """A command's JSON answer; fails with its stderr unless it exits with `code`."""
    done = harness(*arguments, "--json", cwd=cwd, limit_s=limit_s, **extra)
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
