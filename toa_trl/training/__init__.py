"""What the training recipes share beside TRL: options, data, checks before the first step, and what is kept after the last."""

from toa_trl.training.checks import check_model, parse_training
from toa_trl.training.cpu import prepare_cpu
from toa_trl.training.data import Data, load_training_data
from toa_trl.training.run import building, train

__all__ = [
    "Data",
    "building",
    "check_model",
    "load_training_data",
    "parse_training",
    "prepare_cpu",
    "train",
]
