"""Opening the file of a journal: locked for its writer, or for reading on any medium."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from filelock import FileLock, Timeout

from toa_trl.errors import ConfigError

NOT_WRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


def connect(path: str, *, reading: bool = False) -> sqlite3.Connection:
    """Return a connection to a journal.

    Args:
        path: of the file, or ":memory:".
        reading: the folder may be read-only, where SQLite cannot make the files of its own that a
            journal normally needs.
    """
    if not reading:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for address in _addresses(path):
        db = sqlite3.connect(
            address, isolation_level=None, check_same_thread=False, uri=True, factory=_Reading
        )
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in NOT_WRITABLE:
                db.close()
                continue
        except sqlite3.DatabaseError:
            pass  # damaged: reported by whoever reads it
        return db
    return _copy(Path(path))


class _Reading(sqlite3.Connection):
    """A connection that may own the copy that it reads."""

    folder: TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Close the connection, and delete the copy."""
        super().close()
        if self.folder is not None:
            self.folder.cleanup()


def _addresses(path: str) -> Iterator[str]:
    address = f"file:{quote(str(Path(path).absolute()))}"
    yield f"{address}?mode=rw"
    yield f"{address}?mode=ro"  # while somebody else writes it
    wal = Path(f"{path}-wal")
    if not wal.exists() or not wal.stat().st_size:
        yield f"{address}?immutable=1"


def _copy(path: Path) -> sqlite3.Connection:
    """Return a connection to a copy: plays in the WAL are not in the file itself."""
    folder = TemporaryDirectory(prefix="toa_trl-")
    for part in (path, Path(f"{path}-wal")):
        shutil.copyfile(part, Path(folder.name) / part.name)
    copy = Path(folder.name) / path.name
    db = sqlite3.connect(copy, isolation_level=None, check_same_thread=False, factory=_Reading)
    db.folder = folder
    return db


def remove_journal(path: Path) -> None:
    """Remove the file of a journal, if it exists, and those that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def locked(path: str | Path) -> FileLock:
    """Acquire and return the lock of a journal's writer.

    Raises:
        ConfigError: another process holds it.
    """
    # `toa-trl status` holds the lock for a moment, to see whether anyone does.
    lock = FileLock(f"{path}.lock", timeout=1)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{path}: another process is writing this run; wait for it, or stop it"
        ) from error
    return lock
