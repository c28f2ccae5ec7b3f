"""Conformance of estimators of brain age and of segmenters: sound ones pass, and each check names what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import toy_ages

from harness import registry
from harness._conformance_volumes import IGNORED, NAMES, make_volume_material
from harness.api import Context, Method, Settings, State, hyper
from harness.brain_age import (
    RELATIONAL_VOLUME,
    SURFACE_RATIO,
    AgeEstimator,
    AgeInputs,
    AgePredictions,
    AgeTraining,
    SegmentationTraining,
    VolumeSegmenter,
    VolumeSet,
)
from harness.conformance import check_method

THICKNESS = "cortical thickness"


def failures(cls: type[Method]) -> dict[str, str]:
    return {result.name: result.detail for result in check_method(cls) if not result.passed}


class Size(AgeEstimator):
    """A line through the sizes of the brains; the broken ones below change one thing each."""

    id = "9_sizes"
    reference = "ours"
    late_fields = ("shift", "unit", "spread")

    offset: float = hyper(0.0, "added to ages when the line is learnt", origin="ours")
    shift: float = hyper(0.5, "added to ages", origin="ours")
    unit: Literal["weeks", "days"] = hyper("weeks", "unit of ages", origin="ours")
    spread: bool = hyper(True, "whether standard deviations are returned", origin="ours")

    @classmethod
    def example(cls) -> Size:
        return cls(shift=0.25)

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        sizes = self._sizes(data.train)
        slope, start = np.polyfit(sizes, data.ages, 1)
        apart = float(np.std(self._sizes(data.validation) * slope + start - data.validation_ages))
        line = np.array([start + self.offset])
        return {"slope": float(slope), "line": line, "sd": apart + float(ctx.rng.uniform())}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        ages = self._sizes(data) * state["slope"] + state["line"][0] + self.shift
        return AgePredictions(ages, np.full(len(ages), state["sd"]) if self.spread else None)

    def deviations(self) -> tuple[str, ...]:
        return ("a line",)

    def _sizes(self, data: AgeInputs) -> np.ndarray:
        return np.array([float((volume.image > 0).sum()) for volume in data.volumes])


class Bright(VolumeSegmenter):
    """Labels by brightness: which level is nearest."""

    id = "bright"
    reference = "ours"
    late_fields = ("least",)

    power: float = hyper(1.0, "of the levels", origin="ours", gt=0)
    least: int = hyper(0, "label that is given at least in the brain", origin="ours", ge=0, le=3)

    def fit(self, data: SegmentationTraining, ctx: Context) -> State:
        levels: dict[int, list[float]] = {}
        for sets in ((data.volumes, data.regions), (data.validation_volumes, data.validation_regions)):
            for volume, labels in zip(*sets, strict=True):
                for label in np.setdiff1d(labels[volume.mask], data.regions.ignored):
                    levels.setdefault(int(label), []).append(float(volume.image[labels == label].mean()))
        return {
            "labels": sorted(levels),
            "levels": np.array([np.mean(levels[i]) for i in sorted(levels)]) ** self.power,
        }

    def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
        labels = np.array(state["labels"], np.uint8)
        for volume in volumes:
            nearest = np.abs(volume.image[..., None] - state["levels"]).argmin(-1)
            yield np.where(volume.mask, np.maximum(labels[nearest], self.least), 0).astype(np.uint8)


class Ratios(AgeEstimator):
    """Least squares on a few features, absent ones at their mean."""

    id = "ratios"
    reference = "ours"
    reads = "features"

    families: tuple[str, ...] = hyper((SURFACE_RATIO, THICKNESS), "families of features", origin="ours")
    regions: Bright | None = hyper(Bright(), "whose regions are measured", origin="ours")

    def wanted(self) -> tuple[str, ...]:
        return self.families

    def segmenter(self) -> VolumeSegmenter | None:
        return self.regions

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        table = data.train.features
        fill = np.nanmean(table.values, axis=0)
        filled = np.where(np.isnan(table.values), fill, table.values)
        weights = np.linalg.lstsq(np.c_[filled, np.ones(len(filled))], data.ages, rcond=0.1)[0]
        return {"fill": fill, "weights": weights, "names": [column.name for column in table.columns]}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        values = np.where(np.isnan(data.features.values), state["fill"], data.features.values)
        return AgePredictions(values @ state["weights"][:-1] + state["weights"][-1])

    def chosen(self, state: State) -> tuple[str, ...]:
        return tuple(state["names"][:2])

    def alone(self, family: str) -> AgeEstimator | None:
        return self.model_copy(update={"families": (family,)}) if family == SURFACE_RATIO else None


SHARED = {"id", "fields", "late_fields", "state", "output", "inputs", "random_state", "deterministic", "late_unread"}


@pytest.mark.parametrize("cls", [Size, Ratios, Bright])
def test_sound_ones_pass_everything(cls: type[Method]) -> None:
    results = check_method(cls)
    assert [r for r in results if not r.passed] == []
    assert all(r.detail == "" for r in results)
    wanted = SHARED | {"independent", "access"}
    wanted |= {"background"} if cls is Bright else {"reads", "deviations", "sds"}
    wanted |= {"chosen", "alone"} if cls is Ratios else set()
    assert wanted <= {r.name for r in results}
    assert ("alone" in {r.name for r in results}) == (cls is Ratios)


@pytest.mark.parametrize("name", ["mean_age", "regional_regression", "patch_segmenter", "2dtta", "arn", "glt"])
def test_those_that_are_built_in_pass(name: str) -> None:
    assert [result for result in check_method(registry.load(name)) if not result.passed] == []


def test_the_material_grows_is_incomplete_and_the_same_each_time() -> None:
    families = (RELATIONAL_VOLUME, SURFACE_RATIO, THICKNESS)
    first, second = make_volume_material(families), make_volume_material(families)
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name])
    for heads in (first.train, first.validation, first.test):
        sizes = [volume.mask.sum() for volume in heads.images]
        assert np.corrcoef(sizes, heads.ages)[0, 1] > 0.9
        assert [volume.image.shape for volume in heads.images] == [scan.shape for scan in heads.scans]
        assert all(not volume.image[~volume.mask].any() for volume in heads.images)
        assert {label for labels in heads.labels for label in np.unique(labels)} == set(range(len(NAMES)))
        assert all((labels[volume.mask] != 4).all() for volume, labels in zip(heads.images, heads.labels, strict=True))
        assert IGNORED == (4,)
        without = [3 not in labels for labels in heads.labels]
        assert sum(without) == 1
        columns = [column.name for column in heads.table.columns]
        ratios = heads.table.values[:, columns.index(f"{SURFACE_RATIO} of ball")]
        np.testing.assert_array_equal(np.isnan(ratios), without)
        assert np.isnan(heads.table.only((THICKNESS,)).values).sum() == 1
        assert len(columns) == 9
    assert len({scan.shape for scan in first.train.scans}) > 1
    assert not first.locked().train.images[0].image.flags.writeable


@pytest.mark.parametrize(("name", "sound"), [("9_sizes", True), ("2dtta", True), ("2024", False), ("__", False)])
def test_an_id_needs_a_letter_anywhere(name: str, sound: bool) -> None:
    class Named(Size):
        """."""

        id = name

    expected = (
        {} if sound else {"id": f"id is {name!r}; lower-case letters, digits and _ are needed, one letter at least"}
    )
    assert failures(Named) == expected


class TestCards:
    def test_late_fields_that_are_none(self) -> None:
        class Broken(Size):
            """."""

            late_fields: ClassVar[tuple[str, ...]] = ("shfit",)

        found = failures(Broken)
        assert found.pop("late_fields") == "late_fields names what is no field: shfit"
        assert found == {"late_unread": "not run: late_fields failed"}

    @pytest.mark.parametrize("found", ["a phrase", ("a phrase", ""), None])
    def test_deviations_that_are_no_phrases(self, found: Any) -> None:
        class Broken(Size):
            """."""

            def deviations(self) -> tuple[str, ...]:
                return found

        assert failures(Broken) == {"deviations": f"deviations() must return a tuple of phrases, not {found!r}"}


class TestWhatIsRead:
    @pytest.mark.parametrize(
        ("what", "families", "message"),
        [
            ("labels", (), "reads is 'labels'; one of volumes, features, nothing is needed"),
            ("features", (), 'reads is "features", but wanted() names none'),
            ("volumes", (THICKNESS,), 'reads is "volumes", but wanted() names features'),
            ("nothing", (THICKNESS,), 'reads is "nothing", but wanted() names features'),
            ("features", (THICKNESS, THICKNESS), "wanted() must return a tuple of families, each once"),
            ("features", THICKNESS, "wanted() must return a tuple of families, each once"),
        ],
    )
    def test_reads_and_wanted_that_do_not_fit(self, what: Any, families: Any, message: str) -> None:
        class Broken(Ratios):
            """."""

            reads = what

            def wanted(self) -> tuple[str, ...]:
                return families

        found = failures(Broken)
        assert message in found["reads"]
        assert found["learns"] == "not run: reads failed"

    def test_a_segmenter_that_is_no_field_or_none(self) -> None:
        class Hidden(Ratios):
            """."""

            def segmenter(self) -> VolumeSegmenter | None:
                return Bright(power=2.0)

        class Wrong(Ratios):
            """."""

            def segmenter(self) -> VolumeSegmenter | None:
                return "bright"  # type: ignore[return-value]

        assert failures(Hidden)["reads"] == "the segmenter is no field of Hidden; declare it as one with hyper()"
        assert failures(Wrong)["reads"] == "segmenter() returns a str, no VolumeSegmenter"

    def test_a_segmenter_of_a_group_is_found(self) -> None:
        class Group(Settings):
            inner: Bright = hyper(Bright(power=2.0), "whose regions are measured", origin="ours")

        class Nested(Ratios):
            """."""

            group: Group = hyper(Group(), "a group", origin="ours")

            def segmenter(self) -> VolumeSegmenter | None:
                return self.group.inner

        assert failures(Nested) == {}

    def test_reading_what_was_not_granted(self) -> None:
        class Curious(Ratios):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                return AgePredictions(np.array([float(volume.mask.sum()) for volume in data.volumes]))

        found = failures(Curious)
        assert "this estimator reads features" in found["access"]
        assert "test_conformance_ages.py" in found["access"]
        assert found["output"] == "not run: runs failed"


class TestPredictions:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("type", "predict must return AgePredictions, got ndarray"),
            ("few", "ages must be of 4 scans"),
            ("nan", "ages are not finite for 2 of 4 scans"),
            ("sds", "sds must be of 4 scans"),
            ("negative", "sds must not be negative"),
        ],
    )
    def test_ages_that_are_none(self, how: str, message: str) -> None:
        class Broken(toy_ages.Wrong):
            """."""

            @classmethod
            def example(cls) -> Broken:
                return cls(how=how)

        assert message in failures(Broken)["output"]

    @pytest.mark.parametrize(("factor", "message"), [(0.0, "sds are 0 for every scan"), (1.0, "sds are the ages")])
    def test_sds_that_say_nothing(self, factor: float, message: str) -> None:
        class Broken(Size):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                found = super().predict(state, data, ctx)
                return AgePredictions(found.ages, found.ages * factor)

        found = failures(Broken)
        assert found.keys() == {"sds"}
        assert message in found["sds"]

    def test_ages_relative_to_those_of_the_others(self) -> None:
        class Centred(Size):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                found = super().predict(state, data, ctx)
                return AgePredictions(found.ages - found.ages.mean() + 37, found.sds)

        found = failures(Centred)
        assert found.keys() == {"independent"}
        assert "the age of a scan depends on other scans, or on their order: by " in found["independent"]

    def test_ages_and_sds_by_place(self) -> None:
        class Ordered(Size):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                found = super().predict(state, data, ctx)
                return AgePredictions(found.ages, 1.0 + np.arange(len(found.ages)))

        class Some(Size):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                found = super().predict(state, data, ctx)
                return found if len(found.ages) > 1 else AgePredictions(found.ages)

        assert "the sd of a scan depends on other scans" in failures(Ordered)["independent"]
        assert failures(Some) == {"independent": "sds are returned for some sets of scans only"}


class TestConduct:
    def test_states_that_do_not_survive(self) -> None:
        class Tupled(Size):
            """."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                return {**super().fit(data, ctx), "shape": (1, 2)}

        class Wrong(Size):
            """."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                return [1.0]  # type: ignore[return-value]

        assert failures(Tupled)["state"] == "state entry 'shape' does not survive saving: (1, 2) became [1, 2]"
        assert failures(Wrong)["learns"] == "a state is a dict, not list"

    def test_writing_to_volumes_ages_and_the_state(self) -> None:
        class Scales(Size):
            """."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                data.ages[...] -= 1
                volume = data.train.volumes[3]
                volume.image[...] *= 0.5
                return super().fit(data, ctx)

        class Counts(Size):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                state["line"] += 1
                return super().predict(state, data, ctx)

        found = failures(Scales)
        assert found.pop("inputs") == "the method wrote to its inputs: train: ages, train: image of train-3"
        assert found.pop("late_unread") == "not run: deterministic failed"
        assert found == {"deterministic": "not run: inputs failed"}
        assert failures(Counts)["inputs"] == "the method wrote to its inputs: state['line']"

    def test_writing_to_features(self) -> None:
        class Fills(Ratios):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                np.nan_to_num(data.features.values, copy=False, nan=0.5)
                return super().predict(state, data, ctx)

        assert failures(Fills)["inputs"] == "the method wrote to its inputs: test: features"

    def test_read_only_arrays(self) -> None:
        class Sorts(Size):
            """Writes what is there already, so that nothing changes."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                data.ages[0] = data.ages[0]
                return super().fit(data, ctx)

        found = failures(Sorts)
        assert "ValueError: assignment destination is read-only (test_conformance_ages.py:" in found["deterministic"]
        assert found.keys() == {"deterministic", "late_unread"}

    def test_drawing_from_the_global_state(self) -> None:
        class Draws(Size):
            """."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                return {**super().fit(data, ctx), "noise": float(torch.rand(()))}

        class Noisy(Size):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                found = super().predict(state, data, ctx)
                return AgePredictions(found.ages + np.random.rand(), found.sds)  # noqa: NPY002

        found = failures(Draws)
        assert found["deterministic"] == "two fits with one seed differ in noise"
        assert found["random_state"].startswith("changed torch;")
        found = failures(Noisy)
        assert found["deterministic"] == "two runs with one seed differ in their predictions"
        assert found["random_state"].startswith("changed numpy.random;")

    def test_what_a_first_import_draws_is_not_the_methods(self) -> None:
        class Imports(Size):
            """."""

            done: ClassVar[list[int]] = []

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                if not self.done:
                    self.done.append(1)
                    torch.rand(())
                return super().fit(data, ctx)

        assert failures(Imports) == {}

    def test_fields_that_are_not_late(self) -> None:
        class Broken(Size):
            """."""

            late_fields: ClassVar[tuple[str, ...]] = ("shift", "offset")

        found = failures(Broken)
        assert found == {
            "late_unread": "fit reads what late_fields names: with another shift, offset its state differs in line"
        }

    @pytest.mark.parametrize("field", ["unit", "spread"])
    def test_words_and_switches_that_are_not_late(self, field: str) -> None:
        class Broken(Size):
            """."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                return {**super().fit(data, ctx), "kept": str(getattr(self, field))}

        assert failures(Broken)["late_unread"].endswith("its state differs in kept")

    def test_fit_is_handed_no_late_field(self) -> None:
        class Broken(Size):
            """Learns the shift, which a run would not let it."""

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                assert self.shift == 0.5, "the default, since the example's value is late"
                return super().fit(data, ctx)

        assert "AssertionError: the default" in failures(Broken)["late_unread"]


class TestFeatures:
    def test_names_that_are_no_column(self) -> None:
        class Broken(Ratios):
            """."""

            def chosen(self, state: State) -> tuple[str, ...]:
                return ("surface ratio of moon", *super().chosen(state))

        class Wrong(Ratios):
            """."""

            def chosen(self, state: State) -> tuple[str, ...]:
                return (3,)  # type: ignore[return-value]

        assert failures(Broken) == {"chosen": "chosen() names what is no column: surface ratio of moon"}
        assert failures(Wrong) == {"chosen": "chosen() must return names of columns or None, not (3,)"}

    def test_absent_regions(self) -> None:
        class Careless(Ratios):
            """."""

            def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
                return AgePredictions(data.features.values @ state["weights"][:-1])

        assert "ages are not finite for 2 of 4 scans" in failures(Careless)["output"]

    @pytest.mark.parametrize("other", [Size(), "ratios"])
    def test_alone_that_reads_something_else(self, other: Any) -> None:
        class Broken(Ratios):
            """."""

            def alone(self, family: str) -> AgeEstimator | None:
                return other

        found = failures(Broken)
        assert found == {"alone": "alone('surface ratio') must return an estimator that reads features, or None"}

    def test_alone_that_cannot_be_fitted_to_one_family(self) -> None:
        class Broken(Ratios):
            """."""

            def alone(self, family: str) -> AgeEstimator | None:
                return self

            def fit(self, data: AgeTraining, ctx: Context) -> State:
                missing = set(self.families) - set(data.train.features.families)
                assert not missing, f"no {missing}"
                return super().fit(data, ctx)

        assert "AssertionError: no {" in failures(Broken)["alone"]


class TestSegmenters:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("shape", "levels: the label map of test-0 must be uint8 ["),
            ("type", "got int64"),
            ("value", "holds 9; labels go from 0 to 4"),
            ("few", "the label map of test-1 is missing: 1 of 4 volumes were segmented"),
            ("many", "levels: there are more label maps than the 4 volumes"),
            ("list", "must be uint8"),
        ],
    )
    def test_label_maps_that_are_none(self, how: Any, message: str) -> None:
        class Broken(toy_ages.Levels):
            """."""

            @classmethod
            def example(cls) -> Broken:
                return cls(wrong=how)

            def fit(self, data: SegmentationTraining, ctx: Context) -> State:
                return {}

        found = failures(Broken)
        assert message in found["output"]
        assert found["background"] == "not run: output failed"

    def test_labels_outside_the_brain(self) -> None:
        class Broken(Bright):
            """."""

            def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
                for volume, labels in zip(volumes, super().segment(state, volumes, ctx), strict=True):
                    yield np.where(volume.mask, labels, 1).astype(np.uint8)

        found = failures(Broken)
        assert found.keys() == {"background"}
        assert "voxels of test-0 have a label outside the brain mask; they must be 0" in found["background"]

    def test_labels_relative_to_those_of_the_others(self) -> None:
        class Broken(Bright):
            """."""

            def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
                middle = float(np.median([np.median(volume.image[volume.mask]) for volume in volumes]))
                for volume in volumes:
                    yield np.where(volume.mask, 1 + (volume.image > middle), 0).astype(np.uint8)

        found = failures(Broken)
        assert found.keys() == {"independent"}
        assert "of a scan's labels depend on other scans, or on their order" in found["independent"]

    def test_one_buffer_for_all_maps_does_no_harm(self) -> None:
        class Thrifty(Bright):
            """A run writes each map before it asks for the next."""

            def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
                room = np.zeros(int(max(np.prod(scan.shape) for scan in volumes.scans)), np.uint8)
                for labels in super().segment(state, volumes, ctx):
                    buffer = room[: labels.size].reshape(labels.shape)
                    buffer[...] = labels
                    yield buffer

        assert failures(Thrifty) == {}

    def test_conduct(self) -> None:
        class Writes(Bright):
            """."""

            def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
                volumes[1].image[...] = 0.5
                return super().segment(state, volumes, ctx)

        class Learns(Bright):
            """."""

            def fit(self, data: SegmentationTraining, ctx: Context) -> State:
                return {**super().fit(data, ctx), "least": self.least}

        class Noisy(Bright):
            """."""

            def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
                noise = np.random.rand()  # noqa: NPY002
                return super().segment({**state, "levels": state["levels"] + noise}, volumes, ctx)

        assert failures(Writes)["inputs"] == "the method wrote to its inputs: test: image of test-1"
        late = "fit reads what late_fields names: with another least its state differs in least"
        assert failures(Learns) == {"late_unread": late}
        assert "two runs with one seed differ in " in failures(Noisy)["deterministic"]
