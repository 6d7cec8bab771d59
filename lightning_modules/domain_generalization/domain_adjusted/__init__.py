"""Domain-adjusted regression (DARE): whiten each domain by its own statistics, then fit one linear predictor.

Here live what works on frozen features: domain statistics, DARE itself, the heads it is compared with, the store of
features and the experiment that retrains a last layer with target labels. Training of networks by a `Method` does not.

Source: Rosenfeld, Ravikumar & Risteski, "Domain-Adjusted Regression or: ERM May Already Learn Features Sufficient for
Out-of-Distribution Generalization", arXiv 2202.06856.
"""

from lightning_modules.domain_generalization.domain_adjusted.cheating import CheatingExperiment
from lightning_modules.domain_generalization.domain_adjusted.features import FeatureStore
from lightning_modules.domain_generalization.domain_adjusted.heads import (
    CoralHead,
    GroupDROHead,
    IRMHead,
    LogisticHead,
    OracleHead,
    PerDomainStandardised,
    VRExHead,
)
from lightning_modules.domain_generalization.domain_adjusted.regression import AdaptedDARE, DomainAdjustedRegression
from lightning_modules.domain_generalization.domain_adjusted.stats import DomainStats

__all__ = [
    "AdaptedDARE",
    "CheatingExperiment",
    "CoralHead",
    "DomainAdjustedRegression",
    "DomainStats",
    "FeatureStore",
    "GroupDROHead",
    "IRMHead",
    "LogisticHead",
    "OracleHead",
    "PerDomainStandardised",
    "VRExHead",
]
