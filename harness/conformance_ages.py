"""The conformance checks of estimators of brain age and of segmenters of volumes; `harness.conformance` calls them.

An estimator predicts the ages of a few heads, a segmenter labels them; both have learnt from others, see
`harness._conformance_fitted`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from harness._conformance_fitted import FittedTrial
from harness._conformance_steps import Step
from harness._conformance_volumes import NAMES, Heads, VolumeMaterial, make_volume_material
from harness.api import Method, Settings, State
from harness.brain_age import (
    AgeEstimator,
    AgeInputs,
    AgePredictions,
    AgeTraining,
    SegmentationTraining,
    VolumeSegmenter,
    VolumeSet,
)
from harness.contract_ages import check_ages, check_label_maps
from harness.tracks.brain_age.importance import permutation_importance
from harness.tracks.brain_age.inputs import of_family

TOLERANCE = 1e-5  # of the largest age: what another order of sums in a larger batch may change
UNLIKE = 1e-3  # of the brain's voxels: where two labels are as likely, such sums may decide
READABLE = ("volumes", "features", "nothing")
FEW = ((3, 1), (0,))  # scans of the test split that are asked about apart from the others


class AgeTrial(FittedTrial):
    """An estimator on the synthetic material."""

    def steps(self) -> list[Step]:
        reads_features: list[Step] = [
            ("chosen", self.names_what_it_chose, ("state",)),
            ("alone", self.measures_importance, ("state",)),
        ]
        return [
            ("late_fields", self.names_late_fields, ()),
            ("deviations", self.tells_deviations, ()),
            ("reads", self.declares_what_it_reads, ()),
            ("learns", self.learns, ("reads",)),
            ("state", self.keeps_state, ("learns",)),
            ("runs", self.runs, ("state",)),
            ("output", self.gives_valid_output, ("runs",)),
            ("sds", self.gives_sensible_sds, ("output",)),
            *(reads_features if getattr(self.cls, "reads", None) == "features" else []),
            ("inputs", self.leaves_inputs, ("runs",)),
            ("deterministic", self.repeats, ("output", "inputs")),
            ("random_state", self.leaves_random_state, ("runs",)),
            ("late_unread", self.fits_without_late_fields, ("late_fields", "deterministic")),
            ("independent", self.predicts_alone, ("output",)),
        ]

    def tells_deviations(self) -> str:
        for method in (self.cls(), self.estimator()):
            assert isinstance(method, AgeEstimator)
            found: Any = method.deviations()
            if not _are_words(found):
                return f"deviations() must return a tuple of phrases, not {found!r}"
        return ""

    def declares_what_it_reads(self) -> str:
        """Volumes, features of families with names, or nothing; the segmenter is a field, so that it counts."""
        for method in (self.cls(), self.estimator()):
            assert isinstance(method, AgeEstimator)
            wanted: Any = method.wanted()
            if method.reads not in READABLE:
                return f"reads is {method.reads!r}; one of {', '.join(READABLE)} is needed"
            if not _are_words(wanted) or len(set(wanted)) < len(wanted):
                return f"wanted() must return a tuple of families, each once, not {wanted!r}"
            if bool(wanted) != (method.reads == "features"):
                what = "names features" if wanted else "names none"
                return f'reads is "{method.reads}", but wanted() {what}; set the one or mend the other'
            segmenter: Any = method.segmenter()
            if segmenter is None:
                continue
            if not isinstance(segmenter, VolumeSegmenter):
                return f"segmenter() returns a {type(segmenter).__name__}, no VolumeSegmenter"
            if segmenter not in list(_segmenters_in(method)):
                return f"the segmenter is no field of {self.cls.__name__}; declare it as one with hyper()"
        self.material = self.fresh()
        return ""

    def gives_valid_output(self) -> str:
        check_ages(self.output, len(self.material.test.scans))
        return ""

    def gives_sensible_sds(self) -> str:
        found = self.checked(self.output)
        if found.sds is None:
            return ""
        if not found.sds.any():
            return "sds are 0 for every scan, which says that no age can be wrong; return None where there are none"
        return "sds are the ages" if np.array_equal(found.sds, found.ages) else ""

    def names_what_it_chose(self) -> str:
        found: Any = self.estimator().chosen(self.state)
        if found is None:
            return ""
        if not _are_words(found):
            return f"chosen() must return names of columns or None, not {found!r}"
        known = {column.name for column in self.material.train.table.columns}
        unknown = [name for name in found if name not in known]
        return f"chosen() names what is no column: {', '.join(unknown)}" if unknown else ""

    def measures_importance(self) -> str:
        """Estimators of one family are fitted on it, and its columns permuted, as the stage of importances does."""
        method, test = self.estimator(), self.material.test
        for number, family in enumerate(method.wanted()):
            alone: Any = method.alone(family)
            if alone is None:
                continue
            if not isinstance(alone, AgeEstimator) or alone.reads != "features":
                return f"alone({family!r}) must return an estimator that reads features, or None"
            ctx, table = self.context(f"alone-{number}"), test.table.only((family,))
            state = alone.fit(of_family(_training(self.material, method.reads), family), ctx)
            check_ages(alone.predict(state, AgeInputs(granted_features=table), ctx), len(table))
            found = permutation_importance(alone, state, table, test.ages, ctx, repeats=2)
            if not np.isfinite(found.means).all():
                return f"ages by alone({family!r}) are not finite once a column is permuted"
        return ""

    def predicts_alone(self) -> str:
        """The age of a scan is the same whoever else is asked about, and in whatever order."""
        among = self.checked(self.output)
        for number, places in enumerate(FEW):
            found: Any = self.use(self.state, self.material.test, f"alone-{number}", places)
            apart = check_ages(found, len(places))
            if (apart.sds is None) != (among.sds is None):
                return "sds are returned for some sets of scans only"
            for what, all_of_them, few in (("age", among.ages, apart.ages), ("sd", among.sds, apart.sds)):
                if all_of_them is None or few is None:
                    continue
                off = float(np.abs(all_of_them[list(places)] - few).max())
                if off > TOLERANCE * float(np.abs(among.ages).max()):
                    return f"the {what} of a scan depends on other scans, or on their order: by {off:.3g}"
        return ""

    # How a run would call the method.

    def estimator(self) -> AgeEstimator:
        method = self.built()
        assert isinstance(method, AgeEstimator)
        return method

    def fresh(self) -> VolumeMaterial:
        return make_volume_material(self.estimator().wanted())

    def learn(self, method: Method, material: VolumeMaterial, name: str) -> Any:
        assert isinstance(method, AgeEstimator)
        return method.fit(_training(material, method.reads), self.context(f"{name}-learn"))

    def use(self, state: State, heads: Heads, name: str, places: Sequence[int] | None = None) -> Any:
        method = self.estimator()
        return method.predict(state, heads.inputs(method.reads, places), self.context(f"{name}-use"))

    def checked(self, found: Any) -> AgePredictions:
        """Predictions for all scans of the test split."""
        return check_ages(found, len(self.material.test.scans))

    def unlike(self, other: Any) -> str:
        one, two = self.checked(self.output), self.checked(other)
        same = np.array_equal(one.ages, two.ages) and (one.sds is None) == (two.sds is None)
        if same and one.sds is not None and two.sds is not None:
            same = np.array_equal(one.sds, two.sds)
        return "" if same else "two runs with one seed differ in their predictions"


class SegmenterTrial(FittedTrial):
    """A segmenter on the synthetic material."""

    def steps(self) -> list[Step]:
        return [
            ("late_fields", self.names_late_fields, ()),
            ("learns", self.learns, ()),
            ("state", self.keeps_state, ("learns",)),
            ("runs", self.runs, ("state",)),
            ("output", self.gives_valid_output, ("runs",)),
            ("background", self.leaves_background, ("output",)),
            ("inputs", self.leaves_inputs, ("runs",)),
            ("deterministic", self.repeats, ("output", "inputs")),
            ("random_state", self.leaves_random_state, ("runs",)),
            ("late_unread", self.fits_without_late_fields, ("late_fields", "deterministic")),
            ("independent", self.segments_alone, ("output",)),
        ]

    def gives_valid_output(self) -> str:
        self.checked(self.output)
        return ""

    def leaves_background(self) -> str:
        for scan, volume, labels in zip(self.heads.scans, self.heads.images, self.output, strict=True):
            if count := int(np.count_nonzero(np.asarray(labels)[~volume.mask])):
                return f"{count} voxels of {scan.id} have a label outside the brain mask; they must be 0"
        return ""

    def segments_alone(self) -> str:
        """A volume's label map is the same whatever other volumes there are, and in whatever order."""
        among = self.checked(self.output)
        for number, places in enumerate(FEW):
            few = self.checked(self.use(self.state, self.heads, f"alone-{number}", places), places)
            for place, labels in zip(places, few, strict=True):
                share = float((among[place] != labels)[self.heads.images[place].mask].mean())
                if share > UNLIKE:
                    return f"{share:.1%} of a scan's labels depend on other scans, or on their order"
        return ""

    # How a run would call the method.

    @property
    def heads(self) -> Heads:
        return self.material.test

    def learn(self, method: Method, material: VolumeMaterial, name: str) -> Any:
        assert isinstance(method, VolumeSegmenter)
        train, validation = material.train, material.validation
        data = SegmentationTraining(train.volumes, train.regions, validation.volumes, validation.regions)
        return method.fit(data, self.context(f"{name}-learn"))

    def use(self, state: State, heads: Heads, name: str, places: Sequence[int] | None = None) -> Any:
        method = self.built()
        assert isinstance(method, VolumeSegmenter)
        volumes = _some(heads, places)
        maps = islice(method.segment(state, volumes, self.context(f"{name}-use")), len(volumes) + 1)
        # Copies: a run writes each map before it asks for the next, which may lie in the same memory.
        return [labels.copy() if isinstance(labels, np.ndarray) else labels for labels in maps]

    def checked(self, found: Any, places: Sequence[int] | None = None) -> list[np.ndarray]:
        """The maps as a run keeps them."""
        volumes = _some(self.heads, places)
        return [labels for _, labels in check_label_maps(found, volumes, len(NAMES), str(self.cls.id))]

    def unlike(self, other: Any) -> str:
        for scan, one, two in zip(self.heads.scans, self.checked(self.output), self.checked(other), strict=True):
            if count := int((one != two).sum()):
                return f"two runs with one seed differ in {count} of {one.size} voxels of {scan.id}"
        return ""


def _training(material: VolumeMaterial, reads: str) -> AgeTraining:
    """What an estimator learns from."""
    train, validation = material.train, material.validation
    return AgeTraining(train.inputs(reads), train.ages, validation.inputs(reads), validation.ages)


def _some(heads: Heads, places: Sequence[int] | None) -> VolumeSet:
    return heads.volumes if places is None else heads.volumes.take(places)


def _are_words(found: Any) -> bool:
    """Whether this is a list of strings that say something; it may be empty."""
    plain = isinstance(found, Sequence) and not isinstance(found, str)
    return plain and all(isinstance(each, str) and each.strip() for each in found)


def _segmenters_in(settings: Settings) -> Iterator[VolumeSegmenter]:
    """Segmenters that are fields, those of nested groups included."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, VolumeSegmenter):
            yield value
        elif isinstance(value, Settings):
            yield from _segmenters_in(value)
