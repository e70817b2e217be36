"""A reward model from the pairs of a run, with TRL's RewardTrainer.

accelerate launch recipes/reward.py --config recipes/configs/demo/reward.yaml

Every option of RewardConfig works. --dataset_name takes a run's folder, or any dataset in TRL's
preference format; `datasets` in the YAML mixes several. LoRA: --use_peft (the adapter includes the
score head). TRL reads a text at its last token that is not padding, other software at its last:
the padding token is never one that ends a text. The result is a
`reward: {kind: classifier, model: ...}` of the next run.
"""

from typing import Any

from toa_trl.cli.arguments import user_errors
from toa_trl.training import run_training, take_one_gpu


def main() -> None:
    """Train."""
    take_one_gpu()  # before TRL, whose imports look at the devices
    from trl import RewardConfig, RewardTrainer

    from toa_trl.training.padding import with_pad_token

    def prepare(training: Any, model: Any) -> None:
        model.lora_task_type = "SEQ_CLS"  # the only task of a reward model's adapter

    run_training(
        "reward modeling",
        with_pad_token(RewardTrainer),
        RewardConfig,
        data="dpo",
        description=__doc__,
        prepare=prepare,
    )


if __name__ == "__main__":
    with user_errors():
        main()
