"""The phantom as a data set: who is where, the same people elsewhere, and its stages at a small size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nifti_files import write_volume

from harness import yamlfile
from harness.data import arrays
from harness.data.card import load_card
from harness.data.dataset import open_dataset
from harness.data.phantom_data import PhantomDataset
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]
SMALL = "scans: 3, slices: {size: 64, pixel_mm: 3.0, count: 2, range: [0.3, 0.6]}"


@pytest.fixture
def phantom(tmp_path: Path) -> Callable[..., PhantomDataset]:
    """The built-in card with fields replaced."""

    def make(
        changes: str = SMALL, root: Path | None = None, withhold_age: bool = False, card: str = "phantom_adult_t1"
    ) -> PhantomDataset:
        path = tmp_path / "bench.yaml"
        path.write_text(f"data:\n  card: {card}\n  with: {{{changes}}}\n")
        document = yamlfile.read(path)
        found = open_dataset(load_card(document, document.data["data"]), root, tmp_path / "cache", withhold_age)
        assert isinstance(found, PhantomDataset)
        return found

    return make


Phantom = Callable[..., PhantomDataset]


def test_the_published_numbers_per_split(phantom: Phantom) -> None:
    summary = phantom("slices: {}").summary()
    assert summary["simulated"] is True
    assert {site: [row[s] for s in ("train", "validation", "test")] for site, row in summary["sites"].items()} == {
        "CALTECH": [11, 3, 5],
        "KKI": [12, 3, 5],
        "NYU": [12, 3, 5],
        "PITT": [12, 3, 5],
        "HBNSI": [46, 12, 19],
        "HBNRU": [34, 9, 14],
        "OASIS": [70, 18, 29],
    }


def test_it_needs_no_data_and_has_no_problems(phantom: Phantom) -> None:
    data = phantom()
    assert data.missing() == []
    assert data.audit(data.sites) == []
    assert data.paired
    assert data.labelled("NYU")
    assert data.splits()["test"]["subjects"]


def test_stages_leave_images_and_labels_on_the_same_slices(phantom: Phantom, run_stage: RunStage) -> None:
    data = phantom()
    stage = data.images("NYU", "test")
    assert (stage.kind, stage.title, stage.resources) == ("images", "images NYU test", "prepare")
    images = arrays.load_images(run_stage(stage))
    labels = arrays.load_labels(run_stage(data.labels("NYU", "test")))
    assert images.pixels.shape == labels.labels.shape == (2, 64, 64)
    assert images.scans == labels.scans
    assert images.scans[0].spacing == pytest.approx((162 * 0.3 / 2, 3.0, 3.0))
    assert np.array_equal(labels.labels > 0, images.mask)
    assert len(labels.names) == 15
    assert images.scans[0].site == "NYU"
    elsewhere = arrays.load_images(run_stage(data.images("NYU", "test", rendered_at="KKI")))
    assert [s.id for s in elsewhere.scans] == [s.id for s in images.scans]
    assert {s.site for s in elsewhere.scans} == {"KKI"}
    assert np.array_equal(elsewhere.mask, images.mask)
    assert not np.array_equal(elsewhere.pixels, images.pixels)


def test_ages_are_a_reference_of_their_own(phantom: Phantom, run_stage: RunStage) -> None:
    open_, withheld = phantom(), phantom(withhold_age=True)
    assert open_.aged("NYU")
    assert open_.summary()["age_unit"] == "years"
    stage = withheld.ages("NYU", "test")
    assert (stage.kind, stage.title) == ("ages", "ages NYU test")
    ages, images = arrays.load_ages(run_stage(stage)), arrays.load_images(run_stage(withheld.images("NYU", "test")))
    assert ages.scans == images.scans
    assert ages.ages.tolist() == [person.age for person in withheld.scans("NYU", "test")]
    assert [scan.age for scan in images.scans] == [None] * len(ages.ages)
    assert all(scan.age is None for scan in arrays.load_labels(run_stage(withheld.labels("NYU", "test"))).scans)

    seen = arrays.load_images(run_stage(open_.images("NYU", "test")))
    assert [scan.age for scan in seen.scans] == ages.ages.tolist()
    assert np.array_equal(seen.pixels, images.pixels), "withholding an age changes no brain"
    assert withheld.images("NYU", "test").key != open_.images("NYU", "test").key
    assert "withhold_age" not in open_.images("NYU", "test").params


def test_keys_tell_sites_splits_and_rendering_apart(phantom: Phantom) -> None:
    data = phantom()
    stages = [
        data.images("NYU", "test"),
        data.images("NYU", "train"),
        data.images("KKI", "test"),
        data.images("NYU", "test", rendered_at="KKI"),
        data.labels("NYU", "test"),
    ]
    assert len({stage.key for stage in stages}) == 5
    assert data.images("NYU", "test", rendered_at="NYU").key == stages[0].key
    assert stages[3].title == "images NYU test as KKI"
    assert phantom().images("NYU", "test").key == stages[0].key


def test_more_scans_at_one_site_change_no_other(phantom: Phantom) -> None:
    less, more = phantom(), phantom(SMALL.replace("scans: 3, ", "sites: {NYU: {scans: 5}}, scans: null, "))
    assert len(more.scans("NYU")) == 5
    assert set(less.scans("NYU")) < set(more.scans("NYU"))


def test_unknown_sites_and_foreign_labels_are_told(phantom: Phantom, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("names: [background, brain]\n")
    with pytest.raises(UserError) as error:
        phantom("sites: {NYX: {scans: 4}}, labels: mine.yaml")
    assert [str(p).removeprefix(str(tmp_path)) for p in error.value.problems][0] == (
        "/bench.yaml:3:18: the phantom has no site 'NYX'; did you mean NYU?"
    )
    assert "a phantom's labels are its own 15 groups" in str(error.value)


# ----------------------------------------------------------------------------------- real people's anatomies


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Four label maps: a ball of white matter in one of grey matter."""
    grid = np.stack(np.meshgrid(*(np.arange(-30, 30) for _ in range(3)), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    for index in range(4):
        labels = np.where(radius < 20 + index, np.where(radius < 12, 2, 1), 0).astype(np.uint8)
        write_volume(tmp_path / "data" / "maps" / f"p{index}.nii.gz", labels)
    return tmp_path / "data"


def test_anatomies_are_subjects_at_every_site_and_on_one_side(
    phantom: Phantom, maps: Path, run_stage: RunStage
) -> None:
    data = phantom(SMALL.replace("scans: 3", "scans: 4") + ", anatomies: maps", maps)
    assert data.missing() == []
    assert data.audit(data.sites) == []
    for split in ("train", "validation", "test"):
        assert {p.id for p in data.scans("NYU", split)} == {p.id for p in data.scans("KKI", split)}
    images = arrays.load_images(run_stage(data.images("NYU", "test")))
    assert images.scans[0].age is None
    stage = data.images("NYU", "test")
    assert str(maps) not in str(stage.params)
    name = stage.local["files"][stage.params["subjects"][0]["id"]]
    write_volume(maps / name, np.full((8, 8, 8), 2, np.uint8))
    assert (
        phantom(SMALL.replace("scans: 3", "scans: 4") + ", anatomies: maps", maps).images("NYU", "test").key
        != stage.key
    )


def test_what_is_wrong_with_anatomies_is_told(phantom: Phantom, maps: Path) -> None:
    changes = f"{SMALL}, anatomies: maps"
    assert "no data folder is named" in phantom(changes).missing()[0]
    assert "no label map" in phantom(f"{SMALL}, anatomies: none_here", maps).missing()[0]
    write_volume(maps / "maps" / "p0.nii.gz", np.full((8, 8, 8), 33, np.uint8))
    lines = [str(p) for p in phantom(changes.replace("scans: 3", "scans: 9"), maps).audit(["NYU"])]
    assert any("NYU asks for 9 scans, but there are 4 anatomies; set scans: 4" in line for line in lines)
    assert any("p0.nii.gz: label ids 33 are in no group" in line for line in lines)
