"""What a run's configuration only names: the source of own code, and the files of local models.

Their digests are part of the run's identity, so that a resume notices when a reward function or the
weights under a path have changed. They depend on contents alone: copies have the same digests.
"""

import ast
import functools
import hashlib
import inspect
import json
import logging
import os
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from toa_trl.agents import ENGINES
from toa_trl.errors import ConfigError
from toa_trl.rewards import KINDS, RewardModel
from toa_trl.sampling.arguments import MISSING, arguments_of, as_plain, is_plain
from toa_trl.sampling.identity import OPERATIONAL_KEYS, decisive, digest_of_values
from toa_trl.search import SEARCHES
from toa_trl.tasks import TASKS
from toa_trl.utils.registry import load_object

logger = logging.getLogger(__name__)

NAMES: dict[str, Mapping[str, str]] = {
    "search": SEARCHES,
    "task": TASKS,
    "engine": ENGINES,
    "kind": KINDS,
    "function": {},
}
"""Keys whose value names a class or function."""
PATHS = ("model", "path")
"""Keys whose value may be a local file or folder."""
MODEL_FILES = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.json", "*.jinja", "*.txt"),
    *("*.model", "*.tiktoken", "*.py"),
)
NOT_LOADED = ("trainer_state.json", "training_args.bin", "*_results.json", "optimizer.*")
"""Files that a training leaves beside a model."""
WHOLE_BYTES = 64 << 20  # a larger file is sampled: no training leaves all blocks unchanged
BLOCK_BYTES = 64 << 10
STDLIB = sysconfig.get_path("stdlib")
MAX_DEPTH = 12  # of objects in objects, which may hold each other
NUM_BLOCKS = 256


def contents_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the digests of everything that a configuration only names, by its place.

    Args:
        parts: entries as the user wrote them or objects, such as {"search": "my:Search", "agents":
            {...}, "reward": {...}}.
    """
    found: dict[str, Any] = {}
    for key, part in parts.items():
        if key == "task" and isinstance(part, Mapping):
            part = part.get("name")  # its templates are part of its identity
        _collect(key, key, part, found)
    return found


def _collect(place: str, key: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for inner_key, inner in value.items():
            if inner_key not in OPERATIONAL_KEYS:
                _collect(f"{place}.{inner_key}", str(inner_key), inner, found)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _collect(f"{place}[{number}]", key, inner, found)
    elif isinstance(value, str):
        if key in PATHS and os.path.exists(value):
            found[f"{place} ({value})"] = digests_of_files(Path(value))
        target = NAMES[key].get(value, value) if key in NAMES else ""
        if ":" in target:
            _collect_source(f"{place} ({value})", _loaded(place, target), found)
    elif value is not None and not isinstance(value, bool | int | float):
        thing = _defined(value)
        _collect_source(f"{place} ({thing.__qualname__})", thing, found)
        parts = value.parts if isinstance(value, RewardModel) else {}
        for name, part in parts.items():
            _collect(f"{place}.{name}", name, part, found)
            found[f"{place}.{name}"] = digest_of_values(decisive(part))
        for name, argument in arguments_of(value).items():
            if name not in parts and name not in OPERATIONAL_KEYS:
                _collect_argument(f"{place}.{name}", name, as_plain(argument), found)


def _collect_argument(place: str, name: str, value: Any, found: dict[str, Any]) -> None:
    """Add an argument that an object was built with."""
    is_container = isinstance(value, dict | list)
    if is_plain(value):
        found[place] = digest_of_values(decisive(value))
        if not is_container:
            _collect(place, name, value, found)  # the files of a model
    elif is_container:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in OPERATIONAL_KEYS:
                _collect_argument(f"{place}[{key}]", name, inner, found)
    elif value is not MISSING and _is_own(_defined(value)) and place.count(".") < MAX_DEPTH:
        _collect(place, name, value, found)
    else:
        logger.warning(
            "%s: its value does not belong to the run's identity, because it cannot be read or "
            "compared; if it decides results, define the property `identity`",
            place,
        )


def _is_own(thing: Any) -> bool:
    """Return whether a class or function is the user's or this package's."""
    module = getattr(thing, "__module__", None) or ""
    path = _file_of(module)
    is_ours = module.partition(".")[0] in ("toa_trl", "__main__")
    return is_ours or (path is not None and not _is_installed(path))


def _loaded(place: str, target: str) -> Any:
    try:
        return load_object(place, target)
    except ConfigError:  # a key of an own part that has another meaning there
        return None


def _collect_source(place: str, thing: Any, found: dict[str, Any]) -> None:
    digest = None if thing is None else digest_of_source(thing)
    if digest is not None:
        found[place] = digest


def digests_of_files(path: Path) -> dict[str, str]:
    """Return the digests of the files that decide what a local model does, by name.

    An adapter includes its base model, if that is local. README.md and what a training leaves
    beside a model do not count.
    """
    if not path.is_dir():
        return {path.name: _digest_of_file(path)}
    digests = {}
    for file in sorted(path.iterdir()):
        if not file.is_file() or any(fnmatch(file.name, pattern) for pattern in NOT_LOADED):
            continue
        if any(fnmatch(file.name, pattern) for pattern in MODEL_FILES):
            digests[file.name] = _digest_of_file(file)
    base = _base_of_adapter(path)
    if base is not None:
        digests |= {f"{base}/{name}": digest for name, digest in digests_of_files(base).items()}
    return digests


def _base_of_adapter(path: Path) -> Path | None:
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base = Path(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):  # not an adapter
        return None
    return base if base.is_dir() and base.resolve() != path.resolve() else None


def _digest_of_file(path: Path) -> str:
    stat = path.stat()
    return _cached_digest(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _cached_digest(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for number in range(NUM_BLOCKS):
                file.seek((size - BLOCK_BYTES) * number // (NUM_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]


def digest_of_source(thing: Any) -> str | None:
    """Return 16 hexadecimal digits of the source of a function, a class or an object's class.

    They cover the functions, classes and constants that its code names, in its module and in other
    modules of the user's. Comments and layout do not count.

    Returns:
        None for a part of this package, and where there is no source.
    """
    thing = _defined(thing)
    module = getattr(thing, "__module__", None) or ""
    if module.partition(".")[0] in ("toa_trl", "builtins"):
        return None
    try:
        # that of a class takes a while to find, and not every function has a hash
        source = _source_of_class if inspect.isclass(thing) else inspect.getsource
        text = textwrap.dedent(source(thing))
    except (OSError, TypeError):
        return None
    try:
        tree = _parsed(text)
    except SyntaxError:  # a lambda within a longer statement
        return digest_of_values(text)
    closure = _Closure(module.partition(".")[0])
    closure.follow(module, tree)
    return digest_of_values(_unparsed(tree), closure.sources)


# The parts of many runs of one process are the same.
_source_of_class = functools.lru_cache(maxsize=256)(inspect.getsource)
_parsed = functools.lru_cache(maxsize=256)(ast.parse)
_unparsed = functools.lru_cache(maxsize=4096)(ast.unparse)


def _defined(thing: Any) -> Any:
    """Return the function or class behind a partial, a decorator, a method or an object."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = inspect.unwrap(thing)
    return thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)


class _Closure:
    """The definitions that a piece of code needs, found in the source without running it.

    Args:
        package: top-level package of the code, whose modules are the user's wherever they are
            installed.
    """

    def __init__(self, package: str) -> None:
        self.sources: dict[str, str] = {}  # "module.name" -> source
        self._package = package
        self._definitions: dict[str, dict[str, list[ast.stmt]]] = {}

    def follow(self, module: str, tree: ast.AST) -> None:
        """Add what the code of a module names."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                self._add(module, node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._follow_import(module, node, None)

    def _add(self, module: str, name: str) -> None:
        key = f"{module}.{name}"
        definitions = self._of(module)
        if key in self.sources or name not in definitions:
            return
        statements = definitions[name]
        self.sources[key] = "\n".join(map(_unparsed, statements))
        for statement in statements:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._follow_import(module, statement, name)
            else:
                self.follow(module, statement)

    def _follow_import(
        self, module: str, statement: ast.Import | ast.ImportFrom, name: str | None
    ) -> None:
        """Add what an import binds to `name`, or all that it binds."""
        for alias in statement.names:
            if name not in (None, "*", alias.asname or alias.name.partition(".")[0]):
                continue
            if isinstance(statement, ast.Import):
                self._add_all(alias.name)
                continue
            source = _absolute(module, statement)
            if alias.name == "*":
                self._add_all(source)
            elif source != module and alias.name in self._of(source):
                self._add(source, alias.name)
            else:  # a module; in the package's own file it is defined by this very import
                self._add_all(f"{source}.{alias.name}")

    def _add_all(self, module: str) -> None:
        for name in self._of(module):
            self._add(module, name)

    def _of(self, module: str) -> dict[str, list[ast.stmt]]:
        """Return the top-level statements of a user's module by the names that they define."""
        if module not in self._definitions:
            self._definitions[module] = {}
            path = _file_of(module)
            own = module.partition(".")[0] == self._package
            if path is not None and (own or not _is_installed(path)):
                try:
                    tree = _parsed(path.read_text(encoding="utf-8"))
                except (OSError, ValueError, SyntaxError):
                    return {}
                for name, statement in _defined_names(tree.body):
                    self._definitions[module].setdefault(name, []).append(statement)
        return self._definitions[module]


def _absolute(module: str, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
    try:
        return resolve_name("." * statement.level + (statement.module or ""), package)
    except ImportError:
        return ""


def _file_of(module: str) -> Path | None:
    """Return the .py file of a module; None if there is none, or it belongs to this package."""
    if not module or module.partition(".")[0] == "toa_trl":
        return None
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None and module not in sys.modules:
        try:
            spec = find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec else None
    return Path(file) if file and file.endswith(".py") else None


def _is_installed(path: Path) -> bool:
    parts = path.parts
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return path.is_relative_to(STDLIB)


def _defined_names(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0], statement
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for field in ("body", "orelse", "finalbody"):
                yield from _defined_names(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _defined_names(handler.body)
        else:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id, statement
