"""Certificates against flipped training labels: how many labels may change before a prediction can.

`certifier.py` holds ridge regression smoothed over label noise, `ridge.py` its sums, gathered in a stream, `chernoff.py`
the deterministic probability bound, `thresholds.py` the step from there to flips. `exact.py` is the plain ridge rule with
its exact certificate and worst attack, `partition.py` the vote of many ridge learners, `features.py` the maps that see no
label, `certificates.py` what comes out. Attacks on inputs or features do not live here: both are trusted.

With the same lam no smoothed certificate of ridge regression is above the exact one of the plain rule: smoothing is the
general tool (any learner, any noise), for ridge regression quote the exact number beside it.

Source: Rosenfeld, Winston, Ravikumar & Kolter, "Certified Robustness to Label-Flipping Attacks via Randomized Smoothing",
ICML 2020, arXiv 2002.03018.
"""

from lightning_modules.certification.label_flips.certificates import (
    FlipCertificates,
    certified_accuracy_curve,
    certify_alpha,
    median_flips,
)
from lightning_modules.certification.label_flips.certifier import LabelFlipCertifier
from lightning_modules.certification.label_flips.chernoff import chernoff_log_bound
from lightning_modules.certification.label_flips.exact import Attack, exact_flips, worst_case_flips
from lightning_modules.certification.label_flips.features import FeatureMap
from lightning_modules.certification.label_flips.partition import PartitionCertificates, PartitionEnsemble
from lightning_modules.certification.label_flips.ridge import RidgeFactor, RidgeSystem
from lightning_modules.certification.label_flips.thresholds import kl_flips, kl_per_flip, np_flips, np_threshold_table

__all__ = [
    "Attack",
    "FeatureMap",
    "FlipCertificates",
    "LabelFlipCertifier",
    "PartitionCertificates",
    "PartitionEnsemble",
    "RidgeFactor",
    "RidgeSystem",
    "certified_accuracy_curve",
    "certify_alpha",
    "chernoff_log_bound",
    "exact_flips",
    "kl_flips",
    "kl_per_flip",
    "median_flips",
    "np_flips",
    "np_threshold_table",
    "worst_case_flips",
]
