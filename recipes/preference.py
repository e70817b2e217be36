"""KTO, ORPO and SimPO on the pairs of a run, with TRL's trainers.

accelerate launch recipes/preference.py --config recipes/configs/demo/preference.yaml --method simpo

method: kto (arXiv 2402.01306; accepts prompt/completion/label too), orpo (2403.07691) or simpo
(2405.14734: TRL's CPO with loss_type simpo and cpo_alpha 0; beta is 2.5 and simpo_gamma 0.5 * beta
unless given). ORPO and SimPO are in trl.experimental: TRL may change or drop them in any release.
Every option of the method's configuration works. --dataset_name takes a run's folder, or any
dataset in TRL's preference format. LoRA: --use_peft.
"""

import sys
from dataclasses import dataclass
from typing import Any

from toa_trl.cli.arguments import option_of, user_errors
from toa_trl.errors import ConfigError
from toa_trl.training import run_training, take_one_gpu
from toa_trl.training.data import UNPAIRED
from toa_trl.training.options import option
from toa_trl.training.reference_free import set_simpo_defaults, with_ends
from toa_trl.utils.compat import unset_device_map
from toa_trl.utils.config_errors import nearest


@dataclass
class MethodArguments:
    """The option that TRL's configurations do not have."""

    method: str = option("kto, orpo or simpo; --help shows the options of the given method.", "")


def kto() -> tuple[str, Any, Any]:
    """Return the name, trainer and configuration of KTO."""
    from trl import KTOConfig, KTOTrainer

    return "KTO", KTOTrainer, KTOConfig


def orpo() -> tuple[str, Any, Any]:
    """Return the name, trainer and configuration of ORPO."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return "ORPO", ORPOTrainer, ORPOConfig


def simpo() -> tuple[str, Any, Any]:
    """Return the name, trainer and configuration of SimPO."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return "SimPO", CPOTrainer, CPOConfig


METHODS = {"kto": kto, "orpo": orpo, "simpo": simpo}


def main() -> None:
    """Train with the method of --method."""
    take_one_gpu()  # before TRL, whose imports look at the devices
    wants_help = bool({"-h", "--help"} & set(sys.argv))
    method = option_of(sys.argv[1:], "method") or ("kto" if wants_help else "")
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise ConfigError(
            f"method: must be one of {known}, not {method!r}{nearest(method, METHODS)}"
        )
    try:
        name, trainer_class, config_class = METHODS[method]()
    except ImportError as error:
        raise ConfigError(
            f"method: this version of TRL has no {method} ({error}); see CHANGELOG.md"
        ) from error

    def prepare(training: Any, model: Any) -> None:
        if method != "kto":
            unset_device_map(training, model)
        if method == "simpo":
            set_simpo_defaults(training, lambda key: option_of(sys.argv[1:], key))

    run_training(
        name,
        trainer_class if method == "kto" else with_ends(trainer_class),
        config_class,
        data="dpo",
        description=__doc__,
        further_formats=[UNPAIRED] if method == "kto" else (),
        further_options=[MethodArguments],
        prepare=prepare,
        takes_quantization=method == "kto",
    )


if __name__ == "__main__":
    with user_errors():
        main()
