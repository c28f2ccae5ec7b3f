"""Conformance of anomaly detectors and components: sound ones pass, and each check names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch

from harness._conformance_data import make_anomaly_material, without_brain
from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, NormalData, Processing, part, slice_generators
from harness.api import Context, ImageSet, Method, MethodError, Settings, State, hyper
from harness.conformance import check_method
from harness.cost import counted
from harness.training import seeded


def failures(cls: type[Method]) -> dict[str, str]:
    return {result.name: result.detail for result in check_method(cls) if not result.passed}


class Level(Component):
    """The mean of the healthy brain."""

    id = "level"
    reference = "ours"
    shift: float = hyper(0.0, "added to the mean", origin="ours")

    def fit(self, data: NormalData, ctx: Context) -> State:
        return {"mean": float(data.images.floats()[np.asarray(data.images.mask)].mean()) + self.shift}


class Blur(Component):
    """A convolution that averages, and the mean's own mean."""

    id = "blur"
    reference = "ours"
    level: Level = hyper(Level(), "the mean it starts from", origin="ours")

    def components(self) -> Mapping[str, Component]:
        return {"level": self.level}

    def fit(self, data: NormalData, ctx: Context) -> State:
        return {"weight": torch.full((1, 1, 3, 3), 1 / 9), "mean": data.components["level"]["mean"]}


class Sound(AnomalyDetector):
    """A detector without fault; the broken ones below change one thing each."""

    id = "sound"
    reference = "ours"
    late_fields = ("gain",)

    blur: Blur = hyper(Blur(), "smooths", origin="ours")
    gain: float = hyper(1.0, "factor of all maps", origin="ours", gt=0)

    def components(self) -> Mapping[str, Component]:
        return {"blur": self.blur}

    def fit(self, data: NormalData, ctx: Context) -> State:
        drawn = ctx.rng.normal(0, 1e-3, data.images.pixels.shape[1:])
        return {"mean": (data.images.floats().mean(0) + data.components["blur"]["mean"] * 0 + drawn).astype(np.float32)}

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        with seeded(0):
            network = counted(torch.nn.Conv2d(1, 1, 3, padding=1, bias=False))
        with torch.inference_mode():
            network.weight.copy_(torch.from_numpy(part(state, "blur")["weight"]))
            smooth = network(torch.from_numpy(images.floats())[:, None])[:, 0].numpy()
        noise = np.stack([rng.normal(0, 1e-3, state["mean"].shape) for rng in slice_generators(images, ctx.seed)])
        return AnomalyMaps(self.gain * np.abs(smooth - state["mean"] + noise), smooth)

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        return {"mean": np.broadcast_to(np.clip(state["mean"], 0, 1), images.pixels.shape)}

    def deviations(self) -> tuple[str, ...]:
        return ("noise is added",)


class Unlearnt(AnomalyDetector):
    """Needs nothing but the slice."""

    id = "unlearnt"
    reference = "ours"

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        assert state == {}
        return AnomalyMaps(images.floats())


@pytest.mark.parametrize("cls", [Sound, Unlearnt, Blur, Level])
def test_sound_ones_pass_everything(cls: type[Method]) -> None:
    results = check_method(cls)
    assert [r for r in results if not r.passed] == []
    assert all(r.detail == "" for r in results)
    wanted = {
        "id",
        "fields",
        "components",
        "state",
        "inputs",
        "random_state",
        "deterministic",
        "float_pixels",
        "access",
    }
    if issubclass(cls, AnomalyDetector):
        wanted |= {"output", "illustrate", "independent", "empty_slice", "counted", "deviations", "late_fields"}
    assert wanted <= {r.name for r in results}


def test_the_material_has_something_to_find_and_is_the_same_each_time() -> None:
    first, second = make_anomaly_material(), make_anomaly_material()
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name])
    assert {scan.modality for scan in first.test.scans} == {"FLAIR"}
    assert (first.test.pixels == 245).any((1, 2)).sum() == 9  # every fourth slice has a dark one
    assert not first.test.pixels[~first.test.mask].any()
    assert (first.images.pixels < 245).all()
    assert not without_brain(first.test).mask.any()


class TestCards:
    def test_a_component_needs_a_card_too(self) -> None:
        class Bare(Level):
            id = "Bare"
            reference = ""
            extra: int = 3

        found = failures(Bare)
        assert {"id", "reference", "docstring", "fields"} <= found.keys()

    def test_late_fields_that_are_none(self) -> None:
        class Broken(Sound):
            """."""

            late_fields: ClassVar[tuple[str, ...]] = ("gian",)

        assert failures(Broken) == {"late_fields": "late_fields names what is no field: gian"}

    @pytest.mark.parametrize("found", ["a phrase", ("a phrase", ""), (3,), None])
    def test_deviations_that_are_no_phrases(self, found: Any) -> None:
        class Broken(Sound):
            """."""

            def deviations(self) -> tuple[str, ...]:
                return found

        assert failures(Broken) == {"deviations": f"deviations() must return a tuple of phrases, not {found!r}"}

    def test_a_processing_that_is_none(self) -> None:
        class Broken(Sound):
            """."""

            def published_processing(self) -> Processing:
                return {"median": 5}  # type: ignore[return-value]

        assert failures(Broken) == {"processing": "published_processing() must return a Processing, not a dict"}


class TestComponents:
    def test_a_component_that_is_no_field_would_not_count(self) -> None:
        class Broken(Sound):
            """."""

            def components(self) -> Mapping[str, Component]:
                return {"blur": Blur(level=Level(shift=1.0))}

        found = failures(Broken)
        assert found["components"] == "component 'blur' is no field of Broken; declare it as one with hyper()"
        assert found["learns"] == "not run: components failed"

    def test_a_component_of_a_component_may_be_named(self) -> None:
        class Deep(Sound):
            """."""

            def components(self) -> Mapping[str, Component]:
                return {"blur": self.blur, "level": self.blur.level}

            def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
                assert part(state, "level")["mean"] == part(state, "blur")["mean"]
                return super().detect(state, images, ctx)

        assert failures(Deep) == {}

    def test_something_else_than_a_component(self) -> None:
        class Group(Settings):
            size: int = hyper(3, "size", origin="ours")

        class Broken(Sound):
            """."""

            group: Group = hyper(Group(), "a group", origin="ours")

            def components(self) -> Mapping[str, Component]:
                return {"blur": self.blur, "group": self.group}  # type: ignore[dict-item]

        assert failures(Broken)["components"] == "component 'group' is a Group, no Component"

    def test_names_that_would_not_do_in_a_state(self) -> None:
        class Broken(Sound):
            """."""

            def components(self) -> Mapping[str, Component]:
                return {"my.blur": self.blur}

        assert "component name 'my.blur'" in failures(Broken)["components"]

    def test_no_dict(self) -> None:
        class Broken(Sound):
            """."""

            def components(self) -> Mapping[str, Component]:
                return [self.blur]  # type: ignore[return-value]

        assert "returns a list, not a dict" in failures(Broken)["components"]

    def test_equal_ones_are_learnt_once(self) -> None:
        class Costly(Level):
            """."""

            times: ClassVar[list[float]] = []

            def fit(self, data: NormalData, ctx: Context) -> State:
                self.times.append(self.shift)
                return super().fit(data, ctx)

        class Three(Unlearnt):
            """."""

            one: Costly = hyper(Costly(), "a level", origin="ours")
            two: Costly = hyper(Costly(), "the same", origin="ours")
            other: Costly = hyper(Costly(shift=1.0), "another", origin="ours")

            def components(self) -> Mapping[str, Component]:
                return {"one": self.one, "two": self.two, "other": self.other}

            def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
                assert state["one.mean"] == state["two.mean"] == state["other.mean"] - 1
                return AnomalyMaps(images.floats())

        assert failures(Three) == {}
        assert Costly.times == [0.0, 1.0]

    def test_a_component_that_fails_is_told(self) -> None:
        class Failing(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                raise MethodError("too few slices")

        class Broken(Unlearnt):
            """."""

            level: Failing = hyper(Failing(), "a level", origin="ours")

            def components(self) -> Mapping[str, Component]:
                return {"level": self.level}

        assert "too few slices" in failures(Failing)["learns"]
        assert "too few slices" in failures(Broken)["learns"]


class TestLearning:
    def test_labels_are_denied(self) -> None:
        class Broken(Sound):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {"labels": data.labels}

        class BrokenComponent(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {"labels": data.labels}

        for cls in (Broken, BrokenComponent):
            found = failures(cls)
            assert "labels are never handed to an anomaly detector" in found["access"]
            assert "test_conformance_detectors.py" in found["access"]
            assert found["learns"] == found["access"]

    def test_a_state_that_is_no_dict(self) -> None:
        class Broken(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return [3]  # type: ignore[return-value]

        assert failures(Broken)["learns"] == "a state is a dict, not list"

    def test_a_state_that_does_not_survive(self) -> None:
        class Tuples(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {"pair": (1, 2)}

        class Objects(Sound):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {**super().fit(data, ctx), "self": self}

        assert "state entry 'pair' does not survive saving" in failures(Tuples)["state"]
        assert "a state holds arrays, tensors or JSON values" in failures(Objects)["state"]

    def test_an_entry_called_like_one_of_a_component(self) -> None:
        class Broken(Sound):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {**super().fit(data, ctx), "blur.weight": 1}

        assert failures(Broken)["learns"] == "state entry 'blur.weight' is called like one of a component"

    def test_a_component_that_draws_from_global_state(self) -> None:
        class Broken(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {**super().fit(data, ctx), "noise": torch.rand(3), "size": 3}

        results = {r.name: r for r in check_method(Broken) if not r.passed}
        assert results["deterministic"].detail == "two runs with one seed differ in state entry 'noise'"
        assert (results["random_state"].advisory, "torch" in results["random_state"].detail) == (True, True)

    def test_a_component_that_keeps_other_entries_each_time(self) -> None:
        class Broken(Level):
            """."""

            times: ClassVar[list[int]] = []

            def fit(self, data: NormalData, ctx: Context) -> State:
                self.times.append(1)
                return {f"mean_{len(self.times)}": 0.0}

        assert "differ in their entries: ['mean_1', 'mean_2']" in failures(Broken)["deterministic"]

    def test_writing_to_images_or_to_a_component(self) -> None:
        class Pixels(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                data.validation.pixels[0] = 0
                return super().fit(data, ctx)

        class Weights(Sound):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                data.components["blur"]["weight"] *= 2
                return super().fit(data, ctx)

        assert failures(Pixels)["inputs"] == "the method wrote to its inputs: validation.pixels"
        assert failures(Weights)["inputs"] == "the method wrote to its inputs: data.components['blur']"

    def test_bytes_are_not_all_that_pixels_may_be(self) -> None:
        class Bytes(Level):
            """."""

            def fit(self, data: NormalData, ctx: Context) -> State:
                return {"histogram": np.bincount(data.images.pixels.ravel())}

        assert set(failures(Bytes)) == {"float_pixels"}


class Spoilt(Sound):
    """Sound, but for what `spoil` does to its maps."""

    def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
        raise NotImplementedError

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        return self.spoil(super().detect(state, images, ctx), images, state)


class TestMaps:
    def test_negative_maps(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                return AnomalyMaps(found.maps - 1)

        found = failures(Broken)
        assert "maps must be 0 or more" in found["output"]
        assert found["independent"] == "not run: output failed"

    def test_bare_arrays(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                return found.maps  # type: ignore[return-value]

        assert "must return AnomalyMaps, not ndarray" in failures(Broken)["output"]

    def test_failing(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                raise MethodError("cannot")

        assert "MethodError: cannot (test_conformance_detectors.py:" in failures(Broken)["runs"]

    @pytest.mark.parametrize("what", ["maps", "reconstructions", "image scores"])
    def test_normalising_over_the_set(self, what: str) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                largest = found.maps.max()
                if what == "maps":
                    return AnomalyMaps(found.maps / largest, image_scores=np.ones(len(images)))
                if what == "reconstructions":
                    return AnomalyMaps(found.maps, found.reconstruction * largest / 2)
                return AnomalyMaps(found.maps, image_scores=found.maps.max((1, 2)) / largest)

        found = failures(Broken)
        assert set(found) == {"independent"}
        assert f"the {what} of a slice depend on other slices" in found["independent"]

    def test_normalising_over_the_scan(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                for scan in images.scans:
                    found.maps[scan.slices] /= max(float(found.maps[scan.slices][1:].max(initial=0)), 0.01)
                return found

        assert set(failures(Broken)) == {"independent"}

    def test_one_generator_for_all_slices(self) -> None:
        class Broken(Sound):
            """."""

            def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
                maps = super().detect(state, images, ctx).maps
                return AnomalyMaps(maps + ctx.rng.random(maps.shape) * 0.01)

        assert set(failures(Broken)) == {"independent"}

    def test_drawing_from_global_state(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                return AnomalyMaps(found.maps * np.random.rand())  # noqa: NPY002

        found = failures(Broken)
        assert "values of the maps" in found["deterministic"]
        assert "numpy.random" in found["random_state"]

    def test_keeping_something_outside_the_state(self) -> None:
        class Broken(Spoilt):
            """."""

            seen: ClassVar[list[int]] = []

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                self.seen.append(1)
                return AnomalyMaps(found.maps / len(self.seen))

        assert "two runs with one seed differ in" in failures(Broken)["deterministic"]

    def test_writing_to_images_or_state(self) -> None:
        class Pixels(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                images.pixels[:, 0] = 0
                images.pixels[0, 32] += 1
                return found

        class States(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                state["mean"] += 1
                state["blur.weight"] *= 2
                return found

        assert failures(Pixels)["inputs"] == "the method wrote to its inputs: test.pixels"
        assert failures(States)["inputs"] == "the method wrote to its inputs: state['mean'], state['blur.weight']"

    def test_reading_bytes_only(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                assert images.pixels.dtype == np.uint8
                return found

        assert set(failures(Broken)) == {"float_pixels"}

    def test_a_slice_without_brain(self) -> None:
        class Broken(Spoilt):
            """."""

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                each = [own[brain].max() for own, brain in zip(found.maps, images.mask, strict=True)]
                return AnomalyMaps(found.maps, image_scores=np.array(each))

        assert "zero-size array" in failures(Broken)["empty_slice"]
        assert set(failures(Broken)) == {"empty_slice"}

    def test_networks_that_are_not_counted(self) -> None:
        class Broken(Sound):
            """."""

            def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
                return AnomalyMaps(np.abs(images.floats() - state["mean"]))

        (result,) = [r for r in check_method(Broken) if not r.passed]
        assert (result.name, result.advisory) == ("counted", True)
        assert "marked with harness.cost.counted" in result.detail

    def test_settings_of_the_checks_are_used(self) -> None:
        class Defaults(Spoilt):
            """."""

            @classmethod
            def example(cls) -> Self:
                return cls(gain=0.5)

            def spoil(self, found: AnomalyMaps, images: ImageSet, state: State) -> AnomalyMaps:
                assert self.gain == 0.5
                return found

        assert failures(Defaults) == {}


@pytest.mark.parametrize(
    ("pictures", "problem"),
    [
        (None, "returns a NoneType, not a dict of pictures by caption"),
        ({"": np.zeros((2, 64, 64))}, "a picture's caption is ''"),
        ({"one": np.zeros((64, 64))}, "picture 'one' is float64 (64, 64), not numbers (2, 64, 64)"),
        ({"list": [0]}, "picture 'list' is list, not numbers"),
        ({"bright": np.full((2, 64, 64), 1.5)}, "picture 'bright' must be finite and lie in [0, 1]"),
        ({"lost": np.full((2, 64, 64), np.nan)}, "picture 'lost' must be finite and lie in [0, 1]"),
    ],
)
def test_pictures_that_cannot_be_shown(pictures: Any, problem: str) -> None:
    class Broken(Sound):
        """."""

        def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
            return pictures

    found = failures(Broken)
    assert set(found) == {"illustrate"}
    assert problem in found["illustrate"]
