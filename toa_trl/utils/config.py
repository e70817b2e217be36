"""Typed configuration: pydantic models, and errors in one line that name the full path of the key.

A model is written as a class (`Config`), or comes from the signature of what it configures
(`model_of`): the constructor's annotations give types and ranges, its docstring the descriptions.
Validation, `--help`, the JSON schema and the reference page all read these models.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
from docstring_parser import DocstringStyle
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    create_model,
    model_validator,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, core_schema

from toa_trl.errors import ConfigError
from toa_trl.utils.config_errors import explain, explained, unknown_key

T = TypeVar("T")

LARGEST_INT = 2**63 - 1  # of what counts things in Python, NumPy, Arrow and SQLite


def _countable(value: int) -> int:
    if value > LARGEST_INT:
        raise ValueError(f"must be <= {LARGEST_INT}")
    return value


# not a limit of the field, which the reference and every error would show
PositiveInt = Annotated[int, Field(ge=1), AfterValidator(_countable)]
NonNegativeInt = Annotated[int, Field(ge=0), AfterValidator(_countable)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in f"{name}{value}":
            raise explained(
                f"{name!r}: {value!r} cannot be an environment variable: a name is not empty and "
                "has no '=', and neither has a NUL character"
            )
    return variables


CHECKED_VARIABLES = AfterValidator(_check_variables)
Variables = Annotated[dict[str, Any], CHECKED_VARIABLES]
"""Environment variables."""


class Config(BaseModel):
    """Base class of configuration models: immutable, without conversions, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and cls.model_config.get("extra") == "forbid":
            for key in value:
                if key not in cls.model_fields:
                    raise explained(unknown_key(key, cls.model_fields))
        return value


@dataclass(frozen=True)
class Raw:
    """Annotates a mapping that is validated as a model, and stays as the user wrote it."""

    model: type[Config]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate a field with this annotation."""

        def keep(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
            check(value)
            return value

        return core_schema.no_info_wrap_validator_function(keep, handler(self.model))


def validate(kind: Any, value: object, place: str = "") -> Any:
    """Validate a value against a type or a configuration model.

    Args:
        kind: a `Config` class or any type that pydantic knows.
        value: as it comes from YAML, the command line or Python.
        place: path of the value, such as "agents[1]"; empty for a whole configuration.

    Returns:
        The value as `kind` describes it.

    Raises:
        ConfigError: the value is invalid; the message names the path of the key, the value and
            what is allowed.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ConfigError(explain(error, place)) from None


def check_names(place: str, names: Iterable[object], what: str = "name") -> None:
    """Check that names are different.

    Args:
        place: path of the entries that have them, such as "agents".
        names: of the entries.
        what: the names are.

    Raises:
        ConfigError: two entries have one name.
    """
    for name, number in Counter(names).items():
        if number > 1:
            raise ConfigError(
                f"{place}: {number} entries have the {what} {name!r}; {what}s must be different"
            )


def model_of(
    factory: Callable[..., Any],
    skip: int = 0,
    base: type[Config] = Config,
    omit: tuple[str, ...] = (),
) -> type[Config]:
    """Return the configuration model of a callable's keyword arguments.

    Args:
        factory: a class or function; annotations give types and ranges, the Google docstring
            descriptions. A `Config` class is its own model.
        skip: leading arguments that the caller passes itself.
        base: a model whose fields are added, such as keys that all entries of one kind share.
        omit: further arguments that a configuration cannot set.
    """
    if inspect.isclass(factory) and issubclass(factory, Config):
        return factory
    made: type[Config] = _model_of(factory, skip, base, omit)  # type: ignore[arg-type]
    return made


@cache
def _model_of(
    factory: Callable[..., Any], skip: int, base: type[Config], omit: tuple[str, ...]
) -> type[Config]:
    hints = _hints(factory)
    docstring = docstring_parser.parse(inspect.getdoc(factory) or "", DocstringStyle.GOOGLE)
    documented = {arg.arg_name: arg.description for arg in docstring.params}
    fields: dict[str, Any] = {}
    extra = "forbid"
    for parameter in list(inspect.signature(factory).parameters.values())[skip:]:
        if parameter.name in omit:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            required = parameter.default is parameter.empty
            described = Field(
                ... if required else parameter.default, description=documented.get(parameter.name)
            )
            fields[parameter.name] = (hints.get(parameter.name, Any), described)
    name = getattr(factory, "__qualname__", type(factory).__name__)
    model: type[Config] = create_model(
        name,
        __base__=base,
        __doc__=docstring.short_description,
        # the descriptions are known, and pydantic would parse the source of this file for them
        __cls_kwargs__={"use_attribute_docstrings": False},
        **fields,
    )
    if extra == "allow":
        model.model_config["extra"] = "allow"
        model.model_rebuild(force=True)
    return model


def call(place: str, factory: Callable[..., T], *args: Any, params: Mapping[str, Any]) -> T:
    """Return `factory(*args, **params)`, where the params come from a configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value is invalid.
    """
    checked = validate(model_of(factory, skip=len(args)), params, place)
    return call_validated(place, factory, *args, checked=checked)


def call_validated(
    place: str,
    factory: Callable[..., T],
    *args: Any,
    checked: Config,
    common: type[Config] = Config,
) -> T:
    """Return `factory(*args, **params)` for validated params, without the keys of `common`.

    Raises:
        ConfigError: the factory cannot be called with them.
    """
    names = checked.model_fields_set - common.model_fields.keys()
    try:
        return factory(*args, **{key: getattr(checked, key) for key in names})
    except TypeError as error:
        raise ConfigError(f"{place}: {error}") from error


class JsonSchemaGenerator(GenerateJsonSchema):
    """Makes JSON schemas of models that Python objects may enter as well, such as an agent."""

    ignored_warning_kinds: set[Any] = {  # noqa: RUF012 (as in the base class)
        "skipped-choice",
        "non-serializable-default",
    }

    def model_field_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a field, without restrictions if JSON cannot express its type."""
        try:
            return super().model_field_schema(schema)
        except PydanticInvalidForJsonSchema:
            return {}


def _strict_adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError:  # a model, which has its own settings
        return TypeAdapter(kind)


_cached_adapter = cache(_strict_adapter)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind)
    except TypeError:  # an unhashable annotation
        return _strict_adapter(kind)


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    function = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:  # a name that only type checkers import: the value is passed on unchecked
        return {}
