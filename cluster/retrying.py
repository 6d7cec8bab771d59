"""Tries an operation on an object store again while that can help: throttling, timeouts, broken connections, half uploads."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

BUDGET_S = 60.0
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_WARN_EVERY_S = 5.0
# What a store answers for good. Everything else may pass: 503, 500, timeouts, refused and broken connections.
_FINAL = (
    *(
        "access_denied",
        "access denied",
        "accessdenied",
        "forbidden",
        "no_such_bucket",
        "nosuchbucket",
        "no such bucket",
    ),
    *("does not exist", "invalid_access_key", "invalidaccesskeyid", "signature", "no_such_key", "nosuchkey"),
    *("invalid_client_token", "expired_token", "no credentials", "unable to load credentials", "http status 403"),
)

_warned_at = float("-inf")


def is_final(error: OSError) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _FINAL)


def persist(operation: Callable[[], T], what: str, budget: float = BUDGET_S) -> T:
    """Try an operation until it succeeds, with growing pauses of random length.

    Args:
        operation: may be repeated.
        what: names it in warnings.
        budget: seconds after which no further try begins.

    Raises:
        OSError: the last error, when it is final or the budget is spent.
    """
    began, wait, tries = time.monotonic(), _FIRST_WAIT_S, 0
    while True:
        try:
            return operation()
        except OSError as error:
            tries += 1
            if is_final(error) or time.monotonic() - began + wait > budget:
                raise
            warn(f"{what} failed ({reason(error)}); trying again ({tries})")
        # Many workers that were turned away together come back apart.
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        wait = min(2 * wait, _LONGEST_WAIT_S)


def warn(text: str, always: bool = False) -> None:
    """Say something on stderr, now and then at most."""
    global _warned_at
    now = time.monotonic()
    if always or now - _warned_at >= _WARN_EVERY_S:
        _warned_at = now
        print(f"storage: {text}", file=sys.stderr, flush=True)


def reason(error: OSError) -> str:
    """One line of an error."""
    return " ".join(str(error.strerror or error).split())[:200]
