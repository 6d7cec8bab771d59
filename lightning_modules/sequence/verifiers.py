"""Rewards that can be checked: pure functions by name, and a person's own prompts in a JSONL file that name them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lightning_modules.errors import InputError

Verifier = Callable[[str, str, str], float]
"""Maps (prompt, answer, what is expected) to a reward, usually 0 or 1; what was written after the end is not in the answer."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_FIELDS = {"prompt", "checker", "expected"}


def exact(prompt: str, answer: str, expected: str) -> float:
    """Whether the answer is what is expected, spaces around it aside."""
    return float(answer.strip() == expected.strip())


def final(prompt: str, answer: str, expected: str) -> float:
    """Whether what follows the last `=` of the answer is what is expected; without a `=` nothing is right."""
    _, sign, told = answer.rpartition("=")
    return float(bool(sign) and told.strip() == expected.strip())


def number(prompt: str, answer: str, expected: str) -> float:
    """Whether the last number in the answer is the one expected, however it is written: 2, 2.0 and +2 are the same."""
    found = _NUMBER.findall(answer)
    return float(bool(found) and math.isclose(float(found[-1]), float(expected)))


def digit_sum(prompt: str, answer: str, expected: str) -> float:
    """Whether what follows the last `=` is the sum of the prompt's digits modulo `expected`."""
    total = sum(int(letter) for letter in prompt if letter.isdecimal() and letter.isascii()) % int(expected)
    return final(prompt, answer, str(total))


VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {"exact": exact, "final": final, "number": number, "digit_sum": digit_sum}
)
"""By name, as a file of prompts says it."""


@dataclass(frozen=True)
class Prompt:
    """A question, and how an answer to it is checked.

    Args:
        text: the question.
        checker: name of a verifier.
        expected: what that verifier compares with.
    """

    text: str
    checker: str
    expected: str = ""


@dataclass(frozen=True)
class Spelling:
    """Letters as tokens: token i is letter i.

    Args:
        letters: all of them.

    Raises:
        InputError: none, or one twice.
    """

    letters: str

    def __post_init__(self) -> None:
        if not self.letters or len(set(self.letters)) < len(self.letters):
            raise InputError(f"letters: are {self.letters!r}; give one letter or more, each once")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            InputError: a letter that is not among them.
        """
        unknown = sorted(set(text) - set(self.letters))
        if unknown:
            raise InputError(f"text: has the letter {unknown[0]!r}; the policy knows {self.letters!r}")
        return [self.letters.index(letter) for letter in text]

    def decode(self, tokens: Collection[int]) -> str:
        """The text of tokens."""
        return "".join(self.letters[token] for token in tokens)


def read_prompts(path: str | Path, spelling: Spelling, verifiers: Mapping[str, Verifier] = VERIFIERS) -> list[Prompt]:
    """Read a JSONL file: a line is {"prompt": "...", "checker": "final", "expected": "2"}; blank lines are left out.

    Each checker is tried on an empty answer, so that an expectation it cannot read shows now and not in the middle of a training.

    Args:
        path: of the file, in UTF-8.
        spelling: the letters that the policy knows.
        verifiers: by name.

    Raises:
        InputError: naming file and line: nothing there, no JSON, a field that is missing, unknown or no string, a checker that
            is unknown or cannot read what is expected, a letter the policy does not know.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a JSONL file of prompts") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}); convert it, e.g. with iconv") from None
    found = [
        _prompt_of(line, f"{path}, line {count}", spelling, verifiers)
        for count, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise InputError(f"{path}: has no prompts; give one JSON object a line")
    return found


def _prompt_of(line: str, where: str, spelling: Spelling, verifiers: Mapping[str, Verifier]) -> Prompt:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: is no JSON ({error.msg} at letter {error.pos + 1}); give one object a line"
        ) from None
    if not isinstance(fields, dict) or not {"prompt", "checker"} <= set(fields):
        raise InputError(f"{where}: lacks a prompt or a checker; give both, and what is expected")
    for name, value in fields.items():
        if name not in _FIELDS:
            raise InputError(f"{where}: has the unknown field {name!r}; the fields are prompt, checker, expected")
        if not isinstance(value, str):
            raise InputError(f"{where}: {name} is {json.dumps(value)[:40]}; put it between quotes")
    prompt = Prompt(fields["prompt"], fields["checker"], fields.get("expected", ""))
    if prompt.checker not in verifiers:
        raise InputError(f"{where}: unknown checker {prompt.checker!r}; choose from {', '.join(verifiers)}")
    if not prompt.text:
        raise InputError(f"{where}: prompt is empty; give one letter or more")
    try:
        spelling.encode(prompt.text)
        verifiers[prompt.checker](prompt.text, "", prompt.expected)
        if prompt.checker in ("number", "digit_sum"):
            verifiers[prompt.checker](prompt.text, "=0", prompt.expected)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, ArithmeticError):
        raise InputError(
            f"{where}: {prompt.checker} cannot use the expected {prompt.expected!r}; give it a number"
        ) from None
    return prompt
