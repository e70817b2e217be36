"""Supervised fine-tuning on the best responses of a run, by TRL's SFTTrainer; every option of TRL works.

accelerate launch recipes/sft.py --config recipes/configs/demo/sft.yaml

--dataset_name takes the sft folder of a run, or any data set in a format of TRL's. LoRA: add --use_peft.
"""

from toa_trl.cli import parse, user_errors
from toa_trl.training import load_training_data, model_init_kwargs


def main() -> None:
    from trl import (
        ModelConfig,
        ScriptArguments,
        SFTConfig,
        SFTTrainer,
        TrlParser,
        get_peft_config,
        get_quantization_config,
    )

    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig), description=__doc__)
    script, training, model = parse(parser)
    training.model_init_kwargs = model_init_kwargs(model, training)
    train, evaluation = load_training_data(
        script, training, columns=[("prompt", "completion"), ("messages",), ("text",)]
    )

    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Done. The model is in {training.output_dir}")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    with user_errors():
        main()
