"""Which slices of a site and split are used: all, those without a lesion, those with one, or each scan's largest.

Labels choose while the data is prepared; the image set that is left carries none. Nothing here reads a file of the data
set: a choice is made from the image set and the label set of all slices, so it is the same for every kind of card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from harness.api import ImageSet, LabelSet, Scan
from harness.data import arrays
from harness.data.schema import Choice
from harness.data.stack import Stack
from harness.engine.worker import StageRun

NO_LESION = ("background", "lesion")
"""Names of an all-zero label set where the card has no label table."""


def chosen(choice: Choice, lesion: npt.NDArray[np.integer], brain: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    """Which of a scan's slices are chosen, by their place in the scan, rising.

    lesion and brain: pixels of either in each slice, [n]. `healthy`: brain and no lesion pixel; `lesions`: at least one
    lesion pixel; `largest`: the first slice with the most of them, none where there is no lesion.
    """
    if choice == "all":
        return np.arange(len(lesion))
    if choice == "healthy":
        return np.flatnonzero((lesion == 0) & (brain > 0))
    if choice == "lesions":
        return np.flatnonzero(lesion > 0)
    return np.array([lesion.argmax()] if lesion.any() else [], dtype=np.intp)


def choose_images(run: StageRun) -> None:
    """Stage function: the chosen slices of an image set; leaves an image set without scans that have none."""
    images, labels = _sets(run)
    kind = images.pixels.dtype.type
    with Stack(run.scratch / "pixels.raw", kind) as pixels, Stack(run.scratch / "mask.raw", np.bool_) as masks:
        scans = []
        for scan, places in _chosen(run, images, labels):
            scans.append(replace(scan, start=len(masks), stop=len(masks) + len(places)))
            pixels.append(images.pixels[places])
            masks.append(images.mask[places])
        arrays.save_images(run.out, ImageSet(pixels.array(), masks.array(), tuple(scans)))


def choose_labels(run: StageRun) -> None:
    """Stage function: the labels of the slices that `choose_images` leaves; leaves a label set."""
    images, labels = _sets(run)
    with Stack(run.scratch / "labels.raw", np.uint8) as out:
        scans = []
        for scan, places in _chosen(run, images, labels):
            scans.append(replace(scan, start=len(out), stop=len(out) + len(places)))
            out.append(labels.labels[places])
        arrays.save_labels(run.out, LabelSet(out.array(), labels.names, tuple(scans)))


def no_lesions(run: StageRun) -> None:
    """Stage function: all-zero labels of an image set of healthy people; leaves a label set."""
    images = arrays.load_images(run.inputs["images"])
    with Stack(run.scratch / "labels.raw", np.uint8) as out:
        for scan in images.scans:
            out.append(np.zeros((scan.stop - scan.start, *images.mask.shape[1:]), np.uint8))
        arrays.save_labels(run.out, LabelSet(out.array(), tuple(run.params["names"]), images.scans))


def _sets(run: StageRun) -> tuple[ImageSet, LabelSet]:
    """The image set and the label set of all slices. Raises ValueError where they are not of the same slices."""
    images, labels = arrays.load_images(run.inputs["images"]), arrays.load_labels(run.inputs["labels"])
    places = [[(scan.id, scan.start, scan.stop) for scan in scans] for scans in (images.scans, labels.scans)]
    if places[0] != places[1] or images.mask.shape != labels.labels.shape:
        raise ValueError("images and labels are not of the same slices: no slice can be chosen by its label")
    return images, labels


def _chosen(run: StageRun, images: ImageSet, labels: LabelSet) -> Iterator[tuple[Scan, npt.NDArray[np.intp]]]:
    """Scans of which something is chosen, and their chosen slices by place in the set; a scan is read at a time.

    Raises ValueError where nothing is left of any scan.
    """
    nothing = True
    for scan in images.scans:
        brain = np.count_nonzero(images.mask[scan.slices], axis=(1, 2))
        lesion = np.count_nonzero(labels.labels[scan.slices], axis=(1, 2))
        places = scan.start + chosen(run.params["choice"], lesion, brain)
        if len(places):
            nothing = False
            yield scan, places
    if nothing:
        where = f"{run.params['site']} {run.params['split']}, {len(images.scans)} scans"
        raise ValueError(f"{where}: {nothing_left(run.params['choice'])}")


def nothing_left(choice: Choice) -> str:
    """What is lacking where a choice leaves nothing."""
    return f"there is no slice {'without' if choice == 'healthy' else 'with'} a lesion"
