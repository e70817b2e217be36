"""`recipes/synthesize.py --runner ray` without TRL, whose import takes seconds.

A configuration, the number of shards, the GPUs of each, and whether the run grows.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import yaml

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.config import SynthesisConfig
from toa_trl.distributed.ray import sample_on_ray
from toa_trl.utils.config import validate


def main(path: str, num_shards: int, num_gpus: float = 0, extend: int = 0) -> None:
    """Sample, and say how far it is."""

    def say(num_scored: int, num_failed: int) -> None:
        print(f"progress: {num_scored} {num_failed}", flush=True)  # noqa: T201

    config = validate(SynthesisConfig, yaml.safe_load(Path(path).read_text()))
    rollouts = sample_on_ray(
        partial(SynthesisConfig.new_sampler, config),
        config.load_prompts(),
        config.output_dir,
        num_shards=num_shards,
        num_gpus=num_gpus,
        on_progress=say,
        extend=bool(extend),
    )
    print(f"unfinished: {rollouts.unfinished}")  # noqa: T201


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1], *map(int, sys.argv[2:]))
