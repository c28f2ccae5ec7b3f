"""What any metric gives to no information at all."""

from __future__ import annotations

import numpy as np

from harness.anomaly import AnomalyDetector, AnomalyMaps
from harness.api import Context, ImageSet, State


class PrevalenceFloor(AnomalyDetector):
    """A map that is 1 everywhere in the brain, and the same score for every slice.

    Its average precision is the share of lesion pixels, its Dice that of the whole brain with the lesions, its AUROC ½.
    """

    id = "prevalence_floor"
    reference = "ours"

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        return AnomalyMaps(np.asarray(images.mask, np.float32), image_scores=np.ones(len(images)))
