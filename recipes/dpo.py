"""Direct preference optimization on the pairs of a run, by TRL's DPOTrainer; every option of TRL works.

accelerate launch recipes/dpo.py --config recipes/configs/demo/dpo.yaml

--dataset_name takes the dpo folder of a run, or any data set in TRL's preference format. LoRA: add --use_peft.
"""

from toa_trl.cli import parse, user_errors
from toa_trl.training import load_training_data, model_init_kwargs


def main() -> None:
    from trl import (
        DPOConfig,
        DPOTrainer,
        ModelConfig,
        ScriptArguments,
        TrlParser,
        get_peft_config,
        get_quantization_config,
    )

    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig), description=__doc__)
    script, training, model = parse(parser)
    training.model_init_kwargs = model_init_kwargs(model, training)
    train, evaluation = load_training_data(script, training, columns=[("chosen", "rejected")])

    trainer = DPOTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if script.ignore_bias_buffers:  # TRL's option for models whose boolean buffers distributed training cannot carry
        trainer.model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in trainer.model.named_buffers() if str(buffer.dtype) == "torch.bool"
        ]
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Done. The model is in {training.output_dir}")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    with user_errors():
        main()
