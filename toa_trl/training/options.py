"""Options of a training besides TRL's: dataclasses that TRL's parser reads."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

from toa_trl.utils.config import validate

TRUE = ("true", "yes", "y", "t", "1")  # as HfArgumentParser and accelerate read it


def is_true(value: Any) -> bool:
    """Return whether an option, as it is given before it is parsed, is true."""
    return str(value).lower() in TRUE


def option(description: str, default: Any = None) -> Any:
    """Return a field of a dataclass that TRL's parser reads, with its text for --help."""
    return field(default=default, metadata={"help": description})


class Options:
    """Base of dataclasses of options, whose values are checked when they are parsed."""

    ranges: ClassVar[Mapping[str, Any]] = {}
    """Option -> type of `toa_trl.utils.config` that its value must have."""
    takes_entries: ClassVar[tuple[str, ...]] = ()
    """Options that are a text on the command line, and may be a mapping in a YAML file."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range.
        """
        for key, kind in self.ranges.items():
            validate(kind, getattr(self, key), key)
