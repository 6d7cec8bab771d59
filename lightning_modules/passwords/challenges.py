"""Challenges of letters: names of sites, random letters, and what makes a text one of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lightning_modules.errors import InputError

IntArray = npt.NDArray[Any]
Challenge = str | tuple[int, ...]
"""Letters a-z; of a `PointerSum` an ordered list of numbers."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"

_SITES = """
    adobe airbnb amazon aol apple baidu bing booking chase cloudflare discord disney dropbox ebay espn etsy facebook fedex flickr
    github google hulu imdb instagram linkedin medium microsoft mozilla netflix oracle paypal pinterest quora reddit samsung
    shopify skype slack spotify stackoverflow steam target tiktok tripadvisor twitch twitter uber walmart whatsapp wikipedia
    wordpress yahoo yelp youtube zoom weather cnn bbc nike ikea
"""
SITES: tuple[str, ...] = tuple(_SITES.split())
"""Well-known site names, our own list."""


def normalise(text: str) -> str:
    """Write a text in the letters a-z: accents and case are dropped, everything else too.

    Raises:
        InputError: no letter is left.
    """
    plain = unicodedata.normalize("NFKD", text).lower()
    kept = "".join(letter for letter in plain if letter in LETTERS)
    if not kept:
        raise InputError(f"challenge: {text!r} has no letter of a-z; give a name with at least one")
    return kept


def letter_codes(challenge: Challenge) -> tuple[int, ...]:
    """Number the letters of a challenge, a = 0 to z = 25.

    Raises:
        InputError: for an empty challenge or a symbol outside a-z.
    """
    if not isinstance(challenge, str):
        raise InputError(f"challenge: {challenge!r} is no text; give letters a-z")
    if not challenge:
        raise InputError("challenge: is empty; give at least one letter")
    codes = tuple(ord(letter) - 97 for letter in challenge)
    if min(codes) < 0 or max(codes) > 25:
        wrong = next(letter for letter in challenge if letter not in LETTERS)
        raise InputError(
            f"challenge: {challenge!r} has {wrong!r}, outside a-z; use normalise, which drops such symbols"
        )
    return codes


def random_letters(rng: np.random.Generator, count: int, length: int) -> list[str]:
    """Draw challenges of independent uniform letters."""
    if length < 1:
        raise InputError(f"length: {length} is too small; give 1 or more")
    drawn = rng.integers(0, 26, (count, length)).astype(np.uint8) + 97
    return [bytes(row).decode() for row in drawn]


class Draws(Protocol):
    """What can draw random challenges: a schema."""

    def random_challenges(self, rng: np.random.Generator, count: int, length: int) -> list[Challenge]:
        """Draw challenges."""


class RandomSource:
    """Fresh random challenges, both leaked and asked for.

    Args:
        length: letters a challenge; a schema with a length of its own takes no notice.
        tests: challenges asked for, the same after every leak and none of them leaked.
    """

    def __init__(self, length: int = 8, tests: int = 40) -> None:
        if length < 1 or tests < 1:
            raise InputError(f"length, tests: {length} and {tests}; give 1 or more of each")
        self.length, self.tests = length, tests

    def draw(
        self, schema: Draws, leaks: np.random.Generator, asked: np.random.Generator, pairs: int
    ) -> tuple[list[Challenge], list[Challenge]]:
        """Return leaked challenges in order, and those asked for."""
        leaked = schema.random_challenges(leaks, pairs, self.length)
        known, tests = set(leaked), list[Challenge]()
        for _ in range(100):
            fresh = schema.random_challenges(asked, self.tests - len(tests), self.length)
            tests += [challenge for challenge in fresh if challenge not in known]
            if len(tests) == self.tests:
                return leaked, tests
        raise InputError(f"length: {self.length} leaves too few challenges besides the leaked ones; give more letters")


class SiteSource:
    """A fixed list of names, leaked in a random order; asked for is, after every leak, each that has not leaked.

    Args:
        sites: names in a-z.

    Raises:
        InputError: for fewer than two, or one twice.
    """

    def __init__(self, sites: Sequence[Challenge] = SITES) -> None:
        self.sites = list(sites)
        if len(self.sites) < 2:
            raise InputError(f"sites: {len(self.sites)} given; give at least two, so that one can leak and one is left")
        if len(set(self.sites)) < len(self.sites):
            twice = next(site for site in self.sites if self.sites.count(site) > 1)
            raise InputError(f"sites: {twice!r} stands there twice; name each once")

    def draw(
        self, schema: Draws, leaks: np.random.Generator, asked: np.random.Generator, pairs: int
    ) -> tuple[list[Challenge], list[Challenge]]:
        """Return the names in the order they leak, as many as asked for, and all names."""
        order = leaks.permutation(len(self.sites))
        return [self.sites[i] for i in order[: min(pairs, len(order) - 1)]], list(self.sites)
