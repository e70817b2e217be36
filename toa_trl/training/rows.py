"""Check every row of a dataset for values that cannot be trained on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toa_trl.errors import ConfigError

MESSAGES = "a list of messages"
ALWAYS_MESSAGES = ("messages", "conversations")
WANTED = ("completion", "chosen")  # columns whose text is learned
MAX_NAMED = 5


def check_rows(place: str, rows: Any, columns: Sequence[str]) -> Any:
    """Check each row; of a stream, each when it is read.

    TRL infers the format from one row, and fails or drops a row of another form later, with a
    traceback or with another reason.

    Returns:
        The rows.

    Raises:
        ConfigError: names the first row that cannot be used, the reason, and how many there are.
    """
    from datasets import Dataset

    if not isinstance(rows, Dataset):

        def check(row: Mapping[str, Any], number: int) -> dict[str, Any]:
            if fault := fault_of(row, columns):
                raise ConfigError(f"{place}: in row {number + 1} {fault}")
            return {}

        return rows.map(check, with_indices=True, features=rows.features)
    faults: dict[int, str] = {}
    for number, row in enumerate(rows_of(rows, columns), 1):
        if fault := fault_of(row, columns):
            faults[number] = fault
    if faults:
        first = min(faults)
        at = "the first row" if first == 1 else f"row {first} of {len(rows)}"
        named = ", ".join(map(str, [*faults][:MAX_NAMED]))
        more = ", ..." if len(faults) > MAX_NAMED else ""
        which = "" if len(faults) == 1 else f": {named}{more}"
        raise ConfigError(
            f"{place}: in {at} {faults[first]} ({len(faults)} of {len(rows)} rows cannot be "
            f"used{which})"
        )
    return rows


def rows_of(rows: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield these columns of a datasets.Dataset row by row; faster than its own iterator."""
    for batch in rows.select_columns([*columns]).iter(batch_size=1000):
        for values in zip(*(batch[name] for name in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def fault_of(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """Return why a row cannot be trained on, such as "completion is null"; None if it can be."""
    kinds: dict[str, str | None] = {}
    for name in columns:
        value = row[name]
        if value is None:
            return f"{name} is null"
        if name == "label":
            if not isinstance(value, (bool, int)):
                return f"label is {value!r:.60}, and must be true or false"
            continue
        if isinstance(value, list) and not value:
            return f"{name} is an empty list"
        if name == "input_ids":
            continue
        kinds[name] = kind_of(value)
        if kinds[name] == MESSAGES:
            fault = next(filter(None, map(_message_fault, value)), None)
            if fault:
                return f"{name} has {fault}"
        elif isinstance(value, str) and _is_json_messages(value):
            return f"{name} is a JSON text of messages; a list of messages is needed"
        elif name in ALWAYS_MESSAGES:
            return f"{name} is {kinds[name] or f'{value!r:.60}'}; a list of messages is needed"
        if name in WANTED and row.get("label") is not False and _is_blank(value):
            return f"{name} is empty"
    if None in kinds.values() or len(set(kinds.values())) > 1:
        values = [f"{name} is {kind or f'{row[name]!r:.60}'}" for name, kind in kinds.items()]
        return f"{', '.join(values)}; all texts, or all lists of {{role, content}} are needed"
    return None


def kind_of(value: Any) -> str | None:
    """Return "a text", "a list of messages", or None for anything else."""
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return MESSAGES
    return None


def _message_fault(message: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a message of {role, content}, or of {from, value}."""
    role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str) or not role:
        return f"a message whose {role_key} is {_shown(role)}"
    if content is None and message.get("tool_calls"):
        return None
    if isinstance(content, str) or (isinstance(content, list) and content):
        return None
    return f"a message of {role} whose {content_key} is {_shown(content)}"


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r:.60}"


def _is_json_messages(text: str) -> bool:
    if not text.lstrip().startswith("[{"):
        return False
    try:
        parts = json.loads(text)
    except ValueError:
        return False
    return all(isinstance(part, dict) and {"role", "from"} & set(part) for part in parts)


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    last = value[-1] if kind_of(value) == MESSAGES else {}
    content = last.get("content", last.get("value"))
    return isinstance(content, str) and not content.strip() and not last.get("tool_calls")
