"""Reduced row echelon forms over a prime field, grown one equation at a time."""

from __future__ import annotations

import numpy as np

from lightning_modules.passwords.challenges import IntArray

PRIMES = (2, 5)
"""Z_10 is no field, but the product of these two."""


class EchelonForm:
    """Linear equations modulo a prime, kept fully reduced: an equation costs O(unknowns^2), many vectors one matrix product.

    Args:
        unknowns: number of unknowns.
        prime: the modulus, small enough that products of rows are exact in float32.
    """

    def __init__(self, unknowns: int, prime: int) -> None:
        self.unknowns, self.prime, self.rank = unknowns, prime, 0
        # Row i is the equation whose first coefficient stands in column i, or zero; the last column is the right-hand side.
        self.rows = np.zeros((unknowns, unknowns + 1), np.float32)

    def insert(self, equation: IntArray) -> bool:
        """Add an equation [unknowns + 1], its right-hand side last; returns False if it contradicts those before."""
        new = equation.astype(np.float32) % self.prime
        new = (new - new[:-1] @ self.rows) % self.prime
        left = new[:-1].nonzero()[0]
        if not len(left):
            return not new[-1]
        pivot = left[0]
        new = (new * pow(int(new[pivot]), -1, self.prime)) % self.prime
        self.rows = (self.rows - self.rows[:, pivot, None] * new) % self.prime
        self.rows[pivot] = new
        self.rank += 1
        return True

    def reduce(self, vectors: IntArray) -> tuple[IntArray, IntArray]:
        """Express linear forms by the unknowns that are free.

        Args:
            vectors: coefficients [n, unknowns].

        Returns:
            Coefficients [n, unknowns] that are left, zero where the equations determine the form; and constants [n]: the
            form's value is its constant plus what is left, modulo the prime.
        """
        v = vectors.astype(np.float32) % self.prime
        product = v @ self.rows
        left = (v - product[:, :-1]) % self.prime
        return left.astype(np.int64), (product[:, -1] % self.prime).astype(np.int64)

    def known(self, vectors: IntArray) -> tuple[IntArray, IntArray]:
        """Which linear forms [n, unknowns] are determined, and their constants."""
        left, constants = self.reduce(vectors)
        determined: IntArray = np.logical_not(left.any(1))
        return determined, constants


def join(modulo_2: IntArray, modulo_5: IntArray) -> IntArray:
    """The number modulo 10 with these remainders (Chinese remainder theorem)."""
    joined: IntArray = (5 * modulo_2 + 6 * modulo_5) % 10
    return joined
