"""The words of which grams are made, the same for pages and benchmarks.

`words` says what they are: Unicode compatibility forms, case, accents, punctuation and white space do not count, and a Chinese
or Japanese character is a word of its own. `Words` finds the same in many texts at a time: a table turns each unit of UTF-16
into one byte, numpy finds the edges. Folding goes character by character, so that the words of a text are those of its parts.
"""

from __future__ import annotations

import bisect
import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
UTF16 = "utf-16-le"
SPACE, OTHER_LETTER, IDEOGRAPH, RARE = 0x20, 0x80, 0xC0, 0xFF
"""Bytes of the table beside ASCII letters and digits: from OTHER_LETTER and IDEOGRAPH on by a hash; RARE needs a closer look."""
WORD_BYTES = 8
KEEP = np.array([2 ** (8 * num_bytes) - 1 for num_bytes in range(WORD_BYTES + 1)], np.uint64)
MULTIPLIER = 0x9E3779B97F4A7C15


def fold_char(char: str) -> str:
    """What a character counts as: letters and digits, nothing (accents, invisible characters), or a space for all else.

    >>> [fold_char(char) for char in "Éßﬁ½İ，明"]
    ['e', 'ss', 'fi', '1 2', 'i', ' ', ' 明 ']
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    seen = "".join(one for one in folded if unicodedata.category(one) not in ("Mn", "Mc", "Me", "Cf"))
    seen = unicodedata.normalize("NFC", seen)  # Korean syllables again
    return "".join(" " if not one.isalnum() or one > "\uffff" else f" {one} " if CJK.match(one) else one for one in seen)


class _Folded(dict[int, str]):
    def __missing__(self, code_point: int) -> str:
        self[code_point] = folded = fold_char(chr(code_point))
        return folded


FOLDED = _Folded()


def words(text: str, gram: str = "words") -> list[str]:
    """The words of one text.

    >>> words("Let's add 1,000 to 小明的")
    ['let', 's', 'add', '1', '000', 'to', '小', '明', '的']
    """
    found = text.translate(FOLDED).split()
    return found if gram == "words" else list("".join(found))


_run_words = functools.lru_cache(maxsize=2**14)(words)


class Words:
    """The words of several texts, one text after the other (N units of UTF-16, W words).

    `start_W` and `end_W` are places in `unit_N`, `first` holds the number of each text's first word.
    """

    def __init__(self, texts: Sequence[str], gram: str = "words") -> None:
        self.gram = gram
        self.unit_N, self._code_N, start_T = _encode(texts)
        is_word_N = self._code_N != SPACE
        alone_N = is_word_N if gram == "characters" else self._code_N >= IDEOGRAPH
        differs_N = is_word_N[1:] != is_word_N[:-1]
        if alone_N.any():
            edge_N = differs_N | alone_N[1:] | alone_N[:-1]
            self.start_W, self.end_W = np.flatnonzero(edge_N & is_word_N[1:]), np.flatnonzero(edge_N & is_word_N[:-1])
        else:
            edges = np.flatnonzero(differs_N)
            self.start_W, self.end_W = edges[0::2], edges[1::2]
        self.start_W += 1
        self.end_W += 1
        self.first: list[int] = np.searchsorted(self.start_W, start_T).tolist()

    def __len__(self) -> int:
        return len(self.start_W)

    def run(self, first: int, length: int) -> list[str]:
        """`length` words from number `first` on."""
        units = self.unit_N[self.start_W[first] : self.end_W[first + length - 1]]
        return _run_words(units.tobytes().decode(UTF16), self.gram)

    def text_of(self, word: int) -> int:
        """Number of the text in which a word stands."""
        return bisect.bisect_right(self.first, word) - 1

    def is_spelled(self) -> np.ndarray:
        """Of every word, whether it begins with a letter and has a second one, or is an ideograph."""
        begin_W = self._code_N[self.start_W]
        return (begin_W > ord("9")) & ((self.end_W - self.start_W > 1) | (begin_W >= IDEOGRAPH))

    def hashes(self) -> np.ndarray:
        """Hash of every word: its first eight bytes times a constant."""
        at_N = np.ndarray(len(self._code_N) - WORD_BYTES + 1, "<u8", self._code_N, strides=(1,))
        hash_W = at_N[self.start_W]
        hash_W &= KEEP.take(self.end_W - self.start_W, mode="clip")
        hash_W *= np.uint64(MULTIPLIER)
        return hash_W


def _encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texts with spaces between and around them as units of UTF-16, their bytes, and where each text begins."""
    encoded = [text.encode(UTF16, "surrogatepass") for text in texts]
    unit_N = np.frombuffer(" ".encode(UTF16).join([b"", *encoded, (" " * WORD_BYTES).encode(UTF16)]), "<u2")
    length_T = np.fromiter(map(len, encoded), np.int64, len(encoded)) // 2
    start_T = np.cumsum(length_T + 1) - length_T
    code_N = _codes().take(unit_N)
    rare = np.flatnonzero(code_N == RARE)
    if not len(rare):
        return unit_N, code_N, start_T
    plain = list(texts)
    for number in np.unique(np.searchsorted(start_T, rare, "right") - 1).tolist():
        for char in sorted(char for char in set(plain[number]) if char > "\uffff" or _codes()[ord(char)] == RARE):
            plain[number] = plain[number].replace(char, FOLDED[ord(char)])
    return _encode(plain)


@functools.cache
def _codes() -> np.ndarray:
    """The byte of every unit of UTF-16."""
    return np.array([RARE if 0xD800 <= unit < 0xE000 else _code(FOLDED[unit]) for unit in range(2**16)], np.uint8)


def _code(folded: str) -> int:
    if len(folded) == 1:
        return ord(folded) if folded.isascii() else OTHER_LETTER + ord(folded) % (IDEOGRAPH - OTHER_LETTER)
    if len(folded) == 3 and folded == f" {folded[1]} " != "   ":
        return IDEOGRAPH + ord(folded[1]) % (RARE - IDEOGRAPH)
    return SPACE if folded.isspace() else RARE
