"""Supervised fine-tuning on the best responses of a run, with TRL's SFTTrainer.

accelerate launch recipes/sft.py --config recipes/configs/demo/sft.yaml

Every option of SFTConfig works. --dataset_name takes a run's folder, or any dataset in a format
of TRL; `datasets` in the YAML mixes several, each with its fraction. LoRA: --use_peft. With
--resume_from_checkpoint true the same command starts a training and resumes it.
"""

from toa_trl.cli.arguments import user_errors
from toa_trl.training import run_training, take_one_gpu


def main() -> None:
    """Train."""
    take_one_gpu()  # before TRL, whose imports look at the devices
    from trl import SFTConfig, SFTTrainer

    run_training("SFT", SFTTrainer, SFTConfig, data="sft", description=__doc__)


if __name__ == "__main__":
    with user_errors():
        main()
