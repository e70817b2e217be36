"""maj@k: the most frequent answer of k responses.

Self-consistency, Wang et al. 2022, arXiv 2203.11171.
"""

from collections.abc import Awaitable, Callable, Sequence

from toa_trl.errors import RewardError
from toa_trl.rewards.answers import final_answer

Equivalent = Callable[[str, str], Awaitable[bool]]


async def majority(texts: Sequence[str], equivalent: Equivalent) -> int | None:
    """Return the index of the first text with the most frequent answer.

    Among equally frequent answers the earliest wins.

    Args:
        texts: responses to one problem.
        equivalent: whether two final answers mean the same.

    Returns:
        None where no text has a final answer.
    """
    groups: list[tuple[str, list[int]]] = []  # an answer, and the indices of the texts that give it
    for index, text in enumerate(texts):
        answer = final_answer(text)
        if answer is None:
            continue
        for other, indices in groups:
            if other == answer or await _same(other, answer, equivalent):
                indices.append(index)
                break
        else:
            groups.append((answer, [index]))
    if not groups:
        return None
    _, largest = max(groups, key=lambda group: len(group[1]))
    return largest[0]


async def _same(answer: str, other: str, equivalent: Equivalent) -> bool:
    try:
        return await equivalent(answer, other)
    except RewardError:  # undecided: count them as two answers
        return False
