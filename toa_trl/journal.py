"""Every play, written once, the moment it is scored; a run is a replay of its journal.

One SQLite file in WAL mode, readable with any SQLite tool while the run goes on. A commit survives the death of the
process at any moment. Known trade-off (accepted): commits are not fsynced one by one, so a power cut may cost the last
moments of a run, but never more and never the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toa_trl.errors import ConfigError, JournalError
from toa_trl.types import Action, Completion, Counts, Play, Prompt, Rollout, as_dicts

SCHEMA = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, messages TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE plays (
    prompt_id TEXT NOT NULL, play INTEGER NOT NULL, seed INTEGER NOT NULL,
    agent TEXT NOT NULL, kind TEXT NOT NULL, refs TEXT NOT NULL, parent INTEGER, depth INTEGER NOT NULL,
    response TEXT, finish_reason TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, flops REAL,
    reward REAL, reward_flops REAL, error TEXT,
    PRIMARY KEY (prompt_id, play)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
VERSION = 1


class Journal:
    """The record of one run.

    Args:
        path: of the SQLite file, or ":memory:".
        create: begin a new journal where there is none; otherwise its absence is an error.

    Raises:
        ConfigError: there is no journal, or another process writes it.
        JournalError: the file is not a journal, or a damaged one.
    """

    def __init__(self, path: str | Path, *, create: bool = False, lock: bool = True) -> None:
        self.path = str(path)
        in_memory = self.path == ":memory:"
        if not create and not Path(self.path).is_file():
            raise ConfigError(f"{path}: there is no journal; is this the folder of a run?")
        self._lock = FileLock(f"{path}.lock", timeout=0) if lock and not in_memory else None
        if self._lock is not None:
            try:
                self._lock.acquire()
            except Timeout as error:
                raise ConfigError(f"{path}: another process is writing this run; wait for it, or end it") from error
        try:
            with self._errors():
                self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0 and create:
                    self._db.executescript(f"PRAGMA journal_mode=WAL; BEGIN; {SCHEMA} COMMIT;")
                elif version != VERSION:
                    raise JournalError(f"{path}: not a journal of this version ({version} instead of {VERSION})")
                self._db.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, and let others write it."""
        if hasattr(self, "_db"):
            self._db.close()
        self.unlock()

    def unlock(self) -> None:
        """Nothing more will be written: let others write."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, identity: Mapping[str, Any], prompts: Iterable[Prompt]) -> bool:
        """Begin a run, or go on with the one that is here.

        Args:
            identity: everything that decides a result, as JSON values.
            prompts: of the run; written once.

        Returns:
            Whether there was a run here already.

        Raises:
            ConfigError: the run here has another identity; the message shows the difference.
        """
        stored = self._get("identity")
        if stored is not None:
            if difference := _difference(stored, json.loads(json.dumps(identity))):
                raise ConfigError(
                    f"{self.path} is of another configuration, and mixing two would spoil both; go back to it, or "
                    "choose another output_dir. What differs (journal -> now):\n" + "\n".join(difference)
                )
            return True
        rows = (
            (
                position,
                p.id,
                json.dumps(as_dicts(p.messages), ensure_ascii=False),
                json.dumps(dict(p.metadata), default=str),
            )
            for position, p in enumerate(prompts)
        )
        with self._errors():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?)", rows)
            self._db.execute("INSERT INTO run VALUES ('identity', ?)", (json.dumps(identity),))
            self._db.execute("COMMIT")
        return False

    def append(self, prompt_id: str, play: Play) -> None:
        """Write one play for good.

        Raises:
            JournalError: it could not be written (a full disk, a play that is there already).
        """
        action, done = play.action, play.completion
        row = (
            prompt_id, play.index, play.seed,
            action.agent, action.kind, json.dumps(action.refs), action.parent, action.depth,
            *((done.text, done.finish_reason, done.prompt_tokens, done.completion_tokens, done.flops) if done else [None] * 5),
            play.reward, play.reward_flops, play.error,
        )  # fmt: skip
        with self._errors():
            self._db.execute(f"INSERT INTO plays VALUES ({', '.join('?' * len(row))})", row)

    def plays(self, prompt_id: str) -> list[Play]:
        """The plays of one prompt, scored and failed, by index."""
        with self._errors():
            rows = self._db.execute("SELECT * FROM plays WHERE prompt_id = ? ORDER BY play", (prompt_id,)).fetchall()
        return [_play(row) for row in rows]

    def rollouts(self) -> Iterator[Rollout]:
        """Every prompt with its plays, one at a time, in the order of the prompts file."""
        with self._errors():
            # a cursor of its own, so that many may run at once
            for _, prompt_id, messages, metadata in self._db.cursor().execute(
                "SELECT * FROM prompts ORDER BY position"
            ):
                prompt = Prompt(prompt_id, json.loads(messages), json.loads(metadata))
                yield Rollout(prompt, tuple(self.plays(prompt_id)))

    def num_scored(self) -> dict[str, int]:
        """Scored plays of every prompt that has any."""
        with self._errors():
            return dict(self._db.execute("SELECT prompt_id, count(reward) FROM plays GROUP BY prompt_id").fetchall())

    def counts(self) -> Counts:
        """Totals over the run."""
        with self._errors():
            (num_prompts,) = self._db.execute("SELECT count(*) FROM prompts").fetchone()
            totals = self._db.execute(
                "SELECT count(reward), count(*) - count(reward), "
                "coalesce(sum(reward IS NOT NULL AND finish_reason = 'length'), 0), coalesce(sum(prompt_tokens), 0), "
                "coalesce(sum(completion_tokens), 0), total(flops), total(reward_flops) FROM plays"
            ).fetchone()
        return Counts(num_prompts, *totals)

    @property
    def identity(self) -> dict[str, Any]:
        """What the run was begun with."""
        return self._get("identity") or {}

    def _get(self, key: str) -> Any:
        with self._errors():
            row = self._db.execute("SELECT value FROM run WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise JournalError(
                f"{self.path}: {error}. What was written is safe; once the cause is gone (disk space, permissions), "
                "the same command goes on."
            ) from error
        except sqlite3.DatabaseError as error:
            raise JournalError(
                f"{self.path}: {error}. The file is damaged or not a journal; keep it, and save what is readable with "
                "`sqlite3 journal.sqlite .recover`."
            ) from error


def _play(row: tuple[Any, ...]) -> Play:
    _, index, seed, agent, kind, refs, parent, depth, text, finish, num_prompt, num_completion, flops, *rest = row
    reward, reward_flops, error = rest
    action = Action(agent, kind, tuple(json.loads(refs)), parent, depth)
    done = None if text is None else Completion(text, finish, num_prompt, num_completion, flops)
    return Play(index, action, done, reward, error, seed, reward_flops)


def _difference(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line for key in keys for line in _difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"  {path}: {json.dumps(old)} -> {json.dumps(new)}"]
