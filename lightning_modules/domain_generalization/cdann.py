"""CDANN: features from which an adversary who knows the class cannot tell the environment."""

from __future__ import annotations

from lightning_modules.domain_generalization.adversary import AdversarialMethod


class CDANN(AdversarialMethod):
    """As DANN, with D(z + embedding(y)) and examples weighted so that every class counts the same in R_D.

    Source: Li et al., "Deep Domain Generalization via Conditional Invariant Adversarial Networks", ECCV 2018;
    embedding, alternation and defaults of DomainBed.
    """

    conditional = True
