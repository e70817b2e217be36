"""Direct preference optimization on the pairs of a run, with TRL's DPOTrainer.

accelerate launch recipes/dpo.py --config recipes/configs/demo/dpo.yaml

Every option of DPOConfig works. --dataset_name takes a run's folder, or any dataset in TRL's
preference format; `datasets` in the YAML mixes several, each with its fraction. LoRA: --use_peft.
With --resume_from_checkpoint true the same command starts a training and resumes it.
"""

from toa_trl.cli.arguments import user_errors
from toa_trl.training import run_training, take_one_gpu


def main() -> None:
    """Train."""
    take_one_gpu()  # before TRL, whose imports look at the devices
    from trl import DPOConfig, DPOTrainer

    run_training("DPO", DPOTrainer, DPOConfig, data="dpo", description=__doc__)


if __name__ == "__main__":
    with user_errors():
        main()
