"""One growing newborn in three dimensions, 29 to 45 weeks: how far the brain is, and what it is made of anywhere.

The means are those of `growth`. What brain age needs beside them: a brain is ahead of its age or behind it, in volumes,
folding and relaxation alike. No feature can tell that from age, so it bounds what any model can reach. And preterm
birth leaves its marks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.phantom.cohort import derive_seed
from harness.phantom.growth import OLDEST, SPREAD, YOUNGEST, Growth, folding, grow
from harness.phantom.newborn import Newborn, fit_odds, head_of, size_changes
from harness.phantom.newborn_cohort import TERM, NewbornScan
from harness.phantom.newborn_cortex import folded
from harness.phantom.physics import LABELS
from harness.phantom.warping import IDENTITY, push_fields, stream, warp

TEMPO = 0.4
"""SD in weeks by which a brain is ahead of its age (ours).

Fitted with the spreads and warps below: a Bayesian ridge on the 100 regional volumes and surfaces that go best with age
errs by 0.50 weeks with 200 simulated scans of 1 mm to learn from and 0.58 with 95; on the released scans' features by
0.47 with 334 and 0.56 with 60.
"""

LASTING = 0.8
"""Correlation of that between scans of one person (ours)."""

MIDLINE_SHARE = 0.003
"""Third and fourth ventricle, which `growth`'s table, of the lateral ventricles, leaves out (ours)."""

OWN_SPREAD: Mapping[str, float] = {**SPREAD, "cortical_GM": 0.0105}
"""SD of the tissues' shares between people whose brains are equally far. Cortex's is what tempo and the curve of its
growth leave of the measured residual SD around a straight line (fitted); the others' is that itself."""

SMOOTH_MM, GYRAL_MM = 0.6, 0.5
"""SD of the velocity of the smooth warp, and of the gyral one in a folded brain, mm of the template (ours).

With warps near an adult's (2.6 and 1.8) every region varies by a chance of its own, and few scans teach too little:
with 2.0 and 1.8, and a tempo of 0.3, 60 of 120 scans left 0.62 weeks where they leave 0.54 now, and 6 left 1.06 where
they leave 0.90; of the released scans, 60 leave 0.56 and 6 leave 0.70.
"""


def maturity(scan: NewbornScan) -> float:
    """Weeks the brain's growth corresponds to: the age at scan, and how far the person is ahead of it."""
    own = np.random.default_rng(derive_seed("tempo", scan.subject.seed)).standard_normal()
    now = np.random.default_rng(derive_seed("tempo", scan.subject.seed, scan.session)).standard_normal()
    ahead = TEMPO * float(np.clip(np.sqrt(LASTING) * own + np.sqrt(1 - LASTING) * now, -2.4, 2.4))
    return float(np.clip(scan.subject.age + ahead, YOUNGEST, OLDEST))


def growth_of(scan: NewbornScan) -> Growth:
    """Total volume, tissue shares and folding of a newborn; a person differs from the mean alike in all its scans.

    Preterm birth (ours, after what is known at term-equivalent age): of the earliest, 13 weeks before term, ventricles
    are 40 % larger at 41 weeks and deep grey matter and the whole 4 % smaller. Ventricles hold the third and fourth.
    """
    weeks = maturity(scan)
    mean = grow(weeks, scan.subject.sex, stream(scan.subject, "growth"), OWN_SPREAD)
    early = float(np.clip((TERM - scan.birth_age) / 13, 0, 1) * np.clip((weeks - TERM) / 4, 0, 1))
    own = dict(mean.shares)
    own["ventricles"] = own["ventricles"] * (1 + 0.4 * early) + MIDLINE_SHARE
    own["deep_GM"] *= 1 - 0.04 * early
    own["CSF"] = max(1 - sum(share for name, share in own.items() if name != "CSF"), 0.04)
    whole = sum(own.values())
    return Growth(
        mean.total_ml * (1 - 0.04 * early), {name: share / whole for name, share in own.items()}, float(folding(weeks))
    )


def brain(scan: NewbornScan) -> Newborn:
    """Everything of a scan's brain that does not depend on where it is cut.

    Depends on the infant's seed, sex and age at birth, the session and the age at scan; some two seconds.
    """
    subject, growth = scan.subject, growth_of(scan)
    source = folded(subject, maturity(scan), growth)
    pushes = push_fields()
    even = np.zeros((2, *pushes.cortex.shape), dtype=np.float32)  # folds are the source's: no noise on the odds
    deform = warp(subject, size_changes(subject), SMOOTH_MM, GYRAL_MM * growth.folding)
    draft = Newborn(growth, source, deform, even, pushes.origin, np.zeros(len(LABELS), np.float32), IDENTITY)
    odds, volume = fit_odds(draft)
    return Newborn(growth, source, deform, even, pushes.origin, odds, head_of(subject, growth.total_ml / volume))
