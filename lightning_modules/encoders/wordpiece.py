"""BERT's tokens: lower-case words without accents, cut into the longest pieces that a vocabulary knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from lightning_modules.encoders.texts import pad
from lightning_modules.errors import InputError

_LONGEST_WORD = 100
# Chinese, Japanese and Korean ideographs, which stand for words without spaces between them.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """The uncased tokenizer of BERT (field standard).

    Args:
        vocabulary: vocab.txt, a piece a line; pieces inside a word begin with ##.
        longest: tokens of a text, [CLS] and [SEP] among them; the rest is cut off.

    Raises:
        InputError: a vocabulary without [PAD], [UNK], [CLS] or [SEP].
    """

    def __init__(self, vocabulary: Path, longest: int = 256) -> None:
        pieces = vocabulary.read_text(encoding="utf-8").split("\n")
        self.ids = {piece: i for i, piece in enumerate(pieces) if piece}
        self.longest = longest
        for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
            if name not in self.ids:
                raise InputError(f"{vocabulary}: has no {name}; give the vocabulary of an uncased BERT")

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Turn B texts into tokens [B, T] int64 and mask [B, T] bool, False where padded."""
        return pad(self.tokenise(texts), self.ids["[PAD]"])

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into lists of tokens, from [CLS] to [SEP]."""
        first, last = self.ids["[CLS]"], self.ids["[SEP]"]
        found = []
        for text in texts:
            pieces = [piece for word in split_words(text) for piece in self._pieces(word)]
            found.append([first, *pieces[: self.longest - 2], last])
        return found

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self.ids["[UNK]"]]
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return [self.ids["[UNK]"]]
            found.append(piece)
            start = end
        return found


def split_words(text: str) -> list[str]:
    """Split a text at white space, at punctuation and around ideographs, in lower case and without accents."""
    cleaned = []
    for character in text:
        kind = _kind(character)
        if kind == "ideograph":
            cleaned.append(f" {character} ")
        elif kind != "control":
            cleaned.append(" " if kind == "space" else character)
    words = []
    for word in "".join(cleaned).split():
        plain = [c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn"]
        # Letter by letter: a whole word's last sigma would become another letter, which vocabularies do not expect.
        plain = [lower for c in plain for lower in c.lower()]
        words += "".join(f" {c} " if _kind(c) == "punctuation" else c for c in plain).split()
    return words


@lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return "space"
    if code in (0, 0xFFFD) or category in ("Cc", "Cf", "Co", "Cs"):
        return "control"
    # All of ASCII that is neither letter nor digit counts, such as $ and ^, which Unicode calls symbols.
    if category.startswith("P") or (33 <= code <= 126 and not character.isalnum()):
        return "punctuation"
    return "ideograph" if any(low <= code <= high for low, high in _IDEOGRAPHS) else "letter"
