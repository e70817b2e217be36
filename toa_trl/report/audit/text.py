"""Texts as words (lower case, without punctuation), and hashes of consecutive words."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Chinese and Japanese use no spaces: each character counts as a word. Thai, Lao, Khmer and Burmese
# put spaces between phrases; these count as words, so that fewer overlaps are found, none by chance
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
ALONE = re.compile(f"[{UNSPACED}]")
BETWEEN = re.compile(f"(?<=[{UNSPACED}]) (?=[{UNSPACED}])")
# punctuation and symbols are removed without a space, as in lm-eval's janitor
DROPPED = re.compile(r"[^\w\s]+|_+")
POINT = r"(?!(?<=\d)[.,]\d)"  # not before the point of 3.5
SIGNED = re.compile(rf"{POINT}[^\w\s]|_")
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: every word of a window counts in the whole 64 bits


def words_of(text: str, *, signs: bool = False) -> list[str]:
    """Return the words of a text: NFKC, lower case, without punctuation.

    Args:
        text: a text of any length.
        signs: keep decimal points, operators, and the vowel marks of Hindi or Thai: -5 differs
            from 5, and 3.5 from 35.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    if ALONE.search(text):
        text = ALONE.sub(r" \g<0> ", text)
    return (SIGNED.sub(_sign, text) if signs else DROPPED.sub("", text)).split()


def _sign(match: re.Match[str]) -> str:
    """Return the character if it is an operator or a mark."""
    sign = match[0]
    return sign if sign in "-*/^" or unicodedata.category(sign) in ("Sm", "Mn", "Mc") else ""


def joined(some: Sequence[str]) -> str:
    """Return words as one readable text."""
    return BETWEEN.sub("", " ".join(some))


def hashes(some: Sequence[str]) -> Hashes:
    """Return a hash per word; valid within one process only."""
    return np.fromiter((hash(word) & 0xFFFFFFFFFFFFFFFF for word in some), np.uint64, len(some))


def windows(of: Hashes, length: int) -> Hashes:
    """Return a hash of every `length` consecutive words."""
    num = max(len(of) - length + 1, 0)
    total = np.zeros(num, np.uint64)
    for i in range(length if num else 0):
        total = total * BASE + of[i : i + num]
    return total


def grams(some: Sequence[str], length: int) -> Hashes:
    """Return the distinct hashes of `length` consecutive words, sorted."""
    return np.unique(windows(hashes(some), length))
