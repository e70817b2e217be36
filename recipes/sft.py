"""Supervised fine-tuning on the best responses of a run, by TRL's SFTTrainer; every option of TRL works.

accelerate launch recipes/sft.py --config recipes/configs/demo/sft.yaml

--dataset_name takes a run's folder, or any data set in a format of TRL's; `datasets` in the YAML mixes several, with the
fraction of each. LoRA: --use_peft. Killed and started again with --resume_from_checkpoint true, it goes on.
"""

from toa_trl.cli.arguments import user_errors
from toa_trl.training import (
    building,
    check_model,
    load_training_data,
    parse_training,
    prepare_cpu,
    train,
)


def main() -> None:
    from trl import (
        DatasetMixtureConfig,
        ModelConfig,
        ScriptArguments,
        SFTConfig,
        SFTTrainer,
        TrlParser,
        get_dataset,
        get_peft_config,
        get_quantization_config,
    )

    parser = TrlParser(
        (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig), description=__doc__
    )
    script, training, model, mixture = parse_training(parser)
    prepare_cpu(training)
    check_model(model, training)
    data = load_training_data("sft", script, training, mixture, get_dataset)
    with building():
        trainer = SFTTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=data.train,
            eval_dataset=data.test,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    train(trainer, data, "SFT", model.model_name_or_path)


if __name__ == "__main__":
    with user_errors():
        main()
