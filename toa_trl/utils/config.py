"""Typed configuration: pydantic models, and errors in one line that name the full path of the key.

A model is written as a class (`Config`), or comes from the signature of what it configures
(`model_of`): the constructor's annotations give types and ranges, its docstring the descriptions.
Validation, `--help`, the JSON schema and the reference page all read these models.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import docstring_parser
from pydantic import (
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
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from toa_trl.errors import ConfigError

T = TypeVar("T")
MAX_LISTED = 40  # keys that an error lists; beyond that it names --help
MAX_SHOWN = 80  # characters of a refused value

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


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
                    raise PydanticCustomError(
                        "unknown_key", "{text}", {"text": unknown_key(key, cls.model_fields)}
                    )
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
    docstring = _docstring(factory)
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


def explain(error: ValidationError, place: str = "") -> str:
    """Return one line for the first error: path of the key, what is wrong, what is allowed."""
    return _explain(error.errors(include_url=False)[0], place)


def _explain(error: ErrorDetails, place: str) -> str:
    path, context = _path(place, error["loc"]), error.get("ctx", {})
    kind, value = error["type"], error["input"]
    if kind == "nested":
        return _explain(context["error"], path)
    if kind == "value_error" and isinstance(context["error"], ConfigError):
        return str(context["error"])  # names its own path
    if kind in ("unknown_key", "explained"):
        return f"{path}: {context['text']}" if path else str(context["text"])
    if kind == "missing":
        parent, key = _path(place, error["loc"][:-1]), error["loc"][-1]
        return f"{parent}: the key {key!r} is missing" if parent else f"{key}: the key is missing"
    wanted = {
        "int_type": "must be an integer",
        "int_from_float": "must be an integer",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_type": "must be a string",
        "string_too_short": "must not be empty",
        "list_type": "must be a list",
        "tuple_type": "must be a list",
        "dict_type": "must be a mapping of keys to values",
        "mapping_type": "must be a mapping of keys to values",
        "model_type": "must be a mapping of keys to values",
        "greater_than_equal": "must be >= {ge}",
        "greater_than": "must be > {gt}",
        "less_than_equal": "must be <= {le}",
        "less_than": "must be < {lt}",
        "literal_error": "must be one of {expected}",
        "too_short": "must have at least {min_length} entries",
        "value_error": "{error}",
    }.get(kind, error["msg"][:1].lower() + error["msg"][1:].replace("{", "{{").replace("}", "}}"))
    for name in ("ge", "gt", "le", "lt"):
        if name in context:
            context[name] = f"{context[name]:g}"
    shown = repr(value) if len(repr(value)) <= MAX_SHOWN else f"{repr(value)[:MAX_SHOWN]}..."
    return f"{path}: {wanted.format(**context)}, not {shown}{_remedy(kind, value, context)}"


def _remedy(kind: str, value: object, context: Mapping[str, Any]) -> str:
    if kind == "float_type" and isinstance(value, str):
        try:
            number = repr(float(value))
            if "." not in number:  # YAML 1.1 has no floats without a point
                number = number.replace("e", ".0e")
            return f" (YAML reads this as text; write {number})"
        except ValueError:
            return ""
    if kind == "literal_error":
        return nearest(value, re.findall(r"'([^']*)'", str(context["expected"])))
    return ""


def nested(error: ValidationError) -> NoReturn:
    """Raise inside a validator the first error of an inner validation, so that its path is kept."""
    raise PydanticCustomError(
        "nested", "{text}", {"text": explain(error), "error": error.errors()[0]}
    )


def unknown_key(key: object, known: Iterable[str]) -> str:
    """Return the error text for a key that is not among the known ones."""
    known = list(known)
    listed = ", ".join(known) if len(known) <= MAX_LISTED else "see --help"
    return f"unknown key {key!r}; known: {listed or 'none'}{nearest(key, known)}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty string."""
    match = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _path(place: str, location: tuple[int | str, ...]) -> str:
    path = place
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_union_branch(part):
            path += f".{part}" if path else part
    return path


def _is_union_branch(part: str) -> bool:
    """Whether pydantic put it into the location to say which member of a union it tried."""
    return not part.isidentifier() or part in {
        "str",
        "int",
        "float",
        "bool",
        "list",
        "dict",
        "none",
        "literal",
    }


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


def _docstring(factory: Callable[..., Any]) -> docstring_parser.Docstring:
    return docstring_parser.parse(
        inspect.getdoc(factory) or "", docstring_parser.DocstringStyle.GOOGLE
    )
