"""The phantom's newborns as whole volumes: who they are, what their stages leave, and the label table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import yamlfile
from harness.data.card import cards_folder, load_card, read_card
from harness.data.dataset import open_dataset
from harness.data.phantom_newborns import NewbornVolumeDataset
from harness.data.volume_sets import load_regions, load_volumes
from harness.engine.plan import Stage
from harness.phantom.newborn_cohort import newborn_cohort
from harness.phantom.newborn_regions import REGIONS, label_names
from harness.problems import UserError

RunStage = Callable[[Stage], Path]
SMALL: dict[str, Any] = {"scans": 12, "volumes": {"voxel_mm": 3.0, "chunk": 4}}


@pytest.fixture
def newborns(tmp_path: Path) -> Callable[..., NewbornVolumeDataset]:
    """The built-in card with fields replaced."""

    def make(changes: dict[str, Any] = SMALL, card: str = "phantom_newborns") -> NewbornVolumeDataset:
        path = tmp_path / "bench.yaml"
        path.write_text(json.dumps({"data": {"card": card, "with": changes}}))
        document = yamlfile.read(path)
        found = open_dataset(load_card(document, document.data["data"]), None, tmp_path / "cache")
        assert isinstance(found, NewbornVolumeDataset)
        return found

    return make


Newborns = Callable[..., NewbornVolumeDataset]


# ------------------------------------------------------------------------------------------------ labels


def test_the_label_table_is_the_phantoms_and_drawems() -> None:
    table = yamlfile.read(cards_folder() / "labels" / "drawem87.yaml").data
    assert tuple(table["names"]) == label_names()
    assert len(table["names"]) == 88
    for number, name in {
        1: "left_hippocampus", 6: "right_anterior_temporal_medial_GM", 17: "left_cerebellum", 19: "brainstem",
        20: "right_insula_GM", 36: "right_frontal_GM", 39: "left_parietal_GM", 44: "right_subthalamic",
        48: "corpus_callosum", 49: "left_lateral_ventricle", 61: "left_fusiform_anterior_WM", 63: "right_insula_WM",
        80: "left_frontal_WM", 83: "CSF", 85: "intracranial_background", 86: "right_thalamus_low_T2",
    }.items():  # fmt: skip
        assert table["names"][number] == name
    assert table["ignored"] == ["extracranial_background"]
    assert table["names"].index("extracranial_background") == 84


def test_regions_are_of_the_tissues_that_the_other_table_says() -> None:
    """neonatal8 groups the same 87 numbers by tissue; the phantom says the tissue of each region."""
    table = read_card("phantom_neonatal_t2").labels
    assert table is not None
    said = {}
    for low, high, label in table.ranges("drawem87"):
        said |= dict.fromkeys(range(low, high + 1), table.names[label])
    for region in REGIONS:
        expected = "background" if region.group == "intracranial" else region.group
        assert said[region.id] == expected, region


# ---------------------------------------------------------------------------------------------- who is who


def test_the_released_number_of_scans_split_by_infant(newborns: Newborns) -> None:
    data = newborns({})
    assert data.missing() == []
    assert data.audit(data.sites) == []
    row = data.summary()["sites"]["DHCP"]
    assert (row["scans"], row["subjects"], row["labelled"], row["aged"]) == (558, 505, True, True)
    people = [{scan.subject for scan in data.scans("DHCP", side)} for side in ("train", "validation", "test")]
    assert [len(side) for side in people] == [303, 76, 126]
    assert len(set.union(*people)) == 505
    assert sum(row[side] for side in ("train", "validation", "test")) == 558
    assert data.shared_subjects() == {}
    twice = [scan for scan in data.scans("DHCP") if scan.session == 2]
    assert len(twice) == 53
    assert {scan.id for scan in twice} == {f"{scan.subject}_ses-2" for scan in twice}
    assert [len(stage.params["scans"]) for stage in data.volumes("DHCP", "test")][:-1] == [16] * (row["test"] // 16)


def test_people_are_the_cohorts_and_a_number_takes_the_first(newborns: Newborns) -> None:
    found = newborns().scans("DHCP")
    assert [(s.id, s.age, s.birth_age, s.sex) for s in found] == [
        (s.id, s.subject.age, s.birth_age, s.subject.sex) for s in newborn_cohort(12)
    ]
    assert newborns({**SMALL, "scans": 30}).scans("DHCP")[:12] == found
    assert newborns({**SMALL, "seed": 1}).scans("DHCP") != found


# -------------------------------------------------------------------------------------------------- stages


def test_stages_leave_volumes_and_regions_on_the_same_voxels(newborns: Newborns, run_stage: RunStage) -> None:
    data = newborns({**SMALL, "scans": 4})
    (stage,), (labelled,) = data.volumes("DHCP", "test"), data.regions("DHCP", "test")
    assert (stage.kind, stage.title, stage.resources) == ("volumes", "volumes DHCP test 1/1", "prepare")
    assert (labelled.kind, labelled.title) == ("regions", "regions DHCP test 1/1")
    folder = run_stage(stage)
    volumes, regions = load_volumes(folder), load_regions(run_stage(labelled))
    assert volumes.scans == regions.scans
    assert regions.names == label_names()
    assert regions.ignored == (84,)
    for scan, person, volume, labels in zip(volumes.scans, data.scans("DHCP", "test"), volumes, regions, strict=True):
        assert (scan.id, scan.subject, scan.sex, scan.birth_age) == (
            person.id,
            person.subject,
            person.sex,
            person.birth_age,
        )
        assert (scan.site, scan.modality, scan.spacing, scan.whole) == ("DHCP", "T2w", (3.0, 3.0, 3.0), (38, 46, 38))
        assert scan.shape == volume.mask.shape == labels.shape
        assert np.array_equal(labels > 0, volume.mask)
        # two voxels about the brain, as the field goes
        inside = np.argwhere(volume.mask)
        assert inside.min(axis=0).tolist() == [2, 2, 2]
        assert (np.array(scan.shape) - 1 - inside.max(axis=0)).tolist() == [2, 2, 2]
        assert volume.image.max() == 1
        assert (volume.image[volume.mask] > 0).all()
        # intensity: max: few voxels are as bright as the brightest
        assert (volume.image == 1).sum() < 5
        assert volume.mask.sum() * 27 / 1000 > 80  # ml
        # x to the right: the left frontal lobe at lower x than the right
        left, right = (
            np.argwhere(labels == regions.names.index(f"{side}_frontal_GM"))[:, 0].mean() for side in ("left", "right")
        )
        assert left < right
    rows = json.loads((folder / "scans.json").read_text())
    assert all("age" not in row for row in rows)


def test_another_table_groups_the_labels(newborns: Newborns, run_stage: RunStage) -> None:
    table = read_card("phantom_neonatal_t2").labels
    assert table is not None
    changes = {**SMALL, "scans": 4}
    plain, grouped = newborns(changes), newborns({**changes, "labels": "neonatal8"})
    assert [stage.key for stage in grouped.volumes("DHCP", "test")] == [s.key for s in plain.volumes("DHCP", "test")]
    (regions,), (tissues,) = plain.regions("DHCP", "test"), grouped.regions("DHCP", "test")
    found, of = (load_regions(run_stage(stage)) for stage in (tissues, regions))
    assert found.names == tuple(table.names)
    assert found.ignored == ()
    group = {region.id: region.group for region in REGIONS} | {0: "background"}
    for tissue, region in zip(found, of, strict=True):
        named = np.array([found.names.index(group[i]) if group.get(i) in found.names else 0 for i in range(88)])
        assert np.array_equal(tissue, named[region])
        assert set(np.unique(tissue)) == set(range(9))


def test_keys_tell_what_is_rendered_apart(newborns: Newborns) -> None:
    def keys(changes: dict[str, Any]) -> tuple[str, str]:
        data = newborns({**SMALL, **changes})
        return data.volumes("DHCP", "test")[0].key, data.regions("DHCP", "test")[0].key

    volumes, regions = keys({})
    assert keys({}) == (volumes, regions)
    assert keys({"volumes": {"voxel_mm": 2.0}})[0] != volumes
    assert keys({"intensity": {"percentile": 99.5}})[0] != volumes
    assert keys({"intensity": {"percentile": 99.5}})[1] == regions, "no label depends on grey levels"
    assert newborns({}).volumes("DHCP", "test")[0].params["voxel_mm"] == 0.5
    both = newborns({**SMALL, "sites": {"DHCP": None, "V2LP": None}})
    assert both.scans("V2LP", "test") == both.scans("DHCP", "test"), "the same infants, on the same sides"
    assert both.volumes("V2LP", "test")[0].key != both.volumes("DHCP", "test")[0].key == volumes


def test_there_are_no_slices(newborns: Newborns) -> None:
    for kind in ("images", "labels"):
        with pytest.raises(
            UserError, match=r"phantom_newborns\.yaml:\d+:1: scans of phantom_newborns are whole and have no slices"
        ):
            getattr(newborns(), kind)("DHCP", "train")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"sites": {"DHCQ": {"scans": 4}}}, "the phantom has no site 'DHCQ'; did you mean DHCP?"),
        (
            {"labels": "adult15"},
            "the phantom's whole newborns have DRAW-EM's labels; write labels: drawem87, or a table",
        ),
        (
            {
                "labels": {
                    "names": ["background", "brain"],
                    "ignored": [],
                    "groupings": {"drawem87": {"0": "background", "1-85": "brain"}},
                }
            },
            "the grouping drawem87 says nothing of the labels 86, 87",
        ),
        ({"volumes": {"voxel_mm": 0.1}}, "volumes.voxel_mm is 0.1: input should be greater than or equal to 0.3"),
        (
            {"population": "adult", "age_unit": "years", "modality": "T1w"},
            "only newborns are simulated as whole volumes",
        ),
        ({"modality": "FLAIR"}, "the neonatal phantom has no 'FLAIR'"),
    ],
)
def test_mistakes_of_the_card_are_told(newborns: Newborns, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as error:
        newborns(changes)
    assert any(what in str(problem) for problem in error.value.problems), error.value.problems
