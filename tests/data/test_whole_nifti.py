"""NIfTI scans kept whole: orientation, cropping, labels, chunks, tables of people, splits by scan, the audit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nifti_files import SHAPE, head, write_scan, write_volume

from harness import yamlfile
from harness.brain_age import RegionSet, VolumeSet
from harness.data.card import load_card, read_card
from harness.data.dataset import Dataset, open_dataset
from harness.data.nifti import NiftiDataset
from harness.data.volume_sets import load_regions, load_volumes
from harness.engine.plan import Stage
from harness.problems import UserError
from harness.tracks.brain_age.features import Regions, regional_features

REPO = Path(__file__).resolve().parents[2]
CardFile = Callable[..., Path]
RunStage = Callable[[Stage], Path]
WHOLE = ("split: {seed: 1}", "volumes: {margin: 1, chunk: 3}\nintensity: max\nsplit: {seed: 1}")
NAMES = ("names: [background, left, right]", "names: [background, left, right, skin]\n  ignored: [skin]")


def opened(root: Path | None, card: Path) -> NiftiDataset:
    found = open_dataset(read_card(card), root, card.parent / "cache")
    assert isinstance(found, NiftiDataset)
    return found


def sets(data: Dataset, split: Any, run_stage: RunStage, site: str = "A") -> tuple[VolumeSet, RegionSet]:
    volumes = load_volumes(*(run_stage(stage) for stage in data.volumes(site, split)))
    return volumes, load_regions(*(run_stage(stage) for stage in data.regions(site, split)))


def stored(array: np.ndarray, axes: str, voxel: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """An array in RAS as a file along `axes` holds it, and the file's affine."""
    import nibabel as nib

    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    affine = np.diag([*voxel, 1.0]) @ nib.orientations.inv_ornt_aff(change, array.shape)
    assert "".join(nib.aff2axcodes(affine)) == axes
    return nib.orientations.apply_orientation(array, change), affine


# ---------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LIA", "PSR", "IPL", "SAL"])
def test_volumes_and_regions_are_the_same_however_a_file_is_stored(
    tmp_path: Path, card_file: CardFile, run_stage: RunStage, axes: str
) -> None:
    root, voxel = tmp_path / "data", (0.5, 0.75, 1.25)
    sent = {}
    for index in range(3):
        image, labels = head(index)
        image[4, 5, 6], labels[4, 5, 6] = 250, 1
        sent[f"A-s{index}"] = image, labels
        # each file in an order of its own
        write_volume(root / "a" / f"s{index}_T1w.nii.gz", *stored(image, axes, voxel))
        write_volume(root / "a" / f"s{index}_seg.nii.gz", *stored(labels, axes[:: -1 if index else 1], voxel))
    volumes, regions = sets(opened(root, card_file(WHOLE)), "all", run_stage)
    assert volumes.scans == regions.scans
    assert [scan.id for scan in volumes.scans] == list(sent)
    for scan, volume, labels in zip(volumes.scans, volumes, regions, strict=True):
        image, truth = sent[scan.id]
        low, high = (f(np.argwhere(image > 0), axis=0) for f in (np.min, np.max))
        box = tuple(slice(a - 1, b + 2) for a, b in zip(low, high, strict=True))
        assert scan.start == tuple(one.start for one in box)
        assert scan.whole == SHAPE
        assert scan.shape == image[box].shape == volume.image.shape
        assert scan.spacing == voxel
        assert np.array_equal(volume.mask, image[box] > 0)
        assert volume.image == pytest.approx(image[box] / 250, abs=1e-5)  # 250: the maximum in the brain
        assert np.array_equal(labels, truth[box])
        found, whole = (regional_features(each, Regions((1, 2))) for each in (labels, truth))
        assert np.array_equal(found.vector(), whole.vector())  # neither order nor cropping shows in a feature


def test_chunks_are_stages_in_the_order_of_the_scans(root: Path, card_file: CardFile, run_stage: RunStage) -> None:
    data = opened(root, card_file(WHOLE))
    stages = data.volumes("A", "train")
    assert [(s.kind, s.title, s.resources) for s in stages] == [
        ("volumes", "volumes A train 1/2", "prepare"),
        ("volumes", "volumes A train 2/2", "prepare"),
    ]
    assert [s.title for s in data.regions("A", "train")] == ["regions A train 1/2", "regions A train 2/2"]
    assert len({s.key for s in (*stages, *data.regions("A", "train"))}) == 4
    volumes, regions = sets(data, "train", run_stage)
    assert [scan.id for scan in volumes.scans] == [scan.id for scan in data.scans("A", "train")]
    assert regions.scans == volumes.scans
    assert [len(load_volumes(run_stage(stage)).scans) for stage in stages] == [3, 1]
    assert str(root) not in json.dumps([dict(stage.params) for stage in stages])


def test_the_same_stage_wherever_the_data_lies_and_another_for_other_files(
    root: Path, card_file: CardFile, tmp_path: Path
) -> None:
    card = card_file(WHOLE)
    keys = [stage.key for stage in opened(root, card).regions("A", "all")]
    moved = root.rename(tmp_path / "elsewhere")
    assert [stage.key for stage in opened(moved, card).regions("A", "all")] == keys
    write_volume(moved / "a/s4_seg.nii.gz", 2 * (head(4)[1] > 0).astype(np.uint8))
    after = opened(moved, card)
    assert [key == stage.key for key, stage in zip(keys, after.regions("A", "all"), strict=True)] == [True, False]
    assert opened(None, card).volumes("A", "all")[0].title == "volumes A all 1/1"


def test_ids_are_grouped_or_stay_and_some_are_ignored(root: Path, card_file: CardFile, run_stage: RunStage) -> None:
    for index in range(6):
        image, labels = head(index)
        labels[0, 0, 0] = 3  # skin: outside of what is kept, and no region
        write_volume(root / f"a/s{index}_T1w.nii.gz", image)
        write_volume(root / f"a/s{index}_seg.nii.gz", labels)
    data = opened(root, card_file(WHOLE, NAMES))
    assert data.audit(["A"]) == []
    regions = sets(data, "test", run_stage)[1]
    assert (regions.names, regions.ignored) == (("background", "left", "right", "skin"), (3,))
    assert set(np.unique(regions[0])) == {0, 1, 2}
    grouped = ("    label:", "    grouping: coarse\n    label:")
    for index in range(6):
        write_volume(root / f"a/s{index}_seg.nii.gz", (head(index)[1] * 4).astype(np.uint8))  # 0, 4, 8
    lines = [str(line) for line in opened(root, card_file(WHOLE, NAMES, grouped)).audit(["A"])]
    assert len(lines) == 6
    assert all("label ids 4 are in no group" in line for line in lines)
    for index in range(6):
        write_volume(root / f"a/s{index}_seg.nii.gz", (head(index)[1] + 5 * (head(index)[1] > 0)).astype(np.uint8))
    regions = sets(opened(root, card_file(WHOLE, NAMES, grouped)), "test", run_stage)[1]
    (scan,) = regions.scans
    box = tuple(slice(first, first + n) for first, n in zip(scan.start, scan.shape, strict=True))
    assert np.array_equal(regions[0], head(0)[1][box])  # 6 is left, 7 is right


def test_a_simulated_shift_changes_volumes_and_no_region(root: Path, card_file: CardFile, run_stage: RunStage) -> None:
    data = opened(root, card_file(WHOLE, more="  B: {of: A, shift: {gamma: 2.0}}\n"))
    (here, labels), (there, same) = sets(data, "test", run_stage), sets(data, "test", run_stage, "B")
    assert there[0].image == pytest.approx(here[0].image ** 2, abs=1e-4)
    assert np.array_equal(labels[0], same[0])
    assert {scan.site for scan in there.scans} == {"B"}


def test_slices_of_a_card_do_not_change_because_scans_are_also_kept_whole(root: Path, card_file: CardFile) -> None:
    intensity = ("split: {seed: 1}", "intensity: max\nsplit: {seed: 1}")
    cut, whole = opened(root, card_file(intensity)), opened(root, card_file(WHOLE))
    for kind in ("images", "labels"):
        assert getattr(cut, kind)("A", "train").key == getattr(whole, kind)("A", "train").key


def test_who_has_no_volumes_or_regions_is_said(root: Path, card_file: CardFile) -> None:
    data = opened(root, card_file())
    for kind in (data.volumes, data.regions):
        with pytest.raises(ValueError, match="scans of tiny are cut into slices; to keep them whole, write volumes"):
            kind("A", "train")
    unlabelled = opened(root, card_file(WHOLE, ("    label: a/{scan}_seg.nii.gz\n", "")))
    assert unlabelled.volumes("A", "train")
    with pytest.raises(ValueError, match="A has no labels"):
        unlabelled.regions("A", "train")
    with pytest.raises(ValueError, match="no site 'B'"):
        data.regions("B", "train")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ((("margin: 1", "margin: -1"), WHOLE), "volumes.margin is -1: input should be greater than or equal to 0"),
        ((("chunk: 3", "chunk: 0"), WHOLE), "volumes.chunk is 0: input should be greater than or equal to 1"),
        ((("chunk: 3", "voxel_mm: 1.0"), WHOLE), "drop voxel_mm, it is the phantom's"),
        ((("ignored: [skin]", "ignored: [skim]"), NAMES), "'skim' is no label; did you mean skin?"),
        ((("ignored: [skin]", "ignored: [background]"), NAMES), "'background' is the background"),
        ((("{seed: 1}", "{seed: 1, by: scan}"),), "only a file can list scans; write split: {file: split.yaml, by"),
    ],
)
def test_mistakes_of_a_card_are_told_at_their_place(
    card_file: CardFile, changes: tuple[tuple[str, str], ...], what: str
) -> None:
    with pytest.raises(UserError) as error:
        read_card(card_file(*reversed(changes)))
    (line,) = [str(problem) for problem in error.value.problems]
    assert what in line
    assert re.search(r"tiny\.yaml:\d+:\d+: ", line)


# ------------------------------------------------------------------------------------------------ people


def test_a_second_table_says_what_the_first_does_not(root: Path, card_file: CardFile) -> None:
    (root / "visits.csv").write_text(
        "scan,age,subject\n" + "".join(f"s{i},{40 + i / 10},p{i // 2}\n" for i in range(6))
    )
    rows = "".join(f"s{i},{'FM'[i % 2]},{38 - i},99\n" for i in range(6))
    (root / "people.csv").write_text("scan,sex,birth_age,age\n" + rows)
    tables = "    subjects: {file: visits.csv, sex: no_such_column, people: people.csv}\n    label:"
    data = opened(root, card_file(WHOLE, ("    label:", tables), ("modality: T1w", "modality: T1w\nage_unit: weeks")))
    assert data.layout("A").problems == ()
    assert [(s.age, s.birth_age, s.sex) for s in data.scans("A")][:2] == [(40.0, 38.0, "F"), (40.1, 37.0, "M")]
    assert {s.subject for s in data.scans("A")} == {"A-p0", "A-p1", "A-p2"}
    told = data.volumes("A", "all")[0].params["scans"][1]
    assert told == {"id": "A-s1", "subject": "A-p0", "sex": "M", "birth_age": 37.0}
    (root / "people.csv").write_text(
        "scan,sex,birth_age\n" + rows.replace("s2,F,36", "s2,F,early").replace("s5,", "s9,")
    )
    lines = "\n".join(str(line) for line in opened(root, data_card(card_file, tables)).layout("A").problems)
    assert "people.csv:4: age at birth 'early' is no age in weeks; mend or empty it" in lines
    assert "s5_T1w.nii.gz: scan 's5' is not in people.csv; add its row, or exclude it" in lines


def data_card(card_file: CardFile, tables: str) -> Path:
    return card_file(WHOLE, ("    label:", tables), ("modality: T1w", "modality: T1w\nage_unit: weeks"))


# ---------------------------------------------------------------------------------------- splits by scan


@pytest.fixture
def visits(root: Path, card_file: CardFile) -> Callable[..., NiftiDataset]:
    """Six scans of three people, p0 to p2, under a split file that lists scans."""
    (root / "people.csv").write_text("scan,subject\n" + "".join(f"s{i},p{i // 2}\n" for i in range(6)))

    def make(train: str, validation: str, test: str, by: str = "scan") -> NiftiDataset:
        sides = {"train": train, "validation": validation, "test": test}
        text = "".join(
            f"{side}: [{', '.join(f'A-{name}' for name in names.split())}]\n" for side, names in sides.items()
        )
        (root.parent / "split.yaml").write_text(text)
        split = ("split: {seed: 1}", f"split: {{file: split.yaml, by: {by}}}\nvolumes: {{}}")
        return opened(root, card_file(split, ("    label:", "    subjects: people.csv\n    label:")))

    return make


def test_a_split_by_scan_is_kept_and_says_who_is_on_both_sides(visits: Callable[..., NiftiDataset]) -> None:
    data = visits("s0 s2 s3", "s4", "s1 s5")
    assert data.audit(["A"]) == []
    assert [[s.name for s in data.scans("A", side)] for side in ("train", "validation", "test")] == [
        ["s0", "s2", "s3"],
        ["s4"],
        ["s1", "s5"],
    ]
    assert data.shared_subjects() == {"A-p0": ("train", "test"), "A-p2": ("validation", "test")}
    assert data.subjects() == {"A-p1": "train"}
    assert data.summary()["shared_subjects"] == 2
    assert data.splits()["train"]["scans"] == ["A-s0", "A-s2", "A-s3"]


def test_a_split_by_subject_shares_nobody(visits: Callable[..., NiftiDataset]) -> None:
    data = visits("p0", "p1", "p2", by="subject")
    assert data.shared_subjects() == {}
    assert [scan.name for scan in data.scans("A", "test")] == ["s4", "s5"]
    assert "shared_subjects" not in data.summary()
    assert set(data.splits()["train"]) == {"subjects", "sha256"}


def test_scans_on_no_side_or_on_two_are_told(visits: Callable[..., NiftiDataset]) -> None:
    lines = [str(line) for line in visits("s0 s2", "s4", "s1 s5").audit(["A"])]
    assert [line.rpartition("split.yaml: ")[2] for line in lines] == [
        "scan 'A-s3' of A is on no side; add it, or exclude it"
    ]
    with pytest.raises(UserError, match=r"'A-s0' is in train .* and in test: keep it on one side"):
        visits("s0 s2 s3", "s4", "s1 s5 s0")
    with pytest.raises(UserError, match="validation must be a list of one or more scans' names, in quotes"):
        visits("s0 s2 s3", "", "s1 s5 s4")


def test_a_written_split_by_scan_reads_back(visits: Callable[..., NiftiDataset], tmp_path: Path) -> None:
    data = visits("s0 s2 s3", "s4", "s1 s5")
    written = data.splits()
    (tmp_path / "split.yaml").write_text(json.dumps(written))
    assert data.split_file is not None
    again = open_dataset(read_card(tmp_path / "tiny.yaml"), data.root, tmp_path / "cache")
    assert again.splits() == written


# ------------------------------------------------------------------------------------------------- audit


def told(root: Path, card: Path) -> list[str]:
    return [str(line).replace(f"{root}/", "") for line in opened(root, card).audit(["A"])]


def test_slices_need_not_hold_a_brain_that_is_kept_whole(root: Path, card_file: CardFile) -> None:
    small = ("size: 32, count: 4", "size: 16, count: 50")
    assert len(told(root, card_file(small))) == 6
    assert told(root, card_file(WHOLE, small)) == []


def test_files_of_whole_volumes_are_checked(root: Path, card_file: CardFile) -> None:
    image, labels = head(0)
    write_volume(root / "a/s0_seg.nii.gz", labels[:-1])
    far = labels.copy()
    far[0, 0, 0] = 1
    write_volume(root / "a/s1_T1w.nii.gz", image)
    write_volume(root / "a/s1_seg.nii.gz", far)
    write_volume(root / "a/s2_T1w.nii.gz", image + np.uint8(1) * (image > 0), np.diag([1, 1, 1.01, 1]))
    write_volume(root / "a/s2_seg.nii.gz", labels, np.diag([1, 1, 1.01, 1]))
    write_scan(root, "s3", affine=np.diag([1.002, 1.002, 1.002, 1]))
    (root / "a/s4_seg.nii.gz").unlink()
    lines = told(root, card_file(WHOLE))
    expected = [
        "a/s4_seg.nii.gz: no such label for a/s4_T1w.nii.gz; add the file, or exclude 's4'",
        "a/s0_seg.nii.gz: the label has 19 × 24 × 18 voxels, its image a/s0_T1w.nii.gz 20 × 24 × 18; resample",
        "a/s1_seg.nii.gz: 1 voxels of regions lie more than 1 voxels beyond the box of the brain; raise volumes.margin",
        "a/s2_T1w.nii.gz: has voxels of 1 × 1 × 1.01 mm, and surfaces are counted on cubes; resample image",
        "a/s3_T1w.nii.gz: has voxels of 1.002 × 1.002 × 1.002 mm, the site's other scans 1 mm: surfaces would not",
    ]
    assert len(lines) == len(expected)
    assert all(line.startswith(what) for line, what in zip(lines, expected, strict=True)), lines
    assert told(root, card_file(WHOLE, ("margin: 1", "margin: 20")))[2].startswith("a/s2_T1w"), "the margin holds it"
    unlabelled = ("    label: a/{scan}_seg.nii.gz\n", "")
    assert told(root, card_file(WHOLE, unlabelled)) == [], "no features, no cubes"


def test_a_run_refuses_regions_that_the_audit_would_have_told(
    root: Path, card_file: CardFile, run_stage: RunStage
) -> None:
    labels = head(1)[1]
    labels[0, 0, 0] = 2
    write_volume(root / "a/s1_seg.nii.gz", labels)
    data = opened(root, card_file(WHOLE))
    with pytest.raises(ValueError, match="1 voxels of regions lie beyond the margin; audit the data set again"):
        run_stage(data.regions("A", "all")[0])


# -------------------------------------------------------------------------------------------------- dHCP

ANAT = "sub-{who}/ses-{visit}/anat/sub-{who}_ses-{visit}_desc-{what}.nii.gz"
RELEASES = {2: ("bet_space-T2w_brainmask", "drawem87_space-T2w_dseg"), 3: ("bet_space-T2w_mask", "drawem87_dseg")}


@pytest.fixture
def dhcp(tmp_path: Path) -> Path:
    """Four infants, one of them scanned twice, in the layout of two releases; the image is 9 at most in the brain."""
    root = tmp_path / "dhcp"
    visits = {"CC01XX01": ("101",), "CC02XX02": ("201",), "CC03XX03": ("301", "302"), "CC04XX04": ("401",)}
    (root / "sub-CC01XX01").mkdir(parents=True)
    (root / "participants.tsv").write_text(
        "participant_id\tsex\tbirth_age\n" + "".join(f"{who}\tFemale\t3{i}.5\n" for i, who in enumerate(visits))
    )
    for number, (who, sessions) in enumerate(visits.items()):
        mask, dseg = RELEASES[2 + number % 2]
        lines = "".join(f"{visit}\t{40 + number}.29\n" for visit in sessions)
        (root / f"sub-{who}").mkdir(exist_ok=True)
        (root / f"sub-{who}/sub-{who}_sessions.tsv").write_text(f"session_id\tscan_age\n{lines}")
        for visit in sessions:
            labels = np.zeros((12, 11, 10), np.uint8)
            labels[1:11, 1:10, 1:9] = 84
            labels[3:9, 3:8, 3:7] = int(visit) % 87 + 1
            labels[3:5, 3:5, 3:5] = 85
            image = np.full(labels.shape, int(visit), np.float32)  # brighter outside the brain
            image[labels != 84] = 3 + int(visit[-1])
            image[4, 4, 4] = 9
            inside = (labels > 0) & (labels != 84)
            for what, array in (("restore_T2w", image), (mask, inside.astype(np.uint8)), (dseg, labels)):
                path = root / ANAT.format(who=who, visit=visit, what=what)
                write_volume(path, array[::-1], np.diag([-0.5, 0.5, 0.5, 1]))
            extra = root / ANAT.format(who=who, visit=visit, what="restore_space-T2w_T1w")
            write_volume(extra, image)
    return root


def card_of(tmp_path: Path, card: str, changes: Mapping[str, Any]) -> Any:
    path = tmp_path / "bench.yaml"
    path.write_text(json.dumps({"data": {"card": card, "with": changes}}))
    document = yamlfile.read(path)
    return load_card(document, document.data["data"])


def test_the_card_of_dhcp_reads_both_releases(dhcp: Path, tmp_path: Path, run_stage: RunStage) -> None:
    data = open_dataset(card_of(tmp_path, "dhcp", {}), dhcp, tmp_path / "cache")
    assert [str(line) for line in data.audit(["DHCP"])] == []
    scans = {scan.id: scan for scan in data.scans("DHCP")}
    assert len(scans) == 5
    twice = scans["DHCP-CC03XX03_302"]
    assert (twice.subject, twice.age, twice.birth_age, twice.sex) == ("DHCP-CC03XX03", 42.29, 32.5, "F")
    volumes, regions = sets(data, "all", run_stage, "DHCP")
    assert len(regions.names) == 88
    assert regions.ignored == (84,)
    index = [scan.id for scan in volumes.scans].index(twice.id)
    assert volumes.scans[index].birth_age == 32.5
    assert volumes[index].image.max() == 1
    assert volumes[index].image[volumes[index].mask][-1] == pytest.approx(5 / 9, abs=1e-5)
    assert set(np.unique(regions[index])) == {84, 302 % 87 + 1, 85}
    assert volumes.scans[index].spacing == (0.5, 0.5, 0.5)
    assert volumes.scans[index].shape == (10, 9, 8)


def test_the_guides_card_is_a_card(tmp_path: Path, dhcp: Path) -> None:
    guide = (REPO / "docs/brain_age_data.md").read_text()
    cards = [text for text in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if text.startswith("id:")]
    assert len(cards) == 1
    (tmp_path / "mine.yaml").write_text(cards[0])
    (tmp_path / "authors.yaml").write_text(
        "train: [STUDY-CC01XX01_101, STUDY-CC03XX03_301]\nvalidation: [STUDY-CC02XX02_201]\n"
        "test: [STUDY-CC03XX03_302, STUDY-CC04XX04_401]\n"
    )
    for folder in dhcp.glob("sub-*"):
        for path in folder.glob("ses-*/anat/*"):
            visit = path.parts[-3].removeprefix("ses-")
            target = {"restore_T2w": "T2w", "brainmask": "mask", "_mask": "mask", "dseg": "labels"}
            for ending, name in target.items():
                if path.name.endswith(f"{ending}.nii.gz"):
                    new = dhcp / "scans" / f"{folder.name.removeprefix('sub-')}_{visit}_{name}.nii.gz"
                    new.parent.mkdir(exist_ok=True)
                    path.rename(new)
    rows = "".join(
        f"{who}_{visit}\t{who}\t41\t38\tF\n"
        for who, visit in (
            ("CC01XX01", 101),
            ("CC02XX02", 201),
            ("CC03XX03", 301),
            ("CC03XX03", 302),
            ("CC04XX04", 401),
        )
    )
    (dhcp / "people.tsv").write_text(f"scan\tinfant\tweeks\tborn\tsex\n{rows}")
    data = opened(dhcp, tmp_path / "mine.yaml")
    assert [str(line) for line in data.audit(["STUDY"])] == []
    assert data.shared_subjects() == {"STUDY-CC03XX03": ("train", "test")}
    assert [stage.title for stage in data.regions("STUDY", "test")] == ["regions STUDY test 1/1"]
    assert data.scans("STUDY")[0].birth_age == 38
