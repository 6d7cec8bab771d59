"""DANN: features from which an adversary cannot tell the environment."""

from __future__ import annotations

from lightning_modules.domain_generalization.adversary import AdversarialMethod


class DANN(AdversarialMethod):
    """min over f of mean_e R_e - lambda * R_D, where D minimises R_D, the cross-entropy of the environment from z.

    Steps of the discriminator and of the network alternate.

    Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", arXiv 1505.07818, eq. 9; alternation,
    gradient penalty and defaults of DomainBed.
    """
