"""Reading prompts from JSONL, parquet, CSV, a folder or the Hub.

Columns: `prompt` (a text or messages), optionally `id`, and any others, which become metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.types import Prompt, as_dicts, as_messages
from toa_trl.utils.files import read_jsonl

Read = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


def load_prompts(
    source: str, split: str = "train", limit: int | None = None, read: Read | None = None
) -> list[Prompt]:
    """Load the prompts of a .jsonl, .parquet or .csv file, a folder or a Hub data set.

    Args:
        source: a path, or a name on the Hub.
        split: split of a folder or Hub data set.
        limit: number of prompts to use, from the first on; None for all.
        read: converts (place, row) to a row with the column `prompt`; given by a task.

    Raises:
        ConfigError: the source cannot be read, or a row is invalid; the message names the file and
            the line or row.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".json") and path.is_file():
        rows = read_jsonl(path)
    elif path.suffix in (".jsonl", ".json", ".parquet", ".csv") and not path.exists():
        raise ConfigError(f"prompts: {source} does not exist")
    else:
        rows = _read_dataset(source, split)
    prompts = as_prompts(rows, limit, read)
    if not prompts:
        raise ConfigError(f"prompts: {source} is empty; it needs at least one row with a prompt")
    return prompts


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
    for number, (place, row) in enumerate(islice(rows, limit)):
        prompt = row if isinstance(row, Prompt) else _prompt(place, row, str(number), read)
        if prompt.id in prompts:
            raise ConfigError(
                f"{place}: the id {prompt.id!r} is already used at {places[prompt.id]}; "
                "ids must be unique"
            )
        prompts[prompt.id], places[prompt.id] = prompt, place
    return list(prompts.values())


def _prompt(place: str, row: Any, default_id: str, read: Read | None) -> Prompt:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise ConfigError(f"{place}: must be an object with the key 'prompt', not {row!r:.80}")
    if read is not None:
        row = read(place, row)
    if "prompt" not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise ConfigError(f"{place}: the column 'prompt' is missing; columns: {columns}")
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
    given = row.get("id")
    metadata = {key: value for key, value in row.items() if key not in ("id", "prompt")}
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


def _read_dataset(source: str, split: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        if source.endswith((".parquet", ".csv")):
            kind = source.rpartition(".")[2]
            dataset = load_dataset(kind, data_files=source, split="train")
        else:
            dataset = load_dataset(source, split=split)
    except (OSError, ValueError, DatasetGenerationError, ImportError) as error:
        # such as an unknown split, no network, or a file that is not parquet
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"prompts: cannot read {source}: {reason}") from error
    for number, row in enumerate(dataset):
        yield f"{source}, row {number}", row
