"""Small files: atomic writes, and YAML and JSONL with errors in one line."""

import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.utils.redaction import without_secrets

ROOT = Path(__file__).parents[2]  # the folder that holds the package
BUNDLED = "toa_trl/demo/"


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new contents, never a part."""
    fresh = fresh_path(path)
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def write_json(path: Path, content: Any, *, indent: int | None = 2, **options: Any) -> None:
    """Write a JSON file atomically, with the options of `json.dumps`."""
    replace_text(path, json.dumps(content, indent=indent, **options) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any], **options: Any) -> None:
    """Write a JSONL file atomically, with the options of `json.dumps`."""
    lines = [json.dumps(row, ensure_ascii=False, **options) + "\n" for row in rows]
    replace_text(path, "".join(lines))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text from outside.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing or has something else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """Return nested mappings and lists in which `change` has replaced every other value."""
    if isinstance(value, Mapping):
        return {key: map_leaves(change, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_leaves(change, inner) for inner in value]
    return change(value)


def expand_paths(value: Any) -> Any:
    """Return a value in which every text that names a path of another folder does so in full.

    "~/" is the user's home folder. "toa_trl/demo/", where the working directory has no such path,
    is the bundled world: bundled configurations work outside of a clone, too. Entries of mappings
    and lists are expanded as well; other values are returned as they are.
    """
    return map_leaves(_expanded, value)


def _expanded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "~" or value.startswith("~/"):
        return os.path.expanduser(value)
    is_bundled = value.startswith(BUNDLED) and not os.path.exists(value)
    return str(ROOT / value) if is_bundled else value


def as_configured(path: str) -> str:
    """Return a path of the bundled world as configurations name it, and others as they are."""
    inside = path.removeprefix(f"{ROOT}{os.sep}")
    return inside if inside.startswith(BUNDLED) else path


def without_nan(value: Any) -> Any:
    """Return a JSON value in which NaN and infinities, which JSON does not have, are None."""
    return map_leaves(_finite, value)


def _finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return without_nan(list(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML silently uses the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # before merge keys ("<<") are resolved, which may repeat a key
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            earlier = first.setdefault((key.tag, key.value), key)
            if earlier is not key:
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice, "
                    f"first in line {earlier.start_mark.line + 1}"
                )
        return node


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        ValueError: it is not YAML, a key is given twice, a text cannot be encoded, or a value
            contains itself; the message is one line.
    """
    try:
        content = yaml.load(text, _UniqueKeyLoader)  # a subclass of SafeLoader
        _check_texts(content)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or an alias contains itself") from error
    return content


def _check_texts(content: Any) -> None:
    """Raise ValueError for a text that no file, command or request could hold."""
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{content!r} contains an unpaired surrogate, which cannot be encoded as UTF-8"
            ) from error
    elif isinstance(content, Mapping):
        for key, value in content.items():
            _check_texts(key)
            _check_texts(value)
    elif isinstance(content, list):
        for value in content:
            _check_texts(value)


def read_value(place: str, text: str) -> Any:
    """Return the value that a text writes as YAML or JSON.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return load_yaml(text)
    except ValueError as error:
        said = without_secrets(f"{text}: {error}")
        raise ConfigError(f"{place}: neither YAML nor JSON: {said}") from error


def fresh_path(path: Path, state: str = "new") -> Path:
    """Return the name of a file or folder that is being written, or replaced ("old").

    No file of a user has such a name, so what a killed process left under it may be deleted.
    """
    return path.with_name(f".{path.name}.toa_trl-{state}")


def replace_path(fresh: Path, path: Path) -> None:
    """Move a file or folder to its place; a folder that was there is never partly deleted."""
    old = fresh_path(path, "old")
    if path.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(fresh, path)
    shutil.rmtree(old, ignore_errors=True)


def read_yaml(path: Path, *, place: str = "", remedy: str = "") -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Args:
        path: the file.
        place: start of the message if the file cannot be read, such as "--config: ".
        remedy: end of the message if the file cannot be read or is no mapping, such as
            "; start it first".

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not contain a mapping.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{place}{path} cannot be read: {error.strerror}{remedy}") from error
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must contain keys and values{remedy}")
    return content


def read_configuration(run_dir: Path) -> dict[str, Any]:
    """Return the content of run.yaml in a run's folder; empty if it is missing.

    Raises:
        ConfigError: see `read_yaml`.
    """
    path = run_dir / "run.yaml"
    return read_yaml(path) if path.is_file() else {}


def file_format(path: Path) -> str:
    """Return the extension in lower case, without a final .gz: ".jsonl" for DATA.JSONL.gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


@contextmanager
def open_data(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, decompressed if its name ends with .gz.

    Raises:
        ConfigError: inside the block, when the file cannot be decompressed.
    """
    compressed = path.suffix.lower() == ".gz"
    with gzip.open(path) if compressed else path.open("rb") as file:
        try:
            yield file  # type: ignore[misc]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigError(f"{path}: cannot decompress it: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (place, line) of every line that is not blank; the place reads "file, line 3".

    Raises:
        ConfigError: the file cannot be decompressed.
    """
    with open_data(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {number}", line


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of every line that is not blank; the place reads "file, line 3".

    Raises:
        ConfigError: a line is not JSON.
    """
    # not read through datasets, whose errors do not name the line
    for place, line in read_lines(path):
        try:
            value = parse_json(line)
        except ValueError as error:  # UnicodeDecodeError is one too
            raise ConfigError(
                f"{place}: not JSON ({error}); each line must be a JSON object"
            ) from error
        yield place, value


def read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of every line of JSONL, or of every item of one JSON array.

    Raises:
        ConfigError: the file, or a line of it, is not JSON.
    """
    with open_data(path) as file:
        is_array = file.read(99).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_array:
        yield from read_jsonl(path)
        return
    try:
        with open_data(path) as file:
            rows = parse_json(file.read())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}, item {number}", row
