"""Memory of the reward models that GRPO and RLOO load on the device of the training."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.flops import num_parameters_of
from toa_trl.models.sources import read_config
from toa_trl.rewards.deferred import models_in
from toa_trl.sampling.run_file import FILE
from toa_trl.training.prompts import run_of
from toa_trl.utils.files import load_yaml, read_yaml


def reward_bytes_of(given: Any, datasets: Sequence[str]) -> tuple[float, list[str]]:
    """Return the bytes of the weights of reward models, and the models of unknown size.

    Weights are counted in the type of their config.json, or in bfloat16.

    Args:
        given: the option `reward` of recipes/grpo.py: an entry, a list, their YAML, or a run's
            folder; None: the reward of the run that a data set is of.
        datasets: names of the data sets.
    """
    try:
        given = load_yaml(given) if isinstance(given, str) else given
        if given is None or isinstance(given, str):
            runs = [run_of(name) for name in ([given] if given else datasets)]
            given = [read_yaml(run / FILE).get("reward") for run in runs if run is not None]
    except (ConfigError, ValueError):
        return 0.0, []
    total, unknown = 0.0, list[str]()
    for entry in models_in(given):
        if str(entry.get("device") or "").startswith("cpu") or not entry.get("model"):
            continue
        size = weights_of(str(entry["model"]), str(entry.get("dtype") or "auto"))
        total += size or 0.0
        unknown += [] if size else [str(entry["model"])]
    return total, unknown


def weights_of(model: str, dtype: str) -> float | None:
    """Return the bytes of a model's weights; None if its config.json is not here.

    Args:
        model: folder or Hub name.
        dtype: "auto": that of its config.json, or bfloat16.
    """
    try:
        config = SimpleNamespace(**read_config("reward", str(Path(model).expanduser())))
        number = num_parameters_of(config, active=False)
    except ConfigError:
        return None
    named = vars(config).get("dtype") or vars(config).get("torch_dtype") or "bfloat16"
    is_float32 = "float32" in (str(named) if dtype == "auto" else dtype)
    return float(number * (4 if is_float32 else 2))
