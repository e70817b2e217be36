"""Options from YAML and the command line, and errors that a user can act on."""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from toa_trl.cli.option_types import check_types
from toa_trl.errors import ConfigError, ToaError
from toa_trl.utils.compat import ignore_own_default
from toa_trl.utils.config import Variables, validate
from toa_trl.utils.config_errors import nearest, unknown_key
from toa_trl.utils.escape import TerminalFormatter, escape_output, for_terminal
from toa_trl.utils.files import expand_paths, read_yaml

WRONG_PATH = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EPERM)
# a command of a clone, and a configuration: an installation has others
OF_CLONE = re.compile(r"(?:(?:python|accelerate launch) )?recipes/(\w+)\.py")
CONFIG_OF_CLONE = re.compile(r"recipes/configs/([\w./-]+)\.yaml")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


@contextmanager
def user_errors() -> Iterator[None]:
    """Report an error in one line and exit.

    The exit code is 2 for a user's mistake, 1 for a run that cannot continue, 130 for Ctrl-C.
    """
    escape_output()
    handler = logging.StreamHandler()
    handler.setFormatter(TerminalFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    ignore_own_default()
    try:
        yield
    except ConfigError as error:
        _exit(f"error: {error}", 2)
    except ToaError as error:
        _exit(f"stopped: {error}", 1)
    except OSError as error:
        if error.errno in WRONG_PATH and error.filename is not None:
            _exit(f"error: {error.filename}: {error.strerror}; choose another path", 2)
        if error.errno not in FULL_DISK:
            raise
        _exit(f"stopped: {error}; finished work is kept, repeat the command to resume", 1)
    except KeyboardInterrupt:
        _exit("stopped: interrupted; finished work is kept, repeat the command to resume", 130)


class Parser(argparse.ArgumentParser):
    """An argument parser with help of 100 columns and errors of one line."""

    def __init__(self, **options: Any) -> None:
        """Create the parser; see `argparse.ArgumentParser`."""
        options.setdefault("formatter_class", help_formatter(argparse.HelpFormatter))
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the error of a command line."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and name the nearest option for one that is unknown."""
        given = sys.argv[1:] if args is None else args
        # a shell expands "~" at the start of a word only
        args = [_expand_value(word) for word in given]
        parsed, rest = super().parse_known_args(args, namespace)
        for argument in rest:
            if argument.startswith("--"):
                option = argument.partition("=")[0]
                close = nearest(option, self._option_string_actions)
                self.error(f"unknown option {option!r}{close}")
        return parsed, rest


def _expand_value(word: str) -> str:
    option, equals, value = word.partition("=")
    return f"{option}={expand_paths(value)}" if equals and option.startswith("--") else word


def help_formatter(kind: type[argparse.HelpFormatter]) -> Any:
    """Return a formatter of 100 columns."""
    return lambda prog: kind(prog, width=100, max_help_position=30)


def installed(description: str | None) -> str:
    """Return a description of a recipe with the commands of an installation.

    As a script of a clone, a recipe keeps those of a clone.
    """
    text = description or ""
    if not sys.argv[0].startswith("toa-trl "):
        return text
    text = OF_CLONE.sub(r"toa-trl \1", text)
    return CONFIG_OF_CLONE.sub(r"\1", text)


def parse(parser: Any, arguments: list[str] | None = None) -> tuple[Any, ...]:
    """Return the dataclasses of a `TrlParser`, from --config and the command line.

    Raises:
        ConfigError: the file cannot be read, a key or option is unknown, or TRL refuses a value.
    """
    arguments = with_bundled_config(sys.argv[1:] if arguments is None else arguments)
    path, settings = config_of(arguments)
    known = [action.dest for action in parser._actions if action.dest != "help"]
    check_keys_known(settings, [*known, "env"], str(path))
    validate(Variables, settings.get("env", {}), "env")
    check_types(settings, parser.dataclass_types, str(path))
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in (*options, "--config"):
            raise ConfigError(f"unknown option {option!r}{nearest(option, options)}; see --help")
    parser.error = _raise_usage_error
    try:
        parsed = parser.parse_args_and_config(arguments)
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error
    # TRL has set the variables as the file has them
    os.environ.update({name: str(value) for name, value in settings.get("env", {}).items()})
    for part in parsed:
        _expand_fields(part)
    return tuple(parsed)


def _expand_fields(part: Any) -> None:
    """Expand "~/" in the fields of a dataclass, and of those in it, such as a mixture's.

    Attributes that are not fields stay as they are: TRL and accelerate set them, and share them,
    such as the configuration of DeepSpeed.
    """
    for field in fields(part):
        value = getattr(part, field.name, None)
        for inner in value if isinstance(value, list) else [value]:
            if is_dataclass(inner) and not isinstance(inner, type):
                _expand_fields(inner)
        if isinstance(value, str | list | dict):
            expanded = expand_paths(value)
            if expanded != value:
                object.__setattr__(part, field.name, expanded)


def check_keys_known(settings: Iterable[object], known: Iterable[str], place: str) -> None:
    """Refuse a key that is not among the known ones.

    Raises:
        ConfigError: names the key and the nearest known one.
    """
    known = list(known)
    for key in settings:
        if key not in known:
            raise ConfigError(f"{place}: {unknown_key(key, known)}")


def config_of(arguments: Sequence[str]) -> tuple[Path | None, dict[str, Any]]:
    """Return the file that --config names, and its content; (None, {}) without one.

    Raises:
        ConfigError: it is missing, or not a mapping.
    """
    name = _value_of(arguments, "config")
    if not isinstance(name, str):
        return None, {}
    path = find_config(name)
    return path, expand_paths(read_yaml(path, place="--config: "))


def option_of(arguments: Sequence[str], key: str) -> Any:
    """Return the value of a key on the command line, or else in --config, before they are parsed.

    Returns:
        The value; True for an option without one; None if the key is not given.

    Raises:
        ConfigError: as of `config_of`.
    """
    value = _value_of(arguments, key)
    return config_of(arguments)[1].get(key) if value is None else value


def key_of(argument: str) -> str:
    """Return the key that an option --like-this, --like_this or --like_this=VALUE sets; or ""."""
    option = argument.partition("=")[0]
    return option[2:].replace("-", "_") if option.startswith("--") else ""


def with_bundled_config(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the path of a bundled configuration in place of its name."""
    arguments = list(arguments)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--config" and equals:
            arguments[index] = f"--config={find_config(value)}"
        elif option == "--config" and index + 1 < len(arguments):
            arguments[index + 1] = str(find_config(arguments[index + 1]))
    return arguments


def find_config(name: str, place: str = "--config") -> Path:
    """Return the file of a configuration: a path, or the name of a bundled one such as demo/sft.

    Raises:
        ConfigError: there is neither.
    """
    return find_bundled(name, "recipes/configs", place)


def find_bundled(name: str, folder: str, place: str) -> Path:
    """Return a path as it is if it exists, or else the YAML file of that name in the package.

    Args:
        name: path, or name without .yaml relative to the folder.
        folder: in the package.
        place: option or key, for the error message.

    Raises:
        ConfigError: there is neither; lists names in the package.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    root = Path(str(files("toa_trl").joinpath(folder)))
    names = [
        file.relative_to(root).with_suffix("").as_posix() for file in sorted(root.rglob("*.yaml"))
    ]
    bundled = name.removesuffix(".yaml")
    if bundled in names:
        return root / f"{bundled}.yaml"
    raise ConfigError(
        f"{place}: {name} cannot be read: no such file, nor one of the bundled configurations "
        f"{_listed(bundled, names)}{nearest(bundled, names)}"
    )


def _listed(name: str, names: Sequence[str]) -> str:
    """Return the names in the folder of a name; where there is none, the folders or all names."""
    folder, slash, _ = name.rpartition("/")
    beside = [known for known in names if slash and known.startswith(f"{folder}/")]
    whole = [f"{known.partition('/')[0]}/..." if "/" in known else known for known in names]
    return ", ".join(beside or dict.fromkeys(whole))


def _value_of(arguments: Sequence[str], key: str) -> Any:
    for index, argument in enumerate(arguments):
        _, equals, value = argument.partition("=")
        if key_of(argument) != key:
            continue
        following = arguments[index + 1 : index + 2]
        if equals:
            return value
        return following[0] if following and not following[0].startswith("--") else True
    return None


def _raise_usage_error(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --help")


def _exit(message: str, code: int) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of a launch reports
        sys.stderr.write(for_terminal(f"{message}\n"))
    sys.exit(code)
