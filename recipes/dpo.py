"""Direct preference optimization on the pairs of a run, by TRL's DPOTrainer; every option of TRL works.

accelerate launch recipes/dpo.py --config recipes/configs/demo/dpo.yaml

--dataset_name takes a run's folder, or any data set in TRL's preference format; `datasets` in the YAML mixes several, with
the fraction of each. LoRA: --use_peft. Killed and started again with --resume_from_checkpoint true, it goes on.
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
        DPOConfig,
        DPOTrainer,
        ModelConfig,
        ScriptArguments,
        TrlParser,
        get_dataset,
        get_peft_config,
        get_quantization_config,
    )

    parser = TrlParser(
        (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig), description=__doc__
    )
    script, training, model, mixture = parse_training(parser)
    prepare_cpu(training)
    check_model(model, training)
    data = load_training_data("dpo", script, training, mixture, get_dataset)
    with building():
        trainer = DPOTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=data.train,
            eval_dataset=data.test,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    if (
        script.ignore_bias_buffers
    ):  # TRL's option for models whose boolean buffers distributed training cannot carry
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name
            for name, buffer in trainer.model.named_buffers()
            if str(buffer.dtype) == "torch.bool"
        ]
    train(trainer, data, "DPO", model.model_name_or_path)


if __name__ == "__main__":
    with user_errors():
        main()
