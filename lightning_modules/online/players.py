"""Players: each round they pick parameters, then are told the weights that the adversary picked.

A player plays S games at once. `reset` starts them; then `act` and `observe` alternate. Since the loss of a round is
lam . R(b), the past is summed up by the E-vector of summed weights: a round costs the same however long the game.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.online.extrapolation import Array

if TYPE_CHECKING:
    from lightning_modules.online.game import Game


class Player:
    """Base of all players."""

    _game: Game
    _generator: np.random.Generator
    _summed_SE: Array
    _b_SD: Array
    _round: int

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Start S = `games` games; every random draw of the player is from `generator`."""
        first = game.groups.origin if game.domain is None else game.domain.project(game.groups.origin)
        self._game, self._generator, self._round = game, generator, 1
        self._summed_SE = np.zeros((games, game.groups.n_groups))
        self._b_SD = np.tile(first, (games, 1))

    def act(self) -> Array:
        """Return the parameters [S, d] of this round; the first move is the groups' origin (zero for quadratics)."""
        raise NotImplementedError

    def observe(self, lam: Array) -> None:
        """Take note of the weights [S, E] of this round."""
        self._summed_SE = self._summed_SE + lam
        self._round += 1


@dataclass
class FollowTheLeader(Player):
    """ERM on everything seen so far: b_t = argmin_b sum_{s<t} lam_s . R(b); b = 0 where that is constant.

    Args:
        prior: weight of each group before the first round. 1 is the rule of succession: with two squared distances and
            weights at the simplex's vertices, the Bayes player under a uniform bias.

    Source: arXiv 2102.13128 (abstract: ERM is minimax-optimal for interpolation).
    """

    prior: float = 0.0

    def act(self) -> Array:
        """Minimise the past."""
        if self._round > 1 or self.prior > 0:
            game = self._game
            self._b_SD = game.groups.minimise(self._summed_SE + self.prior, None, game.domain, self._b_SD)
        return self._b_SD


@dataclass
class FollowThePerturbedLeader(Player):
    """Noisy ERM: b_t = argmin_b [ sum_{s<t} lam_s . R(b) - sigma_t . b ], sigma_t fresh every round.

    Args:
        eta: each coordinate of sigma_t is exponential with mean 1/eta; of order 1/sqrt(T).
        symmetric: take the difference of two such draws, for a domain that is symmetric about zero.

    Raises:
        InputError: eta is not above 0.

    Source: arXiv 2102.13128 (abstract: ERM, possibly with structured noise); Kalai and Vempala, 2005; Suggala and
    Netrapalli, 2020, for non-convex losses.
    """

    eta: float
    symmetric: bool = True

    def __post_init__(self) -> None:
        _above_zero("eta", self.eta)

    def act(self) -> Array:
        """Minimise the past minus a random linear term."""
        game, shape = self._game, self._b_SD.shape
        noise = self._generator.exponential(1 / self.eta, shape)
        if self.symmetric:
            noise -= self._generator.exponential(1 / self.eta, shape)
        # with weights of zero only the noise counts, and on all of R^d its minimum lies at infinity
        if self._round > 1 or game.domain is not None:
            self._b_SD = game.groups.minimise(self._summed_SE, -noise, game.domain, self._b_SD)
        return self._b_SD


@dataclass
class OnlineGradientDescent(Player):
    """b_{t+1} = Proj_B(b_t - step_t grad f_t(b_t)), step_t = step / t^power.

    Args:
        step: 1/sigma with power 1 for sigma-strongly convex losses; of order diameter/gradient with power 1/2 for
            convex ones.
        power: how fast steps fall.

    Raises:
        InputError: step is not above 0, or power < 0.

    Source: Zinkevich, 2003; Hazan, Agarwal, Kale, 2007.
    """

    step: float
    power: float = 0.5

    def __post_init__(self) -> None:
        _above_zero("step", self.step)
        if not self.power >= 0:
            raise InputError(f"power: {self.power} is negative; 0.5 and 1 are usual")

    def act(self) -> Array:
        """Return where the last step led."""
        return self._b_SD

    def observe(self, lam: Array) -> None:
        """Take a step."""
        slope = np.einsum("se,sed->sd", lam, self._game.groups.grad(self._b_SD))
        b = self._b_SD - self.step / self._round**self.power * slope
        self._b_SD = b if self._game.domain is None else self._game.domain.project(b)
        super().observe(lam)


def hedge_weights(losses: Array, eta: float) -> Array:
    """Return weights [..., K] proportional to exp(-eta losses) of summed losses [..., K].

    With losses = -risks these are the adversary's or group DRO's exponentiated-gradient weights over groups.

    Source: Freund and Schapire, 1997.
    """
    weights = np.exp(-eta * (losses - losses.min(-1, keepdims=True)))
    shares: Array = weights / weights.sum(-1, keepdims=True)
    return shares


@dataclass
class Hedge(Player):
    """Plays one of K candidate parameters, drawn with probability proportional to exp(-eta its past loss).

    Needs no convexity; its expected regret against the best candidate is O(range of the loss * sqrt(T log K)).

    Args:
        candidates: [K, d].
        eta: of order sqrt(log K / T) over the range of the loss.

    Raises:
        InputError: eta is not above 0, or candidates outside the game's domain or of another dimension.
    """

    candidates: Array | Sequence[Sequence[float]]
    eta: float

    def __post_init__(self) -> None:
        _above_zero("eta", self.eta)

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Start; the candidates' risks are computed once."""
        super().reset(game, games, generator)
        b = np.asarray(self.candidates, dtype=np.float64)
        if b.ndim != 2 or not len(b) or b.shape[1] != game.groups.dimension:
            raise InputError(f"candidates: shape {b.shape}; give [K, {game.groups.dimension}]")
        if game.domain is not None and not np.allclose(game.domain.project(b), b):
            raise InputError("candidates: one lies outside the game's domain; project or drop it")
        self._candidates_KD = b
        self._risks_KE = game.groups.value(b)

    def act(self) -> Array:
        """Draw a candidate for each game."""
        weights_SK = hedge_weights(self._summed_SE @ self._risks_KE.T, self.eta)
        uniform_S1 = self._generator.random((len(weights_SK), 1))
        picked = (weights_SK.cumsum(1) < uniform_S1).sum(1).clip(max=len(self._candidates_KD) - 1)
        self._b_SD = self._candidates_KD[picked]
        return self._b_SD


def _above_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: {value} is not a number above 0")
