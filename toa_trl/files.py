"""Small files: written whole or not at all, and YAML whose mistakes are said in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever sees it sees all of it, or the one before."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def read_yaml(path: Path, *, place: str = "", remedy: str = "") -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: of the file.
        place: what the message begins with where there is no such file, e.g. "--config: ".
        remedy: what it ends with there, and where the file holds something else, e.g. "; start it first".

    Raises:
        ConfigError: it cannot be read, is not YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{place}{path} cannot be read: {error.strerror}{remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values{remedy}")
    return content
