"""Every play is written once, when it is scored; a resume replays the journal.

The journal is one SQLite file in WAL mode, which any SQLite tool can read during the run. Every
commit is synced to disk before it is reported, so what was written survives a kill and a power
failure. `Writer` shares one fsync among the plays of many prompts, which keeps it cheap.

    journal.py    the file; writing        recovery.py   rescue of a damaged file
    reading.py    plays and totals         copying.py    several journals into one
    table.py      the tables               faults.py     errors with a remedy
"""

from contextlib import closing
from pathlib import Path

from toa_trl.sampling.journal.copying import copy_journals
from toa_trl.sampling.journal.journal import Journal, Writer
from toa_trl.sampling.journal.opening import locked, remove_journal
from toa_trl.sampling.journal.recovery import Recovered, recover

__all__ = [
    "Journal",
    "Recovered",
    "Writer",
    "copy_journals",
    "locked",
    "open_journal",
    "recover",
    "remove_journal",
]


def open_journal(run_dir: str | Path) -> closing[Journal]:
    """Return the journal of a run for a `with` block; it never waits for the run, nor the run.

    Raises:
        ConfigError: the journal is missing, or the run has not begun yet.
        JournalError: it cannot be read.
    """
    return closing(Journal(Path(run_dir) / "journal.sqlite", lock=False))
