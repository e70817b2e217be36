"""Every play, written once, the moment it is scored; a run is a replay of its journal.

One SQLite file in WAL mode, readable with any SQLite tool while the run goes on. Every commit is fsynced before anybody
hears of it: what was written survives the death of the process and a power cut. `Writer` shares one fsync among the
plays of many prompts, so that the promise costs next to nothing.

    table.py      a play as a row          writer.py     many prompts, one commit
    journal.py    reading and writing      recovery.py   what can be read of a damaged file
"""

from toa_trl.sampling.journal.journal import Journal, locked
from toa_trl.sampling.journal.recovery import Recovered, recover
from toa_trl.sampling.journal.writer import Writer

__all__ = ["Journal", "Recovered", "Writer", "locked", "recover"]
