"""Find classes by name: built in, from an entry point, or as "package.module:name"."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, WrapValidator
from pydantic_core import CoreSchema, core_schema

from toa_trl.errors import ConfigError
from toa_trl.utils.config import Config, JsonSchemaGenerator, call_validated, model_of, validate
from toa_trl.utils.config_errors import explained, nearest, nested
from toa_trl.utils.files import expand_paths

T = TypeVar("T")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
LATER = "later"  # key of a JSON schema: a part that `json_schema` fills in, as it needs imports


@dataclass(frozen=True, eq=False)
class Registry(Mapping[str, str], Generic[T]):
    """Mapping of the names that a configuration can use to "package.module:name".

    An instance also annotates a field of a configuration model, such as
    `Annotated[dict[str, Any], ENGINES]`: the entry is validated against the constructor of the
    class that it names, and stays a mapping.
    """

    key: str
    """Key of an entry that names the class, such as "engine"."""
    built_in: Mapping[str, str]
    """Name -> "package.module:name"; imported when it is used."""
    group: str
    """Entry point group of other packages, such as "toa_trl.agents"."""
    common: type[Config] = Config
    """Keys that every entry may have beside the constructor's arguments."""
    base: "Registry[T] | None" = None
    """Registry whose names this one has too."""

    @cached_property
    def targets(self) -> dict[str, str]:
        """All names, the built-in ones first, with what they stand for."""
        others = {point.name: point.value for point in entry_points(group=self.group)}
        return {**others, **(self.base.targets if self.base else {}), **self.built_in}

    def __getitem__(self, name: str) -> str:
        """Return "package.module:name" of a name."""
        if name in self.built_in:  # `targets` reads what every installed package says of itself
            return self.built_in[name]
        if self.base is not None and name in self.base.built_in:
            return self.base.built_in[name]
        return self.targets[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.targets)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.targets)

    def __eq__(self, other: object) -> bool:
        """Compare by identity, not as mappings."""
        return self is other

    def __hash__(self) -> int:
        """Return a hash that is equal for equal registries."""
        return hash((self.key, self.group))

    def load(self, name: object, place: str = "") -> Callable[..., T]:
        """Return the class or function for a name.

        Raises:
            ConfigError: the name is unknown, or "package.module:name" cannot be imported.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{_at(place)}the {self.key} must be a name, not {name!r}")
        target = self.get(name)
        if target is None and ":" not in name:
            known = ", ".join(self.targets)
            raise ConfigError(
                f"{_at(place)}unknown {self.key} {name!r}; choose one of {known}, "
                f"or write package.module:name{nearest(name, self.targets)}"
            )
        factory: Callable[..., T] = load_object(place or self.key, target or name)
        return factory

    def build(self, place: str, entry: Mapping[str, Any], *args: Any) -> T:
        """Build what an entry describes; keys that all entries share are not passed on.

        Raises:
            ConfigError: a key is unknown or missing, or a value is invalid.
        """
        checked = self.check(expand_paths(entry), place, len(args))
        factory = self.load(entry[self.key], place)
        return call_validated(place, factory, *args, checked=checked, common=self.common)

    def model(self, name: str, skip: int = 0) -> type[Config]:
        """Return the configuration model of the entries with this name."""
        return model_of(self.load(name), skip, self.common)

    def check(self, entry: object, place: str = "", skip: int = 0) -> Config:
        """Return the validated entry, as a model, without building anything.

        Raises:
            ConfigError: see `build`.
        """
        model, keys = self._model_and_keys(entry, place, skip)
        checked: Config = validate(model, keys, place)
        return checked

    def _model_and_keys(
        self, entry: object, place: str = "", skip: int = 0
    ) -> tuple[type[Config], dict[str, Any]]:
        """Return the configuration model of an entry, and the keys that it has to fit."""
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"{_at(place)}must be a mapping with the key {self.key!r}, not {entry!r}"
            )
        if self.key not in entry:
            known = ", ".join(self.targets)
            raise ConfigError(f"{_at(place)}the key {self.key!r} is missing; choose one of {known}")
        factory = self.load(entry[self.key], place)
        keys = {key: value for key, value in entry.items() if key != self.key}
        return model_of(factory, skip, self.common), keys

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate a field with this annotation."""
        return core_schema.no_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Leave a mark, because finding the variants imports every class."""
        return {LATER: self}

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of an entry, one variant for each name."""
        variants = []
        for name in self.targets:
            if self.base and name in self.base:
                continue  # a reference to the base has these
            variant = self.model(name).model_json_schema(schema_generator=JsonSchemaGenerator)
            variant["properties"] = {self.key: {"const": name}, **variant.get("properties", {})}
            variant["required"] = [self.key, *variant.get("required", [])]
            variants.append(variant)
        named = {"type": "string", "pattern": ":", "description": "package.module:name"}
        own = {"title": "own", "properties": {self.key: named}, "required": [self.key]}
        rest = {LATER: self.base} if self.base else {**own, "type": "object"}
        return {"type": "object", "oneOf": [*variants, rest]}

    def _validated(self, entry: Any) -> Any:
        try:
            model, keys = self._model_and_keys(entry)
        except ConfigError as error:
            raise explained(error) from None
        try:
            model.model_validate(keys)
        except ValidationError as error:
            nested(error)
        return dict(entry)


def or_object(accept: Callable[[Any], object]) -> WrapValidator:
    """Return an annotation that lets an object of the user's own pass where an entry is validated.

    Used behind a registry: `Annotated[Any, KINDS, or_object(as_reward_model)]`.

    Args:
        accept: raises ConfigError for what is no such object.
    """

    def validated(given: Any, handler: Callable[[Any], Any]) -> Any:
        if not isinstance(given, Mapping):
            with suppress(ConfigError):
                accept(given)
                return given
        return handler(given)

    return WrapValidator(validated)


@dataclass(frozen=True)
class Arguments:
    """Annotates a field that holds keyword arguments of a callable.

    They are validated against its signature, and stay a mapping as the user wrote it.
    """

    target: str
    """The callable, "package.module:name"; imported when it is used."""
    skip: int = 0
    """Leading arguments that the caller passes itself."""
    omit: tuple[str, ...] = ()
    """Further arguments that a configuration cannot set."""

    @property
    def model(self) -> type[Config]:
        """The configuration model of the arguments."""
        return model_of(load_object("", self.target), self.skip, omit=self.omit)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {LATER: self}

    def _validated(self, params: Any) -> Any:
        try:
            self.model.model_validate(params)
        except ValidationError as error:
            nested(error)
        return dict(params)


def json_schema(model: type[Config], root: bool = True) -> dict[str, Any]:
    """Return the JSON schema of a configuration, complete in itself.

    Args:
        model: of the configuration.
        root: whether to add the dialect and the definitions that it refers to.
    """
    definitions: dict[str, Any] = {}
    schema: dict[str, Any] = _hoisted(
        model.model_json_schema(schema_generator=JsonSchemaGenerator), definitions
    )
    return {"$schema": DIALECT, **schema, "$defs": definitions} if root else schema


def _hoisted(schema: Any, definitions: dict[str, Any]) -> Any:
    """Move nested definitions to the top, and fill in what entries and arguments allow."""
    if isinstance(schema, list):
        return [_hoisted(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    later = schema.get(LATER)
    plain = {key: part for key, part in schema.items() if key not in (LATER, "$defs")}
    if isinstance(later, Registry):
        if later.group not in definitions:
            definitions[later.group] = {}  # entries may hold entries of the same registry
            definitions[later.group] = _hoisted(later.json_schema(), definitions)
        return {"$ref": f"#/$defs/{later.group}", **plain}
    if isinstance(later, Arguments):
        inner = later.model.model_json_schema(schema_generator=JsonSchemaGenerator)
        return {**_hoisted(inner, definitions), **plain}
    for name, definition in schema.get("$defs", {}).items():
        definitions[name] = _hoisted(definition, definitions)
    return {key: _hoisted(part, definitions) for key, part in plain.items()}


def load_object(place: str, path: str) -> Any:
    """Import "package.module:name"; a module in the working directory is found too.

    Raises:
        ConfigError: there is no such module or name, or importing the module fails.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ConfigError(f"{place}: write it as package.module:name, not {path!r}")
    # a script's path begins with its own folder, not with the user's
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # the user's own module may raise anything
        raise ConfigError(
            f"{place}: {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _at(place: str) -> str:
    return f"{place}: " if place else ""
