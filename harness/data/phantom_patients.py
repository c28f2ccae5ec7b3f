"""The phantom with lesions as a data set: cohorts of patients, imaged at several contrasts, and its stage functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from harness.data.phantom_data import PERCENTILE, Person, PhantomDataset, geometry_of, save_images, save_labels
from harness.data.schema import Part, PhantomSite
from harness.engine.plan import Stage
from harness.engine.worker import StageRun
from harness.problems import UserError, did_you_mean

if TYPE_CHECKING:
    from harness.phantom.cohort import Subject
    from harness.phantom.geometry import AnatomySlices
    from harness.phantom.scanners import Contrast
    from harness.phantom.sites import Site


class PatientDataset(PhantomDataset):
    """Simulated patients, and healthy people where a site's disease is none.

    Sites of one cohort image the same people. Labels are lesions; a site without disease has none.
    """

    def _check(self) -> None:
        """Raises UserError for scanners the phantom does not have, or a label table that is not its own."""
        from harness.phantom.lesions import LESIONS
        from harness.phantom.scanners import SCANNERS

        problems = []
        for name in self.sites:
            contrast, asked = self._contrast(name), self._asked(name).scanner
            known = [place.name for place in SCANNERS[contrast]]
            if asked is not None and asked not in known:
                hint = did_you_mean(asked, known) or f"; known: {', '.join(known)}"
                what = f"the phantom has no {contrast} scanner {asked!r}{hint}"
                problems.append(self.card.problem(("sites", name, "scanner"), what))
        if self.label_names != LESIONS:
            what = f"labels of the phantom's patients are its own {len(LESIONS)}, in their order; write labels: lesions"
            problems.append(self.card.problem(("labels",), what))
        if problems:
            raise UserError(problems)

    # ------------------------------------------------------------------------------------- what there is

    def labelled(self, site: str) -> bool:
        return not self.healthy(site)

    def healthy(self, site: str) -> bool:
        return self._asked(site).disease == "none"

    def _asked(self, site: str) -> PhantomSite:
        return self.card.sites[site] or PhantomSite()

    def _contrast(self, site: str) -> Contrast:
        return cast("Contrast", self.modality(site))

    def _place(self, site: str) -> Site:
        from harness.phantom.scanners import DEFAULT, scanner

        return scanner(self._asked(site).scanner or DEFAULT, self._contrast(site))

    def _simulated(self, site: str) -> tuple[Person, ...]:
        from harness.phantom.cohort import cohort
        from harness.phantom.lesions import AGES

        asked = self._asked(site)
        ages, normal = AGES[asked.disease]
        drawn = replace(self._place(site), name=asked.cohort or site, age_range=ages, age_normal=normal)
        people = cohort(drawn, self.count(site), self.card.seed)
        return tuple(Person(p.id, p.id, p.seed, p.age, p.sex) for p in people)

    # -------------------------------------------------------------------------------------------- stages

    def _images(self, site: str, split: Part, at: str) -> Stage:
        more = {"rendered_at": at, "scanner": self._place(at).name, "contrast": self._contrast(at)}
        return self._patients("images", site, split, more)

    def _labels(self, site: str, split: Part) -> Stage:
        more = {"names": list(self.label_names), "contrast": self._contrast(site)}
        return self._patients("labels", site, split, more)

    def _patients(self, kind: str, site: str, split: Part, more: Mapping[str, Any]) -> Stage:
        stage = self._stage(kind, site, split, {**more, "disease": self._asked(site).disease})
        return replace(stage, fn=f"harness.data.phantom_patients:patient_{kind}")


# ----------------------------------------------------------------------------------------- stage functions


def patient_images(run: StageRun) -> None:
    """Image patients with a scanner; leaves an image set of 8-bit slices."""
    from harness.phantom.lesions import patient_tissues
    from harness.phantom.render import render
    from harness.phantom.scanners import scanner

    params = run.params
    at = scanner(params["scanner"], params["contrast"])
    gadolinium, top = params["contrast"] == "T1CE", params.get("percentile", PERCENTILE)
    images = (
        (who, brain, render(brain, at, person.seed, patient_tissues(person, params["disease"], at, gadolinium), top))
        for who, person, brain in _patients(run)
    )
    save_images(run, images)


def patient_labels(run: StageRun) -> None:
    """Patients' lesions; leaves a label set on the slices of their images."""
    save_labels(run, ((who, brain) for who, _, brain in _patients(run)))


def _patients(run: StageRun) -> Iterator[tuple[Mapping[str, Any], Subject, AnatomySlices]]:
    """Who they are and their brains, one at a time."""
    from harness.phantom.cohort import Subject
    from harness.phantom.lesions import render_patient

    geometry = geometry_of(run, "adult")
    for who in run.params["subjects"]:
        person = Subject(who["id"], who["seed"], who["age"], who["sex"])
        yield who, person, render_patient(person, run.params["disease"], geometry)
