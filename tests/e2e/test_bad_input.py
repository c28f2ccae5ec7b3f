"""Bad input: one line each, exit code 2, nothing computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny
import yaml
from typer.testing import CliRunner, Result

from harness.cli import app


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(folder: Path, text: str, *flags: str | Path) -> list[str]:
    """Lines that `harness run` prints for a benchmark file it refuses; checks that nothing was computed."""
    (folder / "x.yaml").write_text(text)
    result = invoke("run", folder / "x.yaml", "--home", folder / "runs", *flags)
    assert result.exit_code == 2, result.output
    assert not list((folder / "runs").glob("store/objects/*/*"))
    assert "Traceback" not in result.output
    return [line.replace(f"{folder}/", "") for line in result.output.strip().splitlines()]


def spec(**changes: Any) -> str:
    return yaml.safe_dump(tiny.tiny(**changes), sort_keys=False)


def test_unknown_key(tmp_path: Path) -> None:
    lines = refused(tmp_path, spec() + "seedz: [1]\n")
    assert len(lines) == 1
    assert "unknown key 'seedz'; did you mean seeds?" in lines[0]
    assert lines[0].startswith("x.yaml:")


def test_unknown_site(tmp_path: Path) -> None:
    data = {**tiny.tiny()["data"], "sites": ["CALTECH", "NYUU"]}
    (line,) = refused(tmp_path, spec(data=data))
    assert line.endswith("unknown site 'NYUU'; did you mean NYU?")
    assert line.count(":") >= 3


def test_unknown_method(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(methods={"none": None, "tentt": None}))
    assert "unknown method 'tentt'; did you mean tent?" in line


def test_unknown_metric(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(metrics=["dice"]))
    assert "unknown metric 'dice'" in line


def test_unknown_track_and_card(tmp_path: Path) -> None:
    assert "unknown track 'cross_sit'; did you mean cross_site?" in refused(tmp_path, spec(track="cross_sit"))[0]
    (line,) = refused(tmp_path, spec(data={**tiny.tiny()["data"], "card": "phantom_adult"}))
    assert "unknown dataset card 'phantom_adult'; did you mean phantom_adult_t1?" in line


def test_type_error(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(methods={"none": None, "tent": {"learning_rate": "fast"}}))
    assert "learning_rate is 'fast'" in line


def test_a_method_of_the_wrong_family(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(methods={"none": None, "segmenter_2d": None}))
    assert "segmenter_2d is a task" in line


def test_every_mistake_at_once(tmp_path: Path) -> None:
    data = {**tiny.tiny()["data"], "sites": ["CALTECH", "NYUU"]}
    lines = refused(tmp_path, spec(data=data, metrics=["dice"], methods={"none": None, "tent": {"lr": 1}}))
    assert len(lines) == 3


def test_duplicate_yaml_key(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec() + "track: cross_site\n")
    assert "duplicate key 'track'" in line


def test_missing_file(tmp_path: Path) -> None:
    result = invoke("run", tmp_path / "absent.yaml")
    assert result.exit_code == 2
    assert "absent.yaml: no such file" in result.output


def test_an_override_is_checked(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(), "--set", "methods.none.strength=1")
    assert line.startswith("--set methods.none.strength=1: unknown key 'strength'")


def test_fewer_than_two_sites(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(data={**tiny.tiny()["data"], "sites": ["KKI"]}))
    assert "needs at least two sites, here 1" in line


def test_a_baseline_that_is_not_among_the_methods(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(methods={"tent": None}))
    assert "the baseline 'none' is not among the methods" in line


def test_unwritable_store(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    (line,) = refused(tmp_path, spec(), "--store", tmp_path / "occupied" / "store")
    assert "the store cannot be written" in line


def test_a_tracking_uri_that_does_not_answer(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, spec(), "--tracking", "http://127.0.0.1:9")
    assert line.startswith("http://127.0.0.1:9: ")
    assert "--tracking none" in line


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    done = tiny.harness("run", "tiny.yaml", "--address", "127.0.0.1:9", "--tracking", "none", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("--address 127.0.0.1:9: no Ray cluster can be reached")
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------- scans


Change = Callable[[Path], None]


def brain(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    volume = np.zeros((24, 24, 24), np.uint8)
    volume[4:20, 4:20, 4:20] = rng.integers(60, 200, (16, 16, 16))
    return volume


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two sites of five scans each, labels included, and a card for them."""
    root = tmp_path / "study"
    for site in ("A", "B"):
        (root / site).mkdir(parents=True)
        for i in range(5):
            volume = brain(i + 100 * (site == "B"))
            save(root / site / f"s{i}_T1w.nii.gz", volume)
            save(root / site / f"s{i}_seg.nii.gz", (volume > 130).astype(np.uint8) + (volume > 0))
    card = {
        "id": "study",
        "name": "Study",
        "kind": "nifti",
        "simulated": False,
        "modality": "T1w",
        "reference": "tests",
        "licence": "none",
        "access": "made by the test",
        "labels": {"names": ["background", "dark", "bright"]},
        "slices": {"plane": "coronal", "size": 32, "count": 4},
        "sites": {s: {"image": f"{s}/{{scan}}_T1w.nii.gz", "label": f"{s}/{{scan}}_seg.nii.gz"} for s in ("A", "B")},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return root


def truncate(root: Path) -> None:
    path = root / "A" / "s1_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def put_nan(root: Path) -> None:
    volume = brain(1).astype(np.float32)
    volume[10, 10, 10] = np.nan
    save(root / "A" / "s1_T1w.nii.gz", volume)


def other_shape(root: Path) -> None:
    save(root / "A" / "s1_seg.nii.gz", np.ones((24, 24, 20), np.uint8))


def other_affine(root: Path) -> None:
    save(root / "A" / "s1_seg.nii.gz", (brain(1) > 0).astype(np.uint8), np.diag([2.0, 1, 1, 1]))


def other_label(root: Path) -> None:
    volume = (brain(1) > 0).astype(np.uint8)
    volume[10, 10, 10] = 77
    save(root / "A" / "s1_seg.nii.gz", volume)


def empty_mask(root: Path) -> None:
    save(root / "A" / "s1_T1w.nii.gz", np.zeros((24, 24, 24), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot be read"),
        (put_nan, "NaN"),
        (other_shape, "24 × 24 × 20 voxels"),
        (other_affine, "affine"),
        (other_label, "77"),
        (empty_mask, "there is no brain"),
    ],
)
def test_damaged_scans(study: Path, tmp_path: Path, damage: Change, message: str) -> None:
    damage(study)
    text = spec(data={"card": "study.yaml", "root": "study"})
    lines = refused(tmp_path, text)
    assert any("s1_" in line and message.lower() in line.lower() for line in lines), lines


def test_a_subject_on_both_sides_of_a_split(study: Path, tmp_path: Path) -> None:
    sides = {"train": ["s0", "s1", "s2"], "validation": ["s3"], "test": ["s4", "s0"]}
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(sides))
    text = spec(data={"card": "study.yaml", "root": "study", "with": {"split": {"file": "split.yaml"}}})
    lines = refused(tmp_path, text)
    assert any("s0" in line and "split.yaml" in line for line in lines), lines


def test_sound_scans_pass_the_audit(study: Path, tmp_path: Path) -> None:
    result = invoke("prepare", tmp_path / "study.yaml", "--root", study, "--home", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert "no problems" in result.output


def test_a_plan_without_data_says_what_is_missing(study: Path, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(spec(data={"card": "study.yaml", "root": "nowhere"}))
    result = invoke("plan", tmp_path / "x.yaml", "--home", tmp_path / "runs", "--json")
    assert result.exit_code == 0, result.output
    assert "nowhere" in result.stdout
    lines = refused(tmp_path, spec(data={"card": "study.yaml", "root": "nowhere"}))
    assert any("nowhere" in line for line in lines)
