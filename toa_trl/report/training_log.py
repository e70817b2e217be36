"""The log of a training, beside the model: its curves and examples of held-out responses.

    {"toa_trl": version, "points": [{"step": 10, "epoch": 0.5, "loss": ..., "eval_loss": ...,
     "eval_held_out_reward": ...}], "examples": [{"step", "prompt_id", "prompt", "response",
     "reward", "score"}], "setup": {"num_prompts", "reward", ...}}

The file's name begins with an underscore, so that the Trainer does not push it: the prompts of the
examples may be private.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.utils.files import replace_text, without_nan
from toa_trl.utils.targets import marked

FILE = "_training_log.json"
HELD_OUT = "eval_held_out_"


def read_training_log(folder: Path) -> dict[str, Any]:
    """Return the log of the training in a model's folder; empty if it has none.

    Raises:
        ConfigError: the file is not what this package writes.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        steps = [part["step"] for part in (*log["points"], *log["examples"])]
        if not all(isinstance(step, int) for step in steps):
            raise ValueError("a step is not a whole number")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not a log of a training: {error!r}; move it away") from error
    return dict(log)


def write_training_log(
    folder: Path,
    history: Iterable[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    setup: Mapping[str, Any],
) -> None:
    """Write the log.

    Args:
        folder: of the model.
        history: the Trainer's log; what it logged of one step becomes one point.
        examples: responses to held-out prompts.
        setup: what was sampled and how it was scored; empty without held-out prompts.
    """
    log = marked({"points": points_of(history), "examples": examples, "setup": setup})
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_nan(log), ensure_ascii=False, indent=1)
    # a response may contain unpaired surrogates
    replace_text(folder / FILE, text.encode(errors="replace").decode() + "\n")


def points_of(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one point per step: an evaluation that is repeated after a restart counts once."""
    points: dict[int, dict[str, Any]] = {}
    for entry in history:
        points.setdefault(entry["step"], {}).update(entry)
    return [points[step] for step in sorted(points)]
