"""What the recipes share: options from YAML and command line, and errors that a user can act on."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError, ToaError
from toa_trl.utils.files import read_yaml
from toa_trl.utils.registry import check_keys


@contextmanager
def user_errors() -> Iterator[None]:
    """Say an error in one line, and exit: 2 for a user's mistake, 1 for a run that could not go on, 130 for Ctrl-C."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        yield
    except ConfigError as error:
        _exit(f"error: {error}", 2)
    except ToaError as error:
        _exit(f"stopped: {error}", 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        _exit(f"stopped: {error}; what was done so far is kept, and the same command goes on", 1)
    except KeyboardInterrupt:
        _exit("stopped as asked; what was done so far is kept, and the same command goes on", 130)


def parse(parser: Any, arguments: list[str] | None = None) -> tuple[Any, ...]:
    """The dataclasses of a `TrlParser`, from --config and the command line.

    Raises:
        ConfigError: the YAML file is missing or no mapping, or a key in it is not known (the nearest known one is named).
        SystemExit: with code 2, as argparse does: a value of the command line is of another type.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    path, config = config_of(arguments)
    known = [
        action.dest for action in parser._actions if action.dest != "help"
    ]  # TrlParser goes by these as well
    check_keys(str(path), config, [*known, "env"])
    given = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    check_keys(
        "command line",
        given,
        [*known, *(word[2:] for word in parser._option_string_actions), "config"],
    )
    try:
        return tuple(parser.parse_args_and_config(arguments))
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error


def config_of(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """The file that --config names, and what it holds; (None, {}) without one.

    Raises:
        ConfigError: it is missing, or no mapping.
    """
    if "--config" not in arguments[:-1]:
        return None, {}
    path = Path(arguments[arguments.index("--config") + 1])
    return path, read_yaml(path, place="--config: ")


def option_of(arguments: list[str], key: str) -> Any:
    """What the command line, or else --config, says of one key, before they are parsed; None: nothing.

    Raises:
        ConfigError: as of `config_of`.
    """
    for at, word in enumerate(arguments):
        name, given, value = word.partition("=")
        if name in (f"--{key}", f"--{key.replace('_', '-')}"):
            return (
                value
                if given
                else next((each for each in arguments[at + 1 : at + 2] if each[:2] != "--"), True)
            )
    return config_of(arguments)[1].get(key)


def structure(key: str, value: Any) -> Any:
    """A mapping or list as it comes from YAML; on the command line it is written as YAML or JSON in one argument.

    Raises:
        ConfigError: the text is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{key}: neither YAML nor JSON: {value}") from error


def _exit(message: str, code: int) -> None:
    if (
        os.environ.get("LOCAL_RANK", "0") == "0"
    ):  # one process speaks for all that a launch has on this machine
        print(message, file=sys.stderr)  # noqa: T201
    sys.exit(code)
