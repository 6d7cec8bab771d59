"""Lightning modules of ours that `train` and `tune` know by name, each with the data that it learns from by default.

Methods on environments have a catalog of their own, `domain_generalization/catalog.py`. What stands here is trained as a person's own
LightningModule is: by the import path of its class, on any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedModule:
    """One of them.

    Args:
        module: import path of the LightningModule.
        data: import path of its LightningDataModule.
    """

    module: str
    data: str


_CONTRASTIVE = "lightning_modules.causal.contrastive"
_DENSITY = "lightning_modules.density"
_GENERATIVE = "lightning_modules.generative"
_REP4EX = "lightning_modules.causal.rep4ex"

MODULES: dict[str, NamedModule] = {
    "ContrastiveCRL": NamedModule(
        f"{_CONTRASTIVE}.module:ContrastiveCRLModule", f"{_CONTRASTIVE}.data:InterventionalData"
    ),
    "ContrastiveEstimator": NamedModule(f"{_DENSITY}.estimator:ContrastiveEstimator", f"{_DENSITY}.data:GaussianPairs"),
    "MMRAutoencoder": NamedModule(f"{_REP4EX}.module:MMRAutoencoder", f"{_REP4EX}.data:ActionData"),
    "SelfReflectiveVAE": NamedModule(f"{_GENERATIVE}.module:SelfReflectiveVAE", f"{_GENERATIVE}.data:BinarisedImages"),
}
"""By name."""
