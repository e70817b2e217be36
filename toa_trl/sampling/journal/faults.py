"""Errors of a journal, with a remedy."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from toa_trl.errors import JournalError


def journal_error(path: str, error: Exception) -> JournalError:
    """Return the error for a fault of SQLite, or for a value that is not a journal's."""
    # An OperationalError without a code is not SQLite's: a text is not valid UTF-8.
    operational = isinstance(error, sqlite3.OperationalError) and hasattr(error, "sqlite_errorcode")
    damaged = not operational and isinstance(
        error, sqlite3.OperationalError | ValueError | TypeError | RecursionError
    )
    damaged &= not isinstance(error, UnicodeEncodeError)
    remedy = ""  # the play exists already, or cannot be encoded
    if operational:
        remedy = (
            ". What was written is safe; remove the cause (disk space, permissions) and "
            "resume with the same command."
        )
    elif damaged or type(error) is sqlite3.DatabaseError:
        remedy = (
            ". The file is damaged or not a journal; `toa-trl recover "
            f"{Path(path).parent}` saves what is readable."
        )
    return JournalError(f"{path}: {error}{remedy}")
