"""A third-party package whose method does what its field `how` says, mostly wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

HERE = Path(__file__).parent


def install(root: Path) -> str:
    """Put the package with its entry point into a folder; the PYTHONPATH under which it is as if installed."""
    shutil.copy(HERE / "mischief_plugin.py", root)
    info = root / "mischief_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mischief-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[harness.methods]\nmischief = mischief_plugin:Mischief\n")
    return os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
