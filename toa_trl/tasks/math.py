r"""Mathematics: a final answer in \boxed{}, or after ####."""

from collections.abc import Mapping
from typing import Any, ClassVar

from toa_trl.tasks.base import Task


class Math(Task):
    """Ask for the last message's problem to be solved and for its final answer in a fixed format.

    The reward model sees only the problem.
    """

    name = "math"
    verifier: ClassVar[Mapping[str, Any]] = {"kind": "math"}
    verifier_column = "answer"
