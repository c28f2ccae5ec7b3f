"""Coverage-guided fuzzing of the image reader: python nifti_target.py CORPUS [libFuzzer's flags]

Needs atheris (in the dev extra where a wheel exists: Linux and macOS, Python 3.11 to 3.13). `test_image_files.py` runs
it, bounded in time and memory, and makes the corpus.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nibabel", "harness.data", "harness.untrusted"]):
    import image_files


def main() -> None:
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def one(raw: bytes) -> None:
            image_files.examine(raw, place)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
