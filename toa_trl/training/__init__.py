"""What the training recipes share: options, checks before the first step, data, and saving."""

from toa_trl.training.checks import take_one_gpu
from toa_trl.training.reward_signal import RewardFunc, reward_func
from toa_trl.training.run import run_training

__all__ = ["RewardFunc", "reward_func", "run_training", "take_one_gpu"]
