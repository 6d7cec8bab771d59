"""Adversaries: each round they pick the groups' weights, S games at once.

An oblivious adversary draws its weights from its own generator and never looks at the player; an adaptive one sees the
parameters of this round. Regret bounds for random players hold against the first kind only, so each says which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.online.extrapolation import Array

if TYPE_CHECKING:
    from lightning_modules.online.game import Game

Weights = Array | Sequence[Sequence[float]]


class Adversary:
    """Base of all adversaries."""

    adaptive: ClassVar[bool] = False
    _game: Game
    _generator: np.random.Generator
    _games: int
    _round: int

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Start S = `games` games; every random draw of the adversary is from `generator`."""
        self._game, self._games, self._generator, self._round = game, games, generator, 0

    def act(self, b: Array) -> Array:
        """Return the weights [S, E] of this round, in which the player plays b [S, d]."""
        raise NotImplementedError


@dataclass
class IIDVertices(Adversary):
    """Draws a point each round, independently and with equal probability. Oblivious.

    Args:
        points: [K, E]; by default the vertices of the game's set.
    """

    points: Weights | None = None

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Start."""
        super().reset(game, games, generator)
        self._points = game.extrapolation.vertices() if self.points is None else _rows("points", self.points, game)

    def act(self, b: Array) -> Array:
        """Draw."""
        return self._points[self._generator.integers(len(self._points), size=self._games)]


class HiddenBias(Adversary):
    """Draws a vertex each round with probabilities that each game draws once, uniformly from the simplex. Oblivious.

    With two groups: vertex 0 with probability p, p ~ U[0, 1].
    """

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Draw the bias of each game."""
        super().reset(game, games, generator)
        self._limits = generator.dirichlet(np.ones(game.groups.n_groups), games).cumsum(1)

    def act(self, b: Array) -> Array:
        """Draw."""
        picked = (self._limits < self._generator.random((self._games, 1))).sum(1)
        lam: Array = self._game.extrapolation.vertices()[picked.clip(max=self._game.groups.n_groups - 1)]
        return lam


@dataclass
class Alternating(Adversary):
    """Plays `first`, then goes round `points`. Oblivious.

    Args:
        points: [K, E].
        first: [E] of the first round; by default the round starts at once.
    """

    points: Weights
    first: Sequence[float] | None = None

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Start."""
        super().reset(game, games, generator)
        self._points = _rows("points", self.points, game)
        self._first = None if self.first is None else _rows("first", [self.first], game)[0]

    def act(self, b: Array) -> Array:
        """Take the next."""
        t, self._round = self._round, self._round + 1
        if self._first is None:
            lam = self._points[t % len(self._points)]
        else:
            lam = self._first if t == 0 else self._points[(t - 1) % len(self._points)]
        return np.tile(lam, (self._games, 1))


class GreedyWorstVertex(Adversary):
    """Plays the vertex that is worst for the parameters just played. Adaptive."""

    adaptive = True

    def act(self, b: Array) -> Array:
        """Maximise this round's loss."""
        return self._game.extrapolation.worst_case(self._game.groups.value(b))[1]


@dataclass
class Scripted(Adversary):
    """Plays a list, such as the deployments that really happened. Oblivious.

    Args:
        script: [T, E], the same for all games, or [S, T, E].
    """

    script: Array | Sequence[Sequence[float]]

    def reset(self, game: Game, games: int, generator: np.random.Generator) -> None:
        """Start."""
        super().reset(game, games, generator)
        script = np.asarray(self.script, dtype=np.float64)
        fits = script.ndim in (2, 3) and script.shape[-1] == game.groups.n_groups
        if not fits or (script.ndim == 3 and len(script) != games):
            raise InputError(
                f"script: shape {script.shape}; give [T, {game.groups.n_groups}] or [{games}, T, {game.groups.n_groups}]"
            )
        self._script = np.broadcast_to(script, (games, *script.shape[-2:]))

    def act(self, b: Array) -> Array:
        """Take the next."""
        if self._round >= self._script.shape[1]:
            raise InputError(
                f"script: has {self._script.shape[1]} rounds and the game goes on; play that many or add some"
            )
        self._round += 1
        return self._script[:, self._round - 1]


def _rows(name: str, points: Weights, game: Game) -> Array:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or not len(array) or array.shape[1] != game.groups.n_groups:
        raise InputError(f"{name}: shape {array.shape}; give weights of {game.groups.n_groups} groups a row")
    return array
