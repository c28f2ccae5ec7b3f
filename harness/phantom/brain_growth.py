"""One growing newborn in three dimensions, 29 to 45 weeks: how far the brain is, and what it is made of anywhere.

The means are those of `growth`. What brain age needs beside them: a brain is ahead of its age or behind it, in volumes,
folding and relaxation alike. No feature can tell that from age, so it bounds what any model can reach. And preterm
birth leaves its marks.
"""

from __future__ import annotations

import numpy as np

from harness.phantom.cohort import derive_seed
from harness.phantom.growth import OLDEST, YOUNGEST, Growth, folding, grow
from harness.phantom.newborn import Newborn, fit_odds, head_of, size_changes
from harness.phantom.newborn_cohort import TERM, NewbornScan
from harness.phantom.newborn_cortex import folded
from harness.phantom.physics import LABELS
from harness.phantom.warping import IDENTITY, push_fields, stream, warp

TEMPO = 0.3
"""SD in weeks by which a brain is ahead of its age (ours).

Fitted: a Bayesian ridge on the 100 regional volumes and surfaces that go best with age errs by 0.48 +- 0.37 weeks (277
scans of 1 mm to learn from, ten folds of people), 0.47 +- 0.38 on the released scans' features (334 to learn from).
"""

LASTING = 0.8
"""Correlation of that between scans of one person (ours)."""

MIDLINE_SHARE = 0.003
"""Third and fourth ventricle, which `growth`'s table, of the lateral ventricles, leaves out (ours)."""

SMOOTH_MM = 2.0
"""SD of the smooth warp's velocity, mm of the template: less than an adult's 2.6, newborns' heads being more alike in
shape (ours)."""


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
    mean = grow(weeks, scan.subject.sex, stream(scan.subject, "growth"))
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
    deform = warp(subject, size_changes(subject), SMOOTH_MM, 1.8 * growth.folding)
    draft = Newborn(growth, source, deform, even, pushes.origin, np.zeros(len(LABELS), np.float32), IDENTITY)
    odds, volume = fit_odds(draft)
    return Newborn(growth, source, deform, even, pushes.origin, odds, head_of(subject, growth.total_ml / volume))
