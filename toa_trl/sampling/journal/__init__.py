"""Every play is written once, when it is scored; a resume replays the journal.

The journal is one SQLite file in WAL mode, which any SQLite tool can read during the run. Every
commit is synced to disk before it is reported, so what was written survives a kill and a power
failure. `Writer` shares one fsync among the plays of many prompts, which keeps it cheap.

    table.py      a play as a row          writer.py     many prompts, one commit
    journal.py    reading and writing      recovery.py   rescue of a damaged file
    faults.py     errors with a remedy     copying.py    several journals into one
"""

from toa_trl.sampling.journal.copying import copy_journals
from toa_trl.sampling.journal.journal import Journal
from toa_trl.sampling.journal.opening import locked
from toa_trl.sampling.journal.recovery import Recovered, recover
from toa_trl.sampling.journal.writer import Writer

__all__ = ["Journal", "Recovered", "Writer", "copy_journals", "locked", "recover"]
