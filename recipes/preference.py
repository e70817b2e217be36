"""KTO, ORPO and SimPO on the pairs of a run, by TRL's trainers; every option of TRL works.

accelerate launch recipes/preference.py --config recipes/configs/demo/preference.yaml --method simpo

method: kto (arXiv 2402.01306; takes prompt/completion/label as well), orpo (2403.07691) or simpo (2405.14734: TRL's CPO with
loss_type simpo and cpo_alpha 0). ORPO and SimPO are in trl.experimental: TRL may change or drop them in any release.
--dataset_name takes a run's folder, or any data set in TRL's preference format. LoRA: --use_peft.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from toa_trl.cli.arguments import option_of, user_errors
from toa_trl.errors import ConfigError
from toa_trl.training import (
    building,
    check_model,
    load_training_data,
    parse_training,
    prepare_cpu,
    train,
)
from toa_trl.training.data import UNPAIRED
from toa_trl.utils.registry import choose


@dataclass
class MethodArguments:
    method: str = field(
        default="",
        metadata={"help": "kto, orpo or simpo; --help then shows the options of that one."},
    )


def kto() -> tuple[Any, Any]:
    from trl import KTOConfig, KTOTrainer

    return KTOConfig, KTOTrainer


def orpo() -> tuple[Any, Any]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, ORPOTrainer


def simpo() -> tuple[Any, Any]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOConfig, CPOTrainer


METHODS = {"kto": kto, "orpo": orpo, "simpo": simpo}


def main() -> None:
    from trl import (
        DatasetMixtureConfig,
        ModelConfig,
        ScriptArguments,
        TrlParser,
        get_dataset,
        get_peft_config,
        get_quantization_config,
    )

    method = option_of(sys.argv[1:], "method") or ("kto" if {"-h", "--help"} & {*sys.argv} else "")
    try:
        config_class, trainer_class = choose("--method", "method", METHODS, method)()
    except ImportError as error:
        raise ConfigError(
            f"method: this TRL has no {method} any more ({error}); CHANGELOG.md names one that has"
        ) from error
    types = (MethodArguments, ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig)
    _, script, training, model, mixture = parse_training(TrlParser(types, description=__doc__))
    prepare_cpu(training)
    check_model(model, training)
    quantization, options = get_quantization_config(model), {}
    if method == "kto":
        options["quantization_config"] = quantization
    else:  # their device_map is "auto" otherwise, with which several processes cannot train
        training.model_init_kwargs |= {"device_map": None, "quantization_config": quantization}
    if method == "simpo":
        if option_of(sys.argv[1:], "loss_type") not in (None, "simpo"):
            raise ConfigError(
                "loss_type: method simpo is TRL's CPO with the loss simpo; leave the key out"
            )
        training.loss_type = "simpo"
        if option_of(sys.argv[1:], "cpo_alpha") is None:
            training.cpo_alpha = 0.0
    data = load_training_data(
        "dpo", script, training, mixture, get_dataset, *([UNPAIRED] if method == "kto" else [])
    )
    with building():
        trainer = trainer_class(
            model=model.model_name_or_path,
            args=training,
            train_dataset=data.train,
            eval_dataset=data.test,
            peft_config=get_peft_config(model),
            **options,
        )
    train(
        trainer,
        data,
        {"kto": "KTO", "orpo": "ORPO", "simpo": "SimPO"}[method],
        model.model_name_or_path,
    )


if __name__ == "__main__":
    with user_errors():
        main()
