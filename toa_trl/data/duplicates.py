"""Duplicates among prompts, and among the responses of one prompt."""

from collections.abc import Callable
from hashlib import blake2b

from toa_trl.types import Prompt


class Duplicates:
    """Finds duplicates of what it was given before.

    Memory grows with the number of distinct prompts, by about 0.1 kB each.

    Args:
        exact: whether equal texts are duplicates, apart from case and spaces.
    """

    def __init__(self, exact: bool) -> None:
        self._exact = exact
        self._seen = set[bytes]()

    def prompt(self, prompt: Prompt) -> bool:
        """Return whether a prompt is a duplicate of an earlier one; if not, remember it."""
        content = "\n".join(f"{message.role}: {message.text}" for message in prompt.messages)
        return self._is_repeated(content, self._seen)

    def of_responses(self) -> Callable[[str], bool]:
        """Return what tells whether a response is a duplicate of an earlier one of its prompt."""
        seen = set[bytes]()
        return lambda response: self._is_repeated(response, seen)

    def _is_repeated(self, content: str, seen: set[bytes]) -> bool:
        if not self._exact:
            return False
        normalized = " ".join(content.casefold().split())
        digest = blake2b(normalized.encode(errors="surrogatepass"), digest_size=16).digest()
        repeated = digest in seen
        seen.add(digest)
        return repeated
