"""Command-line options made from a configuration model."""

import argparse
import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from toa_trl.cli.arguments import (
    Parser,
    check_keys_known,
    config_of,
    help_formatter,
    installed,
)
from toa_trl.cli.describe import default_of, describe_type
from toa_trl.errors import ConfigError
from toa_trl.utils.config import Config, JsonSchemaGenerator, Variables, validate
from toa_trl.utils.files import expand_paths, read_value

ConfigType = TypeVar("ConfigType", bound=Config)
NESTED = re.compile(r"--\w[\w-]*[.\[]")  # an option that names a key inside of a value
EPILOG = (
    "Every option is also a key of the YAML file; options override the file. Mappings and lists "
    "are written as YAML or JSON in one argument, or key by key: --sampling.temperature 0.3. "
    "Nested keys are documented in docs/reference/configuration.md; `toa-trl schema` prints them."
)


def read_config(
    model: type[ConfigType], arguments: Sequence[str] | None = None, description: str | None = None
) -> ConfigType:
    """Return a configuration from `--config FILE` and the options that override it.

    Args:
        model: the configuration; every key is an option.
        arguments: of the command line; by default those of this process.
        description: shown by --help.

    Raises:
        ConfigError: the file cannot be read, or a key or value is invalid.
    """
    given = sys.argv[1:] if arguments is None else arguments
    dotted, plain = _split_dotted([_with_underscores(argument) for argument in given])
    options = vars(new_parser(model, description).parse_args(plain))
    path, settings = config_of(plain)
    for name, value in validate(Variables, settings.pop("env", {}), "env").items():
        os.environ[name] = str(value)
    check_keys_known(settings, model.model_fields, str(path))
    options.pop("config", None)
    properties = option_schemas(model)
    for key, value in options.items():
        settings[key] = expand_paths(_read_option(properties[key], key, value))
    for key, text in dotted:
        value = expand_paths(_read_value(key, text))
        _set_nested(settings, key, value, list(model.model_fields))
    config: ConfigType = validate(model, settings)
    return config


def new_parser(model: type[Config], description: str | None = None) -> Parser:
    """Return a parser that has an option for every key of a configuration."""
    parser = Parser(
        usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        description=installed(description),
        formatter_class=help_formatter(argparse.RawDescriptionHelpFormatter),
        epilog=textwrap.fill(EPILOG, 98),
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of a bundled one")
    properties = option_schemas(model)
    for name, field in model.model_fields.items():
        kind = describe_type(properties[name])
        repeated: dict[str, Any] = {}
        if kind.startswith("list"):
            repeated = {"nargs": "*"}
        elif kind.startswith("true"):
            repeated = {"nargs": "?", "const": "true"}
        description = " ".join((field.description or "").split())
        text = f"{description} [{kind}; {default_of(field)}]"
        parser.add_argument(f"--{name}", metavar="VALUE", help=text.replace("%", "%%"), **repeated)
    return parser


def _with_underscores(argument: str) -> str:
    """Return an option --like-this as --like_this; nested keys stay as they are."""
    option, equals, value = argument.partition("=")
    if not option.startswith("--") or NESTED.match(option):
        return argument
    return f"--{option[2:].replace('-', '_')}{equals}{value}"


def option_schemas(model: type[Config]) -> dict[str, Any]:
    """Return the JSON schemas of the keys, without what entries and arguments allow."""
    schema = model.model_json_schema(schema_generator=JsonSchemaGenerator)
    properties: dict[str, Any] = schema["properties"]
    return properties


def _split_dotted(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the options that name a nested key, such as --sampling.temperature, and the others."""
    dotted, plain, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if not NESTED.match(option):
            plain.append(argument)
            continue
        if not equals:
            if not rest:
                raise ConfigError(f"{option}: a value is missing")
            value = rest.pop(0)
        dotted.append((option[2:], value))
    return dotted, plain


def _set_nested(settings: dict[str, Any], path: str, value: Any, known: Sequence[str]) -> None:
    """Set the value at a path such as sampling.temperature or agents[1].model."""
    parts = [part for part in re.split(r"[.\[\]]+", path) if part]
    parts[0] = parts[0].replace("-", "_")
    check_keys_known([parts[0]], known, "command line")
    parent: Any = settings
    for part in parts[:-1]:
        key = _key_in(parent, part, path)
        child = parent[key] if isinstance(parent, list) else parent.get(key)
        # a copy: the entries of a YAML file may be shared by anchors
        parent[key] = list(child) if isinstance(child, list) else _mapping(child, part, path)
        parent = parent[key]
    parent[_key_in(parent, parts[-1], path)] = value


def _key_in(parent: Any, part: str, path: str) -> Any:
    """Return a part of a path as the key of a mapping or the index of a list that it names."""
    if isinstance(parent, dict):
        return part if part in parent else part.replace("-", "_")
    if not part.isdigit() or int(part) >= len(parent):
        number = f"{len(parent)}, counted from 0" if parent else "none"
        raise ConfigError(f"--{path}: there is no entry {part!r}; there are {number}")
    return int(part)


def _mapping(value: Any, part: str, path: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"--{path}: {part} is {value!r}, which has no keys")
    return dict(value or {})


def _read_option(schema: Mapping[str, Any], key: str, value: Any) -> Any:
    """Return the value of an option: text as it is, everything else read as YAML."""
    if isinstance(value, list):
        values = [_read_option(schema.get("items", {}), key, text) for text in value]
        return values[0] if len(values) == 1 and isinstance(values[0], list) else values
    branches = schema.get("anyOf") or schema.get("oneOf") or [schema]
    if not any(branch.get("type") == "string" and "enum" not in branch for branch in branches):
        return _read_value(key, value)
    is_mapping = len(branches) > 1 and value.lstrip().startswith("{")
    return _read_value(key, value) if is_mapping else value


def _read_value(key: str, text: str) -> Any:
    value = read_value(f"--{key}", text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            return float(value)
    return value
