"""What sft.py and dpo.py share beside TRL: loading data, and checks that can be made before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError


def load_training_data(script: Any, training: Any, columns: Sequence[tuple[str, ...]]) -> tuple[Any, Any]:
    """The train and, where one is evaluated, the test split of --dataset_name.

    Args:
        script: TRL's ScriptArguments.
        training: the trainer's configuration.
        columns: any of these sets of columns will do.

    Raises:
        ConfigError: no such data set or split, another format, or no rows.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if not script.dataset_name:
        raise ConfigError("dataset_name: the key is missing; name the sft or dpo folder of a run, or a data set")
    try:
        dataset = load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ConfigError(
            f"dataset_name: {script.dataset_name} could not be read: {str(error).splitlines()[0]}"
        ) from error

    def split(name: str) -> Any:
        if name not in dataset:
            raise ConfigError(f"{script.dataset_name}: there is no split {name!r}, only {', '.join(dataset)}")
        rows = dataset[name]
        found = rows.column_names or []
        if not any(set(needed) <= set(found) for needed in columns):
            wanted = ", or ".join(" and ".join(needed) for needed in columns)
            raise ConfigError(f"{script.dataset_name}: the columns {wanted} are needed; there are: {', '.join(found)}")
        if not script.dataset_streaming and not len(rows):
            raise ConfigError(f"{script.dataset_name}: the split {name!r} has no rows")
        return rows

    return split(script.dataset_train_split), (
        split(script.dataset_test_split) if training.eval_strategy != "no" else None
    )


def model_init_kwargs(model: Any, training: Any) -> dict[str, Any]:
    """What the trainer passes to from_pretrained, from TRL's ModelConfig, as TRL's own scripts do.

    Raises:
        ConfigError: no model, or a folder without one.
    """
    name = model.model_name_or_path
    if not name:
        raise ConfigError("model_name_or_path: the key is missing; name a folder or a model on the Hub")
    if Path(name).is_dir() and not any((Path(name) / f).is_file() for f in ("config.json", "adapter_config.json")):
        raise ConfigError(f"model_name_or_path: {name} has neither a config.json nor an adapter_config.json")
    return {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
