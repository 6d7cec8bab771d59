"""The game of deployments: the player picks parameters, the adversary a reweighting of the groups, T times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.online.adversaries import Adversary, GreedyWorstVertex
from lightning_modules.online.extrapolation import Array, ExtrapolationSet, OneShot, mm_rex, pooled_erm
from lightning_modules.online.groups import Domain, Groups, QuadraticGroups
from lightning_modules.online.players import FollowTheLeader, Player

if TYPE_CHECKING:
    import pyarrow as pa

    from lightning_modules.data.environments import Dataset

_BLOCK = 1 << 23


@dataclass(frozen=True)
class Game:
    """What both sides know.

    Args:
        groups: the risks R_1..R_E.
        extrapolation: the weights that the adversary may play.
        domain: where b may lie; None for all of R^d.

    Raises:
        InputError: the two have different numbers of groups.
    """

    groups: Groups
    extrapolation: ExtrapolationSet
    domain: Domain | None = None

    def __post_init__(self) -> None:
        if self.groups.n_groups != self.extrapolation.n_groups:
            raise InputError(
                f"game: the risks have {self.groups.n_groups} groups, the set of weights {self.extrapolation.n_groups}; "
                "make them equal"
            )


@dataclass(frozen=True)
class GameRecord:
    """What happened in S games of T rounds.

    Args:
        losses: [S, T] lam_t . R(b_t).
        weights: [S, T, E] lam_t.
        actions: [S, T, d] b_t.
        regret: [S, T] summed losses so far minus those of the best fixed b for the same weights.
    """

    losses: Array
    weights: Array
    actions: Array
    regret: Array

    def to_arrow(self) -> pa.Table:
        """Return one row a game and round: game, round (from 1), loss, regret, weights [E], action [d]."""
        import pyarrow as pa

        games, rounds = self.losses.shape

        def lists(array: Array) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[-1])

        return pa.table(
            {
                "game": pa.array(np.repeat(np.arange(games), rounds)),
                "round": pa.array(np.tile(np.arange(1, rounds + 1), games)),
                "loss": pa.array(self.losses.reshape(-1)),
                "regret": pa.array(self.regret.reshape(-1)),
                "weights": lists(self.weights),
                "action": lists(self.actions),
            }
        )


def play(game: Game, player: Player, adversary: Adversary, rounds: int, seed: int, games: int = 1) -> GameRecord:
    """Play `games` independent games side by side.

    Player and adversary draw from streams of their own, so an oblivious adversary plays the same weights against every
    player of the same seed.

    Args:
        game: risks, weights, domain.
        player: picks b_t [S, d].
        adversary: picks lam_t [S, E], after the player.
        rounds: T, at least 1.
        seed: of both streams, 0 or more.
        games: S, at least 1.

    Raises:
        InputError: rounds or games < 1, or weights outside the set.
    """
    for name, number, least in (("rounds", rounds, 1), ("games", games, 1), ("seed", seed, 0)):
        if number < least:
            raise InputError(f"{name}: {number} is too few; give {least} or more")
    for_player, for_adversary = np.random.SeedSequence(seed).spawn(2)
    player.reset(game, games, np.random.default_rng(for_player))
    adversary.reset(game, games, np.random.default_rng(for_adversary))
    weights = np.empty((games, rounds, game.groups.n_groups))
    actions = np.empty((games, rounds, game.groups.dimension))
    losses = np.empty((games, rounds))
    for t in range(rounds):
        b = player.act()
        lam = adversary.act(b)
        inside = game.extrapolation.contains(lam)
        if not inside.all():
            raise InputError(
                f"weights: {lam[inside.argmin()].tolist()} of {type(adversary).__name__} in round {t + 1} do not sum to 1 "
                f"with each at least {-game.extrapolation.alpha:g}; project them onto the set, or raise alpha"
            )
        actions[:, t], weights[:, t] = b, lam
        losses[:, t] = np.einsum("se,se->s", lam, game.groups.value(b))
        player.observe(lam)
    _, best = best_in_hindsight(game, weights, actions)
    return GameRecord(losses, weights, actions, losses.cumsum(1) - best)


def best_in_hindsight(game: Game, weights: Array, start: Array | None = None) -> tuple[Array, Array]:
    """Find the best fixed parameters for the first t of the played weights, for every t.

    Args:
        game: risks and domain.
        weights: [S, T, E].
        start: [S, T, d] where risks that need a start (`ModelGroups`) begin the search; for those the result is the
            better of it and what is found from there.

    Returns:
        The parameters after the last round [S, d], and the summed loss of the best of each t [S, T].

    Raises:
        InputError: the summed loss has no minimum.
    """
    games, rounds, n = weights.shape
    summed = weights.cumsum(1).reshape(-1, n)
    starts = None if start is None else start.reshape(len(summed), -1)
    values = np.empty(len(summed))
    size = max(1, _BLOCK // (game.groups.dimension * n))
    for low in range(0, len(summed), size):
        part = slice(low, low + size)
        b = game.groups.minimise(summed[part], None, game.domain, None if starts is None else starts[part])
        values[part] = np.einsum("se,se->s", summed[part], game.groups.value(b))
        if starts is not None and not isinstance(game.groups, QuadraticGroups):
            at_start = np.einsum("se,se->s", summed[part], game.groups.value(starts[part]))
            values[part] = np.minimum(values[part], at_start)
    last = game.groups.minimise(
        summed[rounds - 1 :: rounds], None, game.domain, None if start is None else start[:, -1]
    )
    return last, values.reshape(games, rounds)


def interpolation_game() -> Game:
    """Build the 1-d game of interpolation: B = [-1, 1], R(b) = (b - 1)^2 / 2 and (b + 1)^2 / 2, alpha = 0.

    The adversary's vertices are centres +-1 and FTL plays the mean of the past ones. Its expected regret is
    (1 + H_{T-1}) / 2 against a fair coin and H_{T-1} / 3 + 1/2 against a bias drawn from U[0, 1], where no player has
    less than H_{T+1} / 3 (H the harmonic number). Derived here.
    """
    groups = QuadraticGroups(np.ones((2, 1, 1)), np.array([[-1.0], [1.0]]), np.full(2, 0.5))
    return Game(groups, ExtrapolationSet(2, 0.0), Domain("box", 1.0))


def extrapolation_game() -> Game:
    """Build the 1-d game of extrapolation: B = [-1, 1], R(b) = b^2/2 + b, b^2/2 - b and b^2, alpha = 1.

    `linear_weights` turn these strongly convex risks into a linear loss. Derived here.
    """
    A, c = np.array([1.0, 1.0, 2.0])[:, None, None], np.array([[1.0], [-1.0], [0.0]])
    return Game(QuadraticGroups(A, c, np.zeros(3)), ExtrapolationSet(3, 1.0), Domain("box", 1.0))


def linear_weights(slope: float) -> list[float]:
    """Return the weights under which the loss of `extrapolation_game` is slope * b; |slope| up to 4 lies in its set."""
    return [1 + slope / 2, 1 - slope / 2, -1.0]


@dataclass(frozen=True)
class GroupGame:
    """Follow the leader against the greedy adversary on real groups, beside the one-shot baselines.

    Args:
        record: the game.
        groups: the risks.
        game: risks, weights and domain.
        pooled: [d] ERM on all examples.
        balanced: [d] ERM on the mean of the groups' risks.
        minimax: MM-REx, which is group DRO for alpha = 0.
        smallest_curvature: smallest Hessian eigenvalue over the set's vertices; below 0 nothing here is convex.
    """

    record: GameRecord
    groups: QuadraticGroups
    game: Game
    pooled: Array
    balanced: Array
    minimax: OneShot
    smallest_curvature: float

    def summary(self) -> dict[str, float]:
        """Return the last regret, and the worst case and worst group risk of each solution."""
        last = self.record.actions[0, -1]
        solutions = {"final": last, "pooled_erm": self.pooled, "balanced_erm": self.balanced, "minimax": self.minimax.b}
        risks = self.groups.value(np.stack(list(solutions.values())))
        worst = self.game.extrapolation.worst_case(risks)[0]
        return {
            "regret": float(self.record.regret[0, -1]),
            **{f"worst_case_{name}": float(value) for name, value in zip(solutions, worst, strict=True)},
            **{f"worst_group_{name}": float(value) for name, value in zip(solutions, risks.max(1), strict=True)},
            "minimax_gap": self.minimax.gap,
            "smallest_curvature": self.smallest_curvature,
        }


def group_game(
    dataset: Dataset | QuadraticGroups, alpha: float, rounds: int, ridge: float = 0.05, radius: float | None = None
) -> GroupGame:
    """Play follow the leader (ERM on all past deployments) against the greedy adversary on a dataset's environments.

    The risks are ridge least squares on standardised features with an intercept, labels +-1 (two classes) or one-hot.

    Args:
        dataset: environments are the groups; or risks already built, e.g. for a real-valued target.
        alpha: how far weights may fall below zero; 0 plays group DRO.
        rounds: T.
        ridge: added to every risk as ridge |b|^2 / 2.
        radius: b stays within |b| <= radius; needed where alpha makes a mixture indefinite.

    Raises:
        InputError: a setting out of range; a mixture without a minimum.

    Example:
        >>> from lightning_modules.data.catalog import load_dataset
        >>> round(group_game(load_dataset("ColoredMNIST"), alpha=0.0, rounds=3).summary()["regret"], 1) > 0
        True
    """
    groups = dataset if isinstance(dataset, QuadraticGroups) else QuadraticGroups.from_dataset(dataset, ridge)
    extrapolation = ExtrapolationSet(groups.n_groups, alpha)
    domain = None if radius is None else Domain("ball", radius)
    game = Game(groups, extrapolation, domain)
    curvature = groups.smallest_curvature(extrapolation.vertices())
    record = play(game, FollowTheLeader(), GreedyWorstVertex(), rounds, seed=0)
    pooled, balanced = (pooled_erm(groups, domain, balanced=choice) for choice in (False, True))
    return GroupGame(record, groups, game, pooled, balanced, mm_rex(groups, alpha, domain), curvature)
