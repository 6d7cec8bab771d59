"""A schema under attack as a Lightning module: a training step leaks a pair, validation asks fresh challenges.

No network is trained. A step is one more leaked pair for every key, so that studies can search for schemas that last longest at a
given human cost:

    shiftlab tune --method lightning_modules.passwords.module:SchemaModule --dataset null \\
        --objective quality:max human_cost:min --steps 40 --checkpoint_every 2 --trials 60 --run runs/schemas
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntUniform, When
from lightning_modules.lightning_import import pl
from lightning_modules.passwords.catalog import make_schema
from lightning_modules.passwords.challenges import Challenge, RandomSource
from lightning_modules.passwords.direct import DirectSchema
from lightning_modules.passwords.linear import LinearAttack
from lightning_modules.passwords.pairs import Attack
from lightning_modules.passwords.schemas import Schema
from lightning_modules.passwords.solving import ConstraintAttack

_KINDS = (
    "word-sum",
    "running-sum",
    "mental-hash",
    "skip-sum",
    "two-pass-word-sum",
    "two-pass-running-sum",
    "two-pass-mental-hash",
    "pointer-sum",
)


class SchemaModule(pl.LightningModule):
    """Leaks pairs of several keys, and logs what an attack knows after them.

    Logged: `success` (share of fresh responses that are right), `quality` (steps until it first was at least `p`; while it is not, the steps so
    far), `human_cost` (steps of a person), `unsolved` (share of keys whose search reached its limit: not secure, only
    unknown).

    Args:
        kind: of the schema; "pointer-sum" takes k1, k2 and n.
        length: letters a challenge.
        k1: digits that point.
        k2: digits that are added.
        n: digits of the key of pointer-sum.
        p: success that counts as broken.
        keys: keys attacked at once.
        tests: fresh challenges a key.
        limit: conflicts that the solver may have a search.
        seed: of keys and challenges.

    Raises:
        InputError: for values out of range.
    """

    def __init__(
        self,
        kind: Annotated[str, Choice(_KINDS)] = "mental-hash",
        length: Annotated[int, IntUniform(4, 16)] = 8,
        k1: Annotated[int, IntUniform(1, 2), When("kind", "pointer-sum")] = 1,
        k2: Annotated[int, IntUniform(1, 3), When("kind", "pointer-sum")] = 1,
        n: Annotated[int, IntUniform(15, 30), When("kind", "pointer-sum")] = 26,
        p: float = 0.5,
        keys: int = 3,
        tests: int = 20,
        limit: int = 5000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < p <= 1:
            raise InputError(f"p: {p} is no share; give more than 0 and at most 1")
        if keys < 1 or limit < 1:
            raise InputError(f"keys, limit: {keys} and {limit}; give 1 or more of each")
        self.schema: Schema = make_schema(f"pointer-sum-{k1}-{k2}-{n}" if kind == "pointer-sum" else kind)
        self.p, self.limit, self.automatic_optimization = p, limit, False
        self._rngs = [[np.random.default_rng([seed, key, stream]) for stream in range(3)] for key in range(keys)]
        source = RandomSource(length, tests)
        self._length, self._quality = length, 0
        self._keys = [self.schema.keygen(rngs[0]) for rngs in self._rngs]
        self._asked = [source.draw(self.schema, rngs[1], rngs[2], 1)[1] for rngs in self._rngs]
        self.attacks = [self._attack() for _ in range(keys)]
        # Lightning counts steps of an optimiser: this one has nothing to change.
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def _attack(self) -> Attack:
        if isinstance(self.schema, DirectSchema):
            return LinearAttack(self.schema)
        return ConstraintAttack(self.schema, self.limit, "glucose")

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Leak one pair of every key."""
        for attack, key, rngs in zip(self.attacks, self._keys, self._rngs, strict=True):
            leaked = self.schema.random_challenges(rngs[1], 1, self._length)
            attack.observe(leaked[0], self.schema.respond(key, leaked)[0])
        self.optimizers().step()  # type: ignore[union-attr]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Ask fresh challenges of every key."""
        shares = [self._share(*each) for each in zip(self.attacks, self._keys, self._asked, strict=True)]
        success = float(np.mean(shares))
        if self._quality == 0 and success >= self.p:
            self._quality = self.global_step
        unsolved = [getattr(getattr(a, "result", None), "status", "") == "unsolved" for a in self.attacks]
        values = {"success": success, "quality": float(self._quality or self.global_step)}
        values |= {"unsolved": float(np.mean(unsolved)), "human_cost": float(self.schema.human_cost(self._asked[0][0]))}
        self.log_dict(values, batch_size=1)

    def _share(self, attack: Attack, key: dict[str, Any], asked: list[Challenge]) -> float:
        answers = attack.predict_many(asked)
        return float(np.mean([a == true for a, true in zip(answers, self.schema.respond(key, asked), strict=True)]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One that changes nothing."""
        return torch.optim.SGD([self.unused], lr=0.0)

    def train_dataloader(self) -> DataLoader[Any]:
        """A batch a leaked pair; what leaks is drawn in the step."""
        return DataLoader(torch.zeros(100, 1), batch_size=1)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        """One batch: what is asked is the module's own."""
        return DataLoader(torch.zeros(1, 1), batch_size=1)  # type: ignore[arg-type]
