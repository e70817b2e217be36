"""Duplicates among prompts, and among the responses of one prompt.

Near duplicates are found by MinHash: texts that have most of their words in the same order. The
share that two texts have in common is the Jaccard similarity of their sets of three consecutive
words; scripts without spaces count characters. It is estimated from sketches of `NUM_PERM` numbers,
with a standard error of at most 0.045.
"""

import re
import zlib
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np

from toa_trl.types import Prompt

NUM_PERM = 128
GRAM = 3  # consecutive words
NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{NO_SPACES}]|[^\W{NO_SPACES}]+")


class Duplicates:
    """Finds duplicates of what it was given before.

    Memory grows with the number of distinct prompts: by about 0.1 kB each for exact duplicates,
    and 4 kB for near ones.

    Args:
        exact: whether equal texts are duplicates, apart from case and spaces.
        near: share of their three-word sequences that near duplicates have in common; None: exact
            duplicates only.
    """

    def __init__(self, exact: bool, near: float | None) -> None:
        self._exact, self._near = exact or near is not None, near
        self._seen = set[bytes]()
        if near is not None:
            # not at the top: with scipy it takes a second that only cleaned data needs
            from datasketch import MinHash, MinHashLSH

            self._empty = MinHash(num_perm=NUM_PERM, hashfunc=zlib.crc32)
            self._index = MinHashLSH(threshold=near, num_perm=NUM_PERM)
            self._sketches: list[Any] = []  # of the prompts

    def prompt(self, prompt: Prompt) -> bool:
        """Return whether a prompt is a duplicate of an earlier one; if not, remember it."""
        content = "\n".join(f"{message.role}: {message.text}" for message in prompt.messages)
        if self._is_repeated(content, self._seen):
            return True
        if self._near is None:
            return False
        sketch = self._sketch(content)
        for number in self._index.query(sketch):  # candidates
            if (self._sketches[number] == sketch.hashvalues).mean() >= self._near:
                return True
        self._index.insert(len(self._sketches), sketch, check_duplication=False)
        self._sketches.append(sketch.hashvalues)
        return False

    def of_responses(self) -> Callable[[str], bool]:
        """Return what tells whether a response is a duplicate of an earlier one of its prompt."""
        seen, sketches = set[bytes](), list[Any]()

        def is_duplicate(response: str) -> bool:
            if self._is_repeated(response, seen):
                return True
            if self._near is None:
                return False
            values = self._sketch(response).hashvalues
            # few enough to compare all
            if sketches and (np.stack(sketches) == values).mean(axis=1).max() >= self._near:
                return True
            sketches.append(values)
            return False

        return is_duplicate

    def _is_repeated(self, content: str, seen: set[bytes]) -> bool:
        if not self._exact:
            return False
        normalized = " ".join(content.casefold().split())
        digest = blake2b(normalized.encode(errors="surrogatepass"), digest_size=16).digest()
        repeated = digest in seen
        seen.add(digest)
        return repeated

    def _sketch(self, content: str) -> Any:
        words = WORD.findall(content.casefold())
        starts = range(max(1, len(words) - GRAM + 1))
        grams = {" ".join(words[start : start + GRAM]) for start in starts}
        sketch = self._empty.copy()
        sketch.update_batch([gram.encode(errors="surrogatepass") for gram in grams])
        return sketch
