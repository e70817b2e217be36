"""Packages that options of a training need, and that are not installed."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from toa_trl.training.findings import Finding

# trackers of transformers that have the name of their package and of its module
TRACKERS = ("trackio", "wandb", "tensorboard", "mlflow", "swanlab")


def package_findings(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield an error for each package that is missing; the trainer would find it last.

    Args:
        options: of a training: report_to, load_in_4bit, load_in_8bit.
    """
    trackers = options.get("report_to") or []
    for name in [trackers] if isinstance(trackers, str) else trackers:
        if name in TRACKERS and find_spec(name) is None:
            what = f"report_to: {name} is not installed"
            yield Finding("error", "packages", what, f"pip install {name}, or set it to none")
    for key in ("load_in_4bit", "load_in_8bit"):
        if options.get(key) and find_spec("bitsandbytes") is None:
            what = f"{key}: bitsandbytes is not installed"
            yield Finding("error", "packages", what, "pip install bitsandbytes, or omit the key")
