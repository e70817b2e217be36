"""What a check found: an error, a warning, or that all is well."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from toa_trl.errors import ConfigError

logger = logging.getLogger(__name__)
Level = Literal["error", "warning", "fine"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    check: str
    """Name of the check, such as "eos"."""
    what: str
    remedy: str = ""
    """What to do; nothing where all is well."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


def act_on(findings: Iterable[Finding], *, logs: bool = True) -> None:
    """Stop at the first error, and log warnings; findings that are fine are silent.

    Args:
        findings: of the checks before a training.
        logs: whether this process logs: one of a launch is enough.

    Raises:
        ConfigError: with the first error.
    """
    findings = list(findings)
    for finding in findings:
        if finding.level == "error":
            raise ConfigError(str(finding))
    for finding in findings:
        if finding.level == "warning" and logs:
            logger.warning("%s", finding)
