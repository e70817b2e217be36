"""Reading prompts: JSONL, parquet, a folder or a Hub data set; columns `prompt` (text or messages), optional `id`, others."""

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
    """The prompts of a .jsonl or .parquet file, a folder or a Hub data set.

    Args:
        source: path, or a name on the Hub.
        split: of a folder or Hub data set.
        limit: take the first so many.
        read: (place, row) -> the row with the column prompt, as a task has it.

    Raises:
        ConfigError: it cannot be read, or a row is no prompt; the message names the file and the line or row.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".json") and path.is_file():
        rows = read_jsonl(path)
    elif path.suffix in (".jsonl", ".json", ".parquet") and not path.exists():
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
    """Prompts from (place, row) pairs, where a row is a `Prompt`, a text, or a mapping with the columns of a prompts file.

    A row without an id gets its number, from 0. A `Prompt` is taken as it is; all others go through `read`.

    Raises:
        ConfigError: a row is no prompt, or two have one id; the message names the place.
    """
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    for number, (place, row) in enumerate(islice(rows, limit)):
        prompt = row if isinstance(row, Prompt) else _prompt(place, row, str(number), read)
        if prompt.id in prompts:
            raise ConfigError(
                f"{place}: the id {prompt.id!r} is there already, at {places[prompt.id]}; ids are unique"
            )
        prompts[prompt.id], places[prompt.id] = prompt, place
    return list(prompts.values())


def _prompt(place: str, row: Any, default_id: str, read: Read | None) -> Prompt:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise ConfigError(f"{place}: an object with a key 'prompt' is needed, not {row!r:.80}")
    if read is not None:
        row = read(place, row)
    if "prompt" not in row:
        raise ConfigError(
            f"{place}: the column 'prompt' is missing; there are: {', '.join(map(str, row)) or 'none'}"
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
    given = row.get("id")
    metadata = {key: value for key, value in row.items() if key not in ("id", "prompt")}
    prompt = Prompt(default_id if given is None else str(given), messages, metadata)
    try:
        json.dumps(
            [prompt.id, as_dicts(messages), metadata], ensure_ascii=False, default=str
        ).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: it holds half a surrogate pair, which is no text") from error
    return prompt


def _read_dataset(source: str, split: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        if source.endswith(".parquet"):
            dataset = load_dataset("parquet", data_files=source, split="train")
        else:
            dataset = load_dataset(source, split=split)
    except (OSError, ValueError, DatasetGenerationError, ImportError) as error:
        # "Couldn't find any data file", an unknown split, no network, a file that is not parquet, ...
        raise ConfigError(
            f"prompts: {source} could not be read: {str(error).strip().splitlines()[0]}"
        ) from error
    for number, row in enumerate(dataset):
        yield f"{source}, row {number}", row
