"""Copy the plays of several journals into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from toa_trl.sampling.budget import is_adaptive
from toa_trl.sampling.journal.grants import join_grants
from toa_trl.sampling.journal.journal import Journal
from toa_trl.types import Spending


def copy_journals(paths: Iterable[str | Path], into: Journal) -> int:
    """Copy the missing plays from other journals of the same prompts, such as those of shards.

    The spending on reward models becomes the sum of theirs, and the decisions of an adaptive
    allocation become all of theirs, so that this can be repeated.

    Returns:
        The number of new plays.

    Raises:
        ConfigError: a journal is missing.
        JournalError: one cannot be read, or `into` cannot be written.
    """
    num_new, spent = 0, Spending()
    paths = list(paths)
    for other in _opened(paths):
        num_new += into.copy(other.rows())
        spent += other.reward_spending
    if is_adaptive(into.identity):
        join_grants(_opened(paths), into)
    if spent != Spending():
        into.set_reward_spending(spent)
        into.append_all(())
    return num_new


def _opened(paths: Iterable[str | Path]) -> Iterator[Journal]:
    for path in paths:
        with closing(Journal(path, lock=False)) as journal:
            yield journal
