"""A reward model from the pairs of a run, by TRL's RewardTrainer; every option of TRL works.

accelerate launch recipes/reward.py --config recipes/configs/demo/reward.yaml

--dataset_name takes a run's folder, or any data set in TRL's preference format; `datasets` in the YAML mixes several. What
comes out is a `reward: {kind: classifier, model: ...}` of the next run. LoRA: --use_peft (the score head is in the adapter).
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
        RewardConfig,
        RewardTrainer,
        ScriptArguments,
        TrlParser,
        get_dataset,
        get_peft_config,
        get_quantization_config,
    )

    parser = TrlParser(
        (ScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig), description=__doc__
    )
    script, training, model, mixture = parse_training(parser)
    model.lora_task_type = "SEQ_CLS"  # of a reward model it cannot be another
    prepare_cpu(training)
    check_model(model, training)
    data = load_training_data("dpo", script, training, mixture, get_dataset)
    with building():
        trainer = RewardTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=data.train,
            eval_dataset=data.test,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    train(trainer, data, "reward modeling", model.model_name_or_path)


if __name__ == "__main__":
    with user_errors():
        main()
