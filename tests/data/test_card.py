"""Cards: what they may say, how a benchmark overrides them, and where each mistake is reported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import yamlfile
from harness.data.card import NiftiCard, PhantomCard, card_ids, cards_folder, load_card, read_card
from harness.problems import UserError

CardFile = Callable[..., Path]
TABLE = (
    "labels:\n  names: [background, left, right]\n  groupings:\n    coarse: {0: background, 5-9: left, 7: right}\n",
    "",
)


def problems(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def benchmark(folder: Path, data: str) -> yamlfile.Document:
    path = folder / "bench.yaml"
    path.write_text(f"benchmark: x\ndata:\n{data}")
    return yamlfile.read(path)


def load(folder: Path, data: str) -> NiftiCard | PhantomCard:
    document = benchmark(folder, data)
    return load_card(document, document.data["data"])


def test_built_in_cards_load_and_name_their_groups() -> None:
    groups = {
        "phantom_adult_t1": 15,
        "oasis1_malf": 15,
        "nifti_folder": 15,
        "adult_t1_seven_sites": 15,
        "phantom_neonatal_t1": 9,
        "phantom_neonatal_t2": 9,
        "neonatal_t1": 36,
        "neonatal_t2": 36,
        "phantom_s1": 6,
        "phantom_s2": 6,
        "ixi_atlas": 2,
        "atlas_t1": 2,
        "brats21": 2,
        "lesion_folder": 2,
        "png_folder": 2,
        "phantom_newborns": 88,
        "dhcp": 88,
        "dhcp_features": 88,
        "feature_table": 0,  # whose numbers have no names until a copy gives them
    }
    assert set(card_ids()) == set(groups)
    for card_id in card_ids():
        card = read_card(card_id)
        assert card.id == card_id
        if not groups[card_id]:
            assert card.labels is None
            continue
        assert card.labels is not None
        assert len(card.labels.names) == groups[card_id]
        assert card.model_dump(mode="json")["labels"]["names"][0] == "background"


def test_the_phantom_card_has_the_published_number_of_scans() -> None:
    card = read_card("phantom_adult_t1")
    assert isinstance(card, PhantomCard)
    assert [site.scans for site in card.sites.values() if site] == [19, 20, 20, 20, 77, 57, 117]


def test_freesurfer_ids_map_to_groups() -> None:
    from harness.data.volumes import group_labels

    table = read_card("oasis1_malf").labels
    assert table is not None
    import numpy as np

    ids = np.array([0, 2, 41, 3, 42, 1010, 2035, 12000, 10, 49, 17, 26, 31, 77, 251, 28, 99, 9999])
    groups, unknown = group_labels(ids, table.ranges("freesurfer"))
    names = [table.names[g] for g in groups]
    assert names[:12] == [
        "background",
        *["cerebral_WM"] * 2,
        *["cerebral_GM"] * 5,
        *["thalamus"] * 2,
        "hippocampus",
        "cerebral_GM",
    ]
    assert names[12:16] == ["ventricles", "cerebral_WM", "cerebral_WM", "ventral_DC"]
    assert unknown == [99, 9999]


def test_importing_cards_is_light() -> None:
    code = "import sys, harness.data.card; print([m for m in ('nibabel', 'scipy', 'torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cards_folder_exists() -> None:
    assert (cards_folder() / "labels" / "adult15.yaml").is_file()


# ----------------------------------------------------------------------------------- naming and merging


def test_an_unknown_card_is_named_at_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, "  card: oasis_malf\n")
    assert problems(error) == [
        f"{tmp_path}/bench.yaml:3:3: unknown dataset card 'oasis_malf'; did you mean oasis1_malf?"
    ]


def test_a_card_file_is_found_beside_the_benchmark(card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    assert load(tmp_path, "  card: tiny.yaml\n").id == "tiny"
    with pytest.raises(UserError, match="no such card file"):
        load(tmp_path, "  card: other.yaml\n")


def test_a_benchmark_overrides_fields_deeply(card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    card = load(tmp_path, "  card: tiny.yaml\n  with:\n    slices: {count: 7}\n    split: {seed: 5}\n    scans: 4\n")
    assert (card.slices.count, card.slices.size, card.split.seed, card.scans) == (7, 32, 5, 4)


def test_a_wrong_override_is_reported_in_the_benchmark(card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    with pytest.raises(UserError) as error:
        load(
            tmp_path,
            "  card: tiny.yaml\n  with:\n    slices: {sise: 8, count: many}\n    sites:\n      A: {imgae: x}\n",
        )
    assert problems(error) == [
        f"{tmp_path}/bench.yaml:5:23: slices.count: must be a whole number above 0, or all; got 'many'",
        f"{tmp_path}/bench.yaml:5:14: unknown key 'sise'; did you mean size?",
        f"{tmp_path}/bench.yaml:7:11: unknown key 'imgae'; did you mean image?",
    ]


def test_a_wrong_command_line_override_is_reported_there(card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    document = benchmark(tmp_path, "  card: tiny.yaml\n")
    document.override("data.with.slices.size=3")
    with pytest.raises(UserError) as error:
        load_card(document, document.data["data"])
    assert problems(error)[0].startswith("--set data.with.slices.size=3: slices.size is 3:")


def test_a_mistake_in_the_card_is_reported_in_the_card_despite_overrides(card_file: CardFile, tmp_path: Path) -> None:
    path = card_file(("size: 32", "size: big"))
    with pytest.raises(UserError) as error:
        load(tmp_path, "  card: tiny.yaml\n  with: {slices: {count: 3}}\n")
    assert problems(error)[0].startswith(f"{path}:13:26: slices.size is 'big'")


@pytest.mark.parametrize("key", ["id", "kind"])
def test_identity_cannot_be_overridden(card_file: CardFile, tmp_path: Path, key: str) -> None:
    card_file()
    with pytest.raises(UserError, match=rf"bench\.yaml:4:10: {key} cannot be replaced"):
        load(tmp_path, f"  card: tiny.yaml\n  with: {{{key}: x}}\n")


def test_one_label_of_a_grouping_can_be_overridden(tmp_path: Path) -> None:
    card = load(
        tmp_path, "  card: oasis1_malf\n  with:\n    labels:\n      groupings:\n        freesurfer: {26: putamen}\n"
    )
    assert card.labels is not None
    assert card.labels.groupings["freesurfer"][26] == "putamen"
    assert card.labels.groupings["freesurfer"][58] == "cerebral_GM"
    with pytest.raises(UserError) as error:
        load(tmp_path, "  card: oasis1_malf\n  with: {labels: {groupings: {freesurfer: {26: putamem}}}}\n")
    assert problems(error) == [
        f"{tmp_path}/bench.yaml:4:44: 'putamem' is no label; did you mean putamen?",
    ]


def test_a_mistake_in_a_label_table_is_reported_in_its_file(card_file: CardFile, tmp_path: Path) -> None:
    card_file((TABLE[0], "labels: mine.yaml\n"))
    table = tmp_path / "mine.yaml"
    table.write_text("names: [background, left, left]\ngroupings:\n  g:\n    x: left\n    9-5: lefd\n")
    with pytest.raises(UserError) as error:
        read_card(tmp_path / "tiny.yaml")
    assert problems(error) == [
        f"{table}:1:27: 'left' is listed twice",
        f"{table}:4:5: 'x' is neither an id nor a range such as 1000-1035",
        f"{table}:5:5: '9-5' is neither an id nor a range such as 1000-1035",
        f"{table}:5:5: 'lefd' is no label; did you mean left?",
    ]


def test_an_unknown_label_table_is_named(card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    with pytest.raises(UserError, match=r"bench\.yaml:4:10: unknown label table 'adult16'; did you mean adult15\?"):
        load(tmp_path, "  card: tiny.yaml\n  with: {labels: adult16}\n")


def test_intensity_words(card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    for text, expected in (("max", 100), ("none", None), ("{percentile: 98}", 98)):
        card = load(tmp_path, f"  card: tiny.yaml\n  with: {{intensity: {text}}}\n")
        assert isinstance(card, NiftiCard)
        assert card.intensity.percentile == expected
    with pytest.raises(UserError, match=r"4:10: intensity: write \{percentile: 99.5\}, max or none; got 'most'"):
        load(tmp_path, "  card: tiny.yaml\n  with: {intensity: most}\n")


# --------------------------------------------------------------------------------------------- mistakes

LABEL = ("    label: a/{scan}_seg.nii.gz\n", "")
IMAGE = "image: a/{scan}_T1w.nii.gz"


@pytest.mark.parametrize(
    ("replacements", "where", "what"),
    [
        ([(IMAGE, "image: /data/{scan}.nii")], "17:5", "is absolute; write it relative to the data root"),
        ([(IMAGE, "image: C:/data/{scan}.nii")], "17:5", "is absolute"),
        ([(IMAGE, "image: ../{scan}.nii")], "17:5", "leaves the data root; a path may not contain .."),
        ([(IMAGE, "image: a/x/../../../{scan}.nii")], "17:5", "leaves the data root"),
        ([(IMAGE, "image: 'a\\{scan}.nii'")], "17:5", "has a backslash"),
        ([(IMAGE, "image: a/{scna}.nii")], "17:5", "unknown field {scna}; did you mean scan?"),
        ([(IMAGE, "image: a/{scan.nii")], "17:5", "has a brace without its partner"),
        ([(IMAGE, "image: a/**/{scan}.nii")], "17:5", "** is not known"),
        ([(IMAGE, "image: a/T1w.nii"), LABEL], "17:5", "names no {scan} or {subject}"),
        ([(IMAGE, "image: a/{subject}.nii")], "18:5", "uses fields that image does not have; it has subject"),
        ([(IMAGE, "mask: m.nii")], "16:3", "image is missing; give a path pattern, or `of:` another site"),
        ([("    label", "    grouping: coarce\n    label")], "18:5", "unknown grouping 'coarce'; did you mean coarse?"),
        ([("    label", "    of: B\n    label")], "18:5", "unknown site 'B'"),
        ([("    label", "    subjects: ../x.csv\n    label")], "18:5", "subjects: '../x.csv' leaves the data root"),
        ([("    label", '    same_subject: [["1", "2"], ["2"]]\n    label')], "18:33", "scan '2' is listed twice"),
        ([("    label", "    exclude: [7]\n    label")], "18:15", "input should be a valid string"),
        ([("seed: 1}", "train: 0.7}")], "14:1", "train, validation and test sum to 1.1; make them sum to 1"),
        ([("  A:", "  A→B:")], "16:3", "'A→B' is no name for a site"),
        ([("count: 4", "range: [0.5, 0.2]")], "13:36", "must be two fractions of the brain's extent"),
        ([("kind: nifti", "kind: nifty")], "3:1", "kind is 'nifty'; did you mean nifti?"),
        ([("kind: nifti\n", "")], "1:1", "kind is None; known: phantom, nifti"),
        ([("licence: none\n", "")], "1:1", "licence is missing; it is required"),
    ],
)
def test_each_mistake_has_its_place(
    card_file: CardFile, replacements: list[tuple[str, str]], where: str, what: str
) -> None:
    path = card_file(*replacements)
    with pytest.raises(UserError) as error:
        read_card(path)
    assert any(line.startswith(f"{path}:{where}: ") and what in line for line in problems(error)), problems(error)


@pytest.mark.parametrize(
    ("site", "what"),
    [
        ("{of: A}", "is an unchanged copy of A; add shift:"),
        ("{of: A, shift: {gamma: 2}, exclude: ['x']}", "exclude comes from A; only shift: goes with of:"),
        ("{of: A, shift: {gamma: -2}}", "sites.B.shift.gamma is -2: input should be greater than or equal to 0.2"),
        ("{of: A, shift: {curve: [[0, 1], [0.5, 0]]}}", "must be [[0, y], ..., [1, y]] with inputs that rise"),
    ],
)
def test_mistakes_in_a_shifted_site(card_file: CardFile, site: str, what: str) -> None:
    path = card_file(more=f"  B: {site}\n")
    with pytest.raises(UserError) as error:
        read_card(path)
    assert any(what in line for line in problems(error)), problems(error)


def test_labels_need_a_table(card_file: CardFile) -> None:
    path = card_file(TABLE)
    with pytest.raises(UserError, match="the card has no labels table"):
        read_card(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ("slices: {plane: sagittal}", "4:19: the phantom is cut coronally or axially"),
        ("slices: {size: 64}", "size × pixel_mm is 64 mm; a brain needs 150 mm or more"),
        ("anatomies: ../maps", "leaves the data root"),
        ("scans: 2", "scans is 2: input should be greater than or equal to 3"),
        ("simulated: false", "simulated is False: input should be True"),
    ],
)
def test_mistakes_in_a_phantom_card(tmp_path: Path, changes: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, f"  card: phantom_adult_t1\n  with: {{{changes}}}\n")
    assert any(what in line for line in problems(error)), problems(error)
