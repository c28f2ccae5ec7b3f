"""Finding scans by pattern, and who was scanned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.data.card import NiftiCard, read_card
from harness.data.layout import Layout, find_scans

IMAGE, LABEL = "image: a/{scan}_T1w.nii.gz", "    label: a/{scan}_seg.nii.gz\n"
CardFile = Callable[..., Path]


@pytest.fixture
def find(card_file: CardFile, tmp_path: Path) -> Callable[..., Layout]:
    """The layout of site A: empty files at the given paths, the site's YAML in place of image and label."""

    def run(files: list[str], image: str, more: str = "") -> Layout:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        card = read_card(card_file((IMAGE, f"image: {image}"), (LABEL, more)))
        assert isinstance(card, NiftiCard)
        return find_scans(tmp_path, card, "A")

    return run


def lines(layout: Layout) -> str:
    return "\n".join(map(str, layout.problems))


def test_a_field_matches_part_of_a_name(find: Callable[..., Layout]) -> None:
    layout = find(["m/sub-07_T1w.nii.gz", "m/sub-1_x_T1w.nii.gz", "m/sub-8_T2w.nii.gz"], "m/sub-{scan}_T1w.nii.gz")
    assert [(s.name, s.id, s.subject) for s in layout.scans] == [
        ("07", "A-07", "A-07"),
        ("1_x", "A-1_x", "A-1_x"),
    ]
    assert not layout.problems


def test_sessions_of_one_subject_share_the_subject(find: Callable[..., Layout]) -> None:
    files = [f"sub-{s}/ses-{v}/anat/sub-{s}_ses-{v}_T1w.nii" for s in ("a", "b") for v in (1, 2)]
    wrong = "sub-a/ses-1/anat/sub-b_ses-1_T1w.nii"  # a field must recur with the same text
    layout = find([*files, wrong], "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T1w.nii")
    assert [(s.name, s.subject) for s in layout.scans] == [
        ("a_1", "A-a"),
        ("a_2", "A-a"),
        ("b_1", "A-b"),
        ("b_2", "A-b"),
    ]


def test_names_with_special_characters_are_matched_as_they_are(find: Callable[..., Layout]) -> None:
    layout = find(["m/a[1].nii", "m/a[1]-seg.nii", "m/a1.nii"], "m/{scan}.nii", "    label: m/{scan}-seg.nii\n")
    assert [(s.name, s.label) for s in layout.scans][0] == ("a1", None)
    assert ("a[1]", "m/a[1]-seg.nii") in [(s.name, s.label) for s in layout.scans]


def test_a_star_matches_a_part_that_varies(find: Callable[..., Layout]) -> None:
    layout = find(["disc1/x_a.nii", "disc2/y_b.nii"], "disc*/{scan}_*.nii")
    assert [s.name for s in layout.scans] == ["x", "y"]


def test_a_scan_found_twice_is_a_problem(find: Callable[..., Layout]) -> None:
    layout = find(["disc1/x.nii", "disc2/x.nii"], "disc*/{scan}.nii")
    assert "disc2/x.nii: scan 'x' again, first at disc1/x.nii; make the pattern narrower" in lines(layout)


def test_a_pattern_that_matches_nothing_is_a_problem(find: Callable[..., Layout], tmp_path: Path) -> None:
    layout = find([], "m/{scan}.nii")
    assert lines(layout) == f"{tmp_path}/m/{{scan}}.nii: no file matches; check the root, and the pattern of A"


def test_a_missing_label_is_a_problem_of_its_scan(find: Callable[..., Layout], tmp_path: Path) -> None:
    layout = find(["m/a.nii", "m/b.nii", "l/b.nii"], "m/{scan}.nii", "    label: l/{scan}.nii\n")
    assert lines(layout) == f"{tmp_path}/l/a.nii: no such label for m/a.nii; add the file, or exclude 'a'"


def test_two_masks_for_one_image_are_a_problem(find: Callable[..., Layout]) -> None:
    layout = find(["m/a.nii", "k/a_1.nii", "k/a_2.nii"], "m/{scan}.nii", "    mask: k/{scan}_*.nii\n")
    assert "2 files match (k/a_1.nii, k/a_2.nii…); make the mask pattern narrower" in lines(layout)


def test_excluded_scans_are_left_out_and_slips_are_told(find: Callable[..., Layout]) -> None:
    layout = find(["m/aa.nii", "m/bb.nii"], "m/{scan}.nii", "    exclude: ['bb', 'aaa']\n")
    assert [s.name for s in layout.scans] == ["aa"]
    assert lines(layout).endswith("tiny.yaml:18:21: exclude: there is no scan 'aaa'; did you mean aa?")


def test_rescans_are_one_person(find: Callable[..., Layout]) -> None:
    layout = find(["m/1.nii", "m/2.nii", "m/3.nii"], "m/{scan}.nii", '    same_subject: [["1", "3"]]\n')
    assert [s.subject for s in layout.scans] == ["A-1", "A-2", "A-1"]
    layout = find([], "m/{scan}.nii", '    same_subject: [["1", "4"]]\n')
    assert lines(layout).endswith("tiny.yaml:18:26: same_subject: there is no scan '4'; known: 1, 2, 3")


def test_a_cohort_gives_sites_the_same_people(find: Callable[..., Layout]) -> None:
    layout = find(["m/1.nii"], "m/{scan}.nii", "    cohort: travellers\n")
    assert layout.scans[0].subject == "travellers-1"


# ------------------------------------------------------------------------------------------------ table


def table(find: Callable[..., Layout], tmp_path: Path, text: str, more: str = "    subjects: t.csv\n") -> Layout:
    (tmp_path / "t.csv").write_text(text)
    return find(["m/1.nii", "m/2.nii"], "m/{scan}.nii", more)


def test_a_table_gives_subject_age_and_sex(find: Callable[..., Layout], tmp_path: Path) -> None:
    layout = table(find, tmp_path, "scan,subject,age,sex\n1,p,20.5,f\n2,p,n/a,Male\n")
    assert [(s.subject, s.age, s.sex) for s in layout.scans] == [("A-p", 20.5, "F"), ("A-p", None, "M")]
    assert not layout.problems


def test_a_table_of_bids_reads_as_it_is(find: Callable[..., Layout], tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t8\n")
    image = "'{subject}/ses-{session}/anat.nii'"
    more = "    subjects: {file: participants.tsv, scan: participant_id}\n"
    layout = find(["sub-1/ses-a/anat.nii", "sub-1/ses-b/anat.nii"], image, more)
    assert [(s.name, s.subject, s.age) for s in layout.scans] == [
        ("sub-1_a", "A-sub-1", 8.0),
        ("sub-1_b", "A-sub-1", 8.0),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scan,age\n1,20\n1,21\n2,3\n", "t.csv:3: scan '1' is listed twice; keep one row"),
        ("scan,age\n1,old\n2,3\n", "t.csv:2: age 'old' is no age in years"),
        ("scan,age\n1,inf\n2,3\n", "t.csv:2: age 'inf' is no age in years"),
        ("scan,sex\n1,x\n2,F\n", "t.csv:2: sex 'x' is neither F nor M"),
        ("scan\n1\n", "m/2.nii: scan '2' is not in t.csv; add its row, or exclude it"),
        ("id,age\n1,2\n", "t.csv: has no column 'scan' (it has id, age); set subjects.scan"),
        ("", "t.csv: has no column 'scan' (it has none)"),
    ],
)
def test_each_mistake_in_a_table(find: Callable[..., Layout], tmp_path: Path, text: str, expected: str) -> None:
    assert expected in lines(table(find, tmp_path, text))


def test_a_table_that_is_not_there_or_no_text(find: Callable[..., Layout], tmp_path: Path) -> None:
    assert "no such table of subjects" in lines(find(["m/1.nii"], "m/{scan}.nii", "    subjects: t.csv\n"))
    (tmp_path / "t.csv").write_bytes(b"scan\n\xff\xfe\n")
    assert "the table cannot be read" in lines(find([], "m/{scan}.nii", "    subjects: t.csv\n"))
