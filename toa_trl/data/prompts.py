"""Reading prompts from JSONL, JSON, CSV, parquet or text files, a folder or the Hub.

Columns: `prompt` (a text or messages), optionally `id` or `prompt_id`, and any others, which become
metadata. A line of a .txt file is a prompt. A single turn without a role, as Arena-Hard has it
([{"content": ...}]), is the user's.
`write_prompts` keeps the prompts of a run as they were read; rows in another form may follow them.
"""

import json
import logging
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from toa_trl.data.csv_file import options_of_texts, read_csv, typed_rows
from toa_trl.errors import ConfigError
from toa_trl.types import MESSAGE_KEYS, Prompt, as_dicts, as_messages
from toa_trl.utils.files import (
    expand_paths,
    file_format,
    read_json,
    read_jsonl,
    read_lines,
    write_json_lines,
)

Read = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
FILES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
TEXTS = ("prompt", "id", "prompt_id", "answer", "response")
"""Columns of CSV files whose values are texts, even if all look like numbers."""
# A message, or a list of them, that was written as text: by json.dumps, str() or pandas.
WRITTEN_MESSAGES = re.compile(
    r"""\s*\[?\s*\{(?=.*["'](?:content|value)["']\s*:).*["'](?:role|from)["']\s*:.*\}\s*\]?\s*""",
    re.DOTALL,
)
KEPT = "toa_trl_prompt"  # the only key of a row that holds a whole `Prompt`
WRITTEN_TOOLS = re.compile(r"\s*\[\s*\{")

logger = logging.getLogger(__name__)


def load_prompts(
    source: str,
    split: str = "train",
    limit: int | None = None,
    read: Read | None = None,
    *,
    config: str | None = None,
    column: str | None = None,
    asked: str = "prompt",
    shuffle_seed: int | None = None,
) -> list[Prompt]:
    """Load the prompts of a file (see `FILES`; also .gz), a folder or a Hub data set.

    Args:
        source: a path, a name on the Hub, or hf://datasets/NAME/FILE for one file of the Hub.
        split: split of a folder or Hub data set.
        limit: number of prompts to use, from the first on; None for all.
        read: converts (place, row) to a row with the column `prompt`; given by a task.
        config: configuration of a folder or Hub data set.
        column: column with the question; by default the one that the task asks about.
        asked: column that the task asks about.
        shuffle_seed: seed of the order of the prompts; None: as in the source.

    Raises:
        ConfigError: the source cannot be read, or a row is invalid; the message names the file and
            the line or row.
    """
    read_here = read_rows(source, split, config, asked, column)
    rows: Iterator[tuple[str, Any]] = ((place, _kept(row)) for place, row in read_here)
    if shuffle_seed is not None:
        shuffled = [(place, _numbered(row, number)) for number, (place, row) in enumerate(rows)]
        random.Random(shuffle_seed).shuffle(shuffled)
        rows = iter(shuffled)
    if column is not None and column != asked:
        rows = ((place, _renamed(place, row, column, asked)) for place, row in rows)
    prompts = as_prompts(rows, limit, read)
    if not prompts:
        raise ConfigError(f"prompts: {source} is empty; it needs at least one row with a prompt")
    return prompts


def read_rows(
    source: str,
    split: str = "train",
    config: str | None = None,
    asked: str = "prompt",
    column: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """Return (place, row) pairs of a file, a folder or a Hub data set.

    Args:
        source: as of `load_prompts`.
        split: of a folder or Hub data set.
        config: of a folder or Hub data set.
        asked: column that the lines of a text file are.
        column: further column of CSV files whose values are texts, as those of `TEXTS` are.

    Raises:
        ConfigError: the source cannot be read.
    """
    path = Path(expand_paths(source))
    texts = {*TEXTS, asked, column or asked}
    is_remote = source.startswith("hf://")
    if config is not None and (is_remote or path.is_file()):
        raise ConfigError(f"prompts_config: {source} is a file, which has no configurations")
    if is_remote:
        return _read_remote(source, path, texts)
    if path.is_file():
        return _read_file(path, asked, texts)
    if file_format(path) in FILES and not path.exists():
        raise ConfigError(f"prompts: {source} does not exist")
    return _read_dataset(source, str(path), config, split, texts)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts to a JSONL file, from which `load_prompts` reads the same ones for any task."""
    rows = (
        {KEPT: {"id": p.id, "messages": as_dicts(p.messages), "metadata": dict(p.metadata)}}
        for p in prompts
    )
    write_json_lines(path, rows, default=str)


def is_prompts_file(path: Path) -> bool:
    """Return whether a file has nothing but rows of `write_prompts`."""
    try:
        return all(isinstance(_kept(row), Prompt) for _, row in read_jsonl(path))
    except (ConfigError, OSError):
        return False


def as_prompts(
    rows: Iterable[tuple[str, Any]], limit: int | None = None, read: Read | None = None
) -> list[Prompt]:
    """Convert (place, row) pairs to prompts.

    A row is a `Prompt`, a text, or a mapping with the columns of a prompts file. A row without an
    id gets its number, from 0. A `Prompt` is used unchanged; other rows are passed to `read`.

    Raises:
        ConfigError: a row is invalid, or an id occurs twice; the message names the place.
    """
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    not_kept = dict[str, str]()  # key of a message -> where it was first seen
    for number, (place, row) in enumerate(islice(rows, limit)):
        prompt = row if isinstance(row, Prompt) else _prompt(place, row, str(number), read)
        for key in () if isinstance(row, Prompt) else _further_keys(row):
            not_kept.setdefault(key, place)
        if prompt.id in prompts:
            raise ConfigError(
                f"{place}: the id {prompt.id!r} is already used at {places[prompt.id]}; "
                "ids must be unique"
            )
        prompts[prompt.id], places[prompt.id] = prompt, place
    for key, place in not_kept.items():
        logger.warning("%s: the key %r of messages is not kept", place, key)
    return list(prompts.values())


def _prompt(place: str, row: Any, default_id: str, read: Read | None) -> Prompt:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise ConfigError(f"{place}: must be an object with the key 'prompt', not {row!r:.80}")
    row = _with_role(row)
    _check_raw(place, row)
    if read is not None:
        row = read(place, row)
    if "prompt" not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise ConfigError(
            f"{place}: the column 'prompt' is missing; columns: {columns}; prompt_column names "
            "another"
        )
    try:
        messages = as_messages(row["prompt"])
    except TypeError as error:
        raise ConfigError(
            f"{place}: 'prompt' must be a text or a list of messages: {error}"
        ) from error
    if not messages or not messages[-1].content.strip():
        raise ConfigError(f"{place}: the prompt is empty")
    if messages[-1].role != "user":
        raise ConfigError(
            f"{place}: the last message must be the user's, not the {messages[-1].role}'s"
        )
    id_column = "id" if row.get("id") is not None else "prompt_id"
    given = row.get(id_column)
    metadata = {key: row[key] for key in row if key not in ("id", "prompt", id_column)}
    prompt = Prompt(default_id if given is None else str(given), messages, metadata)
    try:
        json.dumps(
            [prompt.id, as_dicts(messages), metadata], ensure_ascii=False, default=str
        ).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{place}: contains an unpaired surrogate, which cannot be encoded as UTF-8"
        ) from error
    return prompt


def _check_raw(place: str, row: Mapping[str, Any]) -> None:
    """Refuse what would be asked in another form than the user means.

    Raises:
        ConfigError: the prompt is messages written as text, or the row has tools.
    """
    asked, tools = row.get("prompt"), row.get("tools")
    if isinstance(asked, str) and WRITTEN_MESSAGES.fullmatch(asked):
        raise ConfigError(
            f"{place}: the prompt is messages written as text: {asked[:60]!r}; it must be a list "
            "of messages; if this text is the question, write it as the content of a message"
        )
    if isinstance(tools, str):
        has_tools = WRITTEN_TOOLS.match(tools) is not None  # JSON text, which TRL reads too
    else:
        has_tools = isinstance(tools, list) and any(isinstance(tool, Mapping) for tool in tools)
    if has_tools:
        raise ConfigError(
            f"{place}: the column 'tools' offers tools, but responses are texts, so that no agent "
            "can call one; leave out the row, or remove or rename the column"
        )


def _with_role(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row whose prompt is a text where it was a single turn without a role."""
    turns = row.get("prompt")
    if not isinstance(turns, list) or len(turns) != 1:
        return row
    (turn,) = turns
    if isinstance(turn, Mapping) and turn.get("role") is None:
        turn = turn.get("content")
    return {**row, "prompt": turn} if isinstance(turn, str) else row


def _further_keys(row: Any) -> list[str]:
    """Return the keys of a row's messages that have a value, but are not kept."""
    asked = row.get("prompt") if isinstance(row, Mapping) else None
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        return []
    found: dict[str, None] = {}
    for message in asked:
        if isinstance(message, Mapping):
            found |= {key: None for key in message if message[key] is not None}
    return [key for key in found if key not in MESSAGE_KEYS]


def _kept(row: Any) -> Any:
    """Return the `Prompt` that a row of `write_prompts` holds, or the row of another form."""
    if not isinstance(row, Mapping) or row.keys() != {KEPT}:
        return row
    try:
        prompt = row[KEPT]
        return Prompt(str(prompt["id"]), as_messages(prompt["messages"]), dict(prompt["metadata"]))
    except (KeyError, TypeError, ValueError):  # edited by hand
        return row


def _numbered(row: Any, number: int) -> Any:
    """Return a row without an id with its number in the source, which a shuffle would change."""
    if not isinstance(row, Mapping) or any(row.get(key) is not None for key in ("id", "prompt_id")):
        return row
    return {**row, "id": number}


def _renamed(place: str, row: Any, column: str, asked: str) -> Any:
    """Return a row whose question is in the column that the task asks about."""
    if not isinstance(row, Mapping):
        return row
    if row.get(column) is None:
        columns = ", ".join(map(str, row)) or "none"
        raise ConfigError(f"{place}: prompt_column: {column!r} is missing; columns: {columns}")
    if row.get(asked) is not None:
        raise ConfigError(
            f"{place}: prompt_column: the row has a column {asked!r} too, which {column!r} would "
            "replace; rename one of them"
        )
    return {**{key: row[key] for key in row if key != column}, asked: row[column]}


def _read_file(path: Path, asked: str, texts: Collection[str]) -> Iterator[tuple[str, Any]]:
    kind = file_format(path)
    if kind == ".jsonl":
        return read_jsonl(path)
    if kind == ".json":
        return read_json(path)
    if kind == ".txt":
        return _read_text(path, asked)
    if kind == ".csv":
        return read_csv(path, texts)
    if kind not in FILES:
        raise ConfigError(f"prompts: {path} is none of {', '.join(FILES)}, which may end in .gz")
    return _read_dataset(str(path), kind[1:], None, "train", texts, data_files=str(path))


def _read_remote(source: str, path: Path, texts: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Read one file of a Hub data set; some data sets are scripts, which no longer load."""
    kind = file_format(path)
    readers = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if kind not in readers:
        raise ConfigError(f"prompts: {source} is none of {', '.join(readers)}")
    return _read_dataset(source, readers[kind], None, "train", texts, data_files=source)


def _read_text(path: Path, asked: str) -> Iterator[tuple[str, Any]]:
    for place, line in read_lines(path):
        try:
            yield place, {asked: line.decode("utf-8-sig").strip()}
        except UnicodeDecodeError as error:
            raise ConfigError(f"{place}: not UTF-8: {error}") from error


def _read_dataset(
    source: str, name: str, config: str | None, split: str, texts: Collection[str], **options: Any
) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        written = None
        if name not in ("json", "parquet"):
            written = options_of_texts(name, config, **options)
        dataset = load_dataset(name, config, split=split, **options, **(written or {}))
    except (OSError, ValueError, DatasetGenerationError, ImportError) as error:
        # such as an unknown split, no network, or a file that is not parquet
        lines = str(error).strip().splitlines()
        reason = lines[0]
        if reason.startswith("Config name is missing"):
            reason = f"name a configuration with prompts_config. {' '.join(lines[1:2])}"
        raise ConfigError(f"prompts: cannot read {source}: {reason}") from error
    rows = dataset if written is None else typed_rows(dataset.to_dict(), texts)
    for number, row in enumerate(rows):
        yield f"{source}, row {number}", row
