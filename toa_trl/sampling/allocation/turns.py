"""The turns of an adaptive allocation: waves, recorded in the journal before they begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from toa_trl.sampling.allocation.history import History
from toa_trl.sampling.allocation.waves import Waves
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import allocation_ended, iterate_grants, write_grants
from toa_trl.sampling.turns import Turn, Turns
from toa_trl.types import Grant, Play, Prompt


class AdaptiveTurns(Turns):
    """Turns as `Waves` grants them; a resumed run continues with those in its journal.

    Args:
        prompts: all prompts of the run, in the order of the journal.
        waves: fresh, see there.
        journal: of the run.
        cost: returns what a play cost.
    """

    repeated = True

    def __init__(
        self,
        prompts: Sequence[Prompt],
        waves: Waves,
        journal: Journal,
        cost: Callable[[Play], float],
    ) -> None:
        self._prompts, self._waves, self._journal, self._cost = prompts, waves, journal, cost
        self._positions = {prompt.id: position for position, prompt in enumerate(prompts)}
        started = journal.num_scored()
        histories = (
            (position, self._history(journal.plays(prompt.id)))
            for position, prompt in enumerate(prompts)
            if started.get(prompt.id)
        )
        unfinished = waves.restore(iterate_grants(journal), histories)
        self._queue = asyncio.Queue[Turn | None]()  # None: there is no turn left
        self._add(map(self._turn, unfinished))
        self._ended = allocation_ended(journal)
        self._started = self._deciding = self._stopped = False

    async def next(self) -> Turn | None:
        """See `Turns`."""
        if not self._started:
            self._started = True
            await self._decide()
        turn = await self._queue.get()
        if turn is None:
            self._add([None])  # for the next who asks
        return turn

    async def ended(self, turn: Turn, plays: Mapping[int, Play], given_up: bool) -> None:
        """See `Turns`."""
        position = self._positions[turn.prompt.id]
        if self._waves.complete(position, self._history(plays.values()), given_up):
            await self._decide()

    def stop(self) -> None:
        """See `Turns`."""
        self._stopped = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._add([None])

    async def _decide(self) -> None:
        """Decide what can be decided; one caller at a time, the others continue their turns."""
        if self._deciding:
            return
        self._deciding = True
        try:
            while not self._stopped and (grants := self._waves.decide()) is not None:
                if grants:  # in a thread, so that no fsync blocks the event loop
                    await asyncio.to_thread(write_grants, self._journal, grants)
                    self._add(map(self._turn, grants))
            if self._waves.over:
                self._add([None])
            if self._waves.over and not self._ended:
                self._ended = True
                await asyncio.to_thread(write_grants, self._journal, (), ended=True)
        finally:
            self._deciding = False

    def _add(self, turns: Iterable[Turn | None]) -> None:
        for turn in turns:
            self._queue.put_nowait(turn)

    def _turn(self, grant: Grant) -> Turn:
        return Turn(self._prompts[grant.prompt], grant.plays)

    def _history(self, plays: Iterable[Play]) -> History:
        return History.of(plays, self._cost)
