"""Merges an adapter (LoRA, and what else of PEFT can be merged) into its base: a model that everything can load.

    python toa_trl/training/merge_adapter.py runs/my-lora runs/my-model

A reward model's adapter gives a reward model. OUTPUT gets model, tokenizer, chat template, generation config, model card
and lineage. It is written beside and renamed, so that it is whole or not there, and a folder that is there already is left
alone. Before that the model is loaded back and asked for its logits on a text, which must be those of base and adapter
together; the largest difference is printed.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import user_errors
from toa_trl.errors import ConfigError, ToaError
from toa_trl.models.loading import load_tokenizer

# largest difference of two logits, as a share of the largest logit, that rounding explains
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def merge(adapter: Path, output: Path, base: str | None, dtype: str, text: str) -> str:
    """Merge, check, and put the result in its place; returns what was done."""
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError(
            f"ADAPTER: {adapter} is no folder with an adapter: it has no adapter_config.json"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"OUTPUT: {output} is there already; name another folder, or delete it")
    import torch
    import transformers
    from peft import PeftConfig

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"--dtype {dtype!r} is not known; for example float32, bfloat16 or auto")
    config = PeftConfig.from_pretrained(adapter)
    if base is not None:
        config.base_model_name_or_path, config.revision = base, None
    if config.base_model_name_or_path is None:
        raise ConfigError(
            f"ADAPTER: {adapter} names no base_model_name_or_path in its adapter_config.json; give --base"
        )
    has_tokenizer = base is None or (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer("ADAPTER", str(adapter if has_tokenizer else base), template=False)
    auto_class = (
        "AutoModelForSequenceClassification"
        if config.task_type == "SEQ_CLS"
        else "AutoModelForCausalLM"
    )
    model = load(adapter, config, auto_class, dtype, tokenizer)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        together = model(input_ids=ids).logits.float()

    fresh = output.with_name(f".{output.name}.merging")
    shutil.rmtree(fresh, ignore_errors=True)  # of a merge that was killed
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        model = model.merge_and_unload()
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        carry_card(adapter, fresh)
        del model
        model = getattr(transformers, auto_class).from_pretrained(fresh, dtype="auto").eval()
        with torch.inference_mode():
            difference = float((model(input_ids=ids).logits.float() - together).abs().max())
        saved_as = str(model.dtype).removeprefix("torch.")
        allowed = TOLERANCE.get(saved_as, 1e-4) * max(1.0, float(together.abs().max()))
        if not difference <= allowed:
            raise ToaError(
                f"merged, {adapter} is another model: logits differ by up to {difference:.2g}, and rounding explains "
                f"{allowed:.2g} (an adapter of embeddings that are tied cannot be merged); nothing was written"
            )
        os.replace(fresh, output)
    except Exception as error:  # safetensors has its own for a full disk
        if isinstance(error, ToaError):
            raise
        raise ToaError(
            f"{output} could not be written: {first_line(error)}; nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return f"{adapter} on {config.base_model_name_or_path}, merged ({saved_as}); logits differ by {difference:.2g} at most"


def load(adapter: Path, config: Any, auto_class: str, dtype: str, tokenizer: Any) -> Any:
    """The base with the adapter on it."""
    import transformers
    from peft import PeftModel

    base = config.base_model_name_or_path
    # a score head comes with its adapter; the base, a language model, would be given transformers' default of two labels
    labels = {"num_labels": 1} if config.task_type == "SEQ_CLS" else {}
    try:
        model = getattr(transformers, auto_class).from_pretrained(
            base, revision=config.revision, dtype=dtype, **labels
        )
    except Exception as error:  # torch, safetensors and transformers raise what they like
        raise ConfigError(
            f"the base {base!r} of {adapter} cannot be loaded: {first_line(error)}; see --base"
        ) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # the adapter was trained with further tokens
    try:
        together = PeftModel.from_pretrained(model, adapter, config=config)
        if not hasattr(together.base_model, "merge_and_unload"):
            raise ConfigError(
                f"{adapter}: an adapter of the kind {config.peft_type.value} cannot be merged"
            )
        found = together.load_adapter(
            str(adapter), "default"
        )  # once more: of what does not fit, the first one only warns
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{adapter} does not fit the base {base!r}: {first_line(error)}; see --base"
        ) from error
    if wrong := [*found.missing_keys, *found.unexpected_keys]:
        raise ConfigError(
            f"{adapter} does not fit the base {base!r}: only one of them has {wrong[0]} ({len(wrong)} such weights); see --base"
        )
    align(model, tokenizer)
    return together.eval()


def align(model: Any, tokenizer: Any) -> None:
    """What the Trainer changes in a model, and an adapter does not hold: the tokens that pad, and that end an answer."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and tokenizer.eos_token_id is not None:
        ends = generation.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if tokenizer.eos_token_id not in ends:
            generation.eos_token_id = [tokenizer.eos_token_id, *ends]


def carry_card(adapter: Path, folder: Path) -> None:
    """The adapter's model card and lineage; the card's metadata says that this is a whole model."""
    from huggingface_hub import metadata_load, metadata_save

    for name in ("README.md", "lineage.json"):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
    card = folder / "README.md"
    if card.is_file() and (metadata := metadata_load(card)):
        metadata["library_name"] = "transformers"
        tags = [
            tag
            for tag in metadata.get("tags") or []
            if tag != "lora" and not tag.startswith("base_model:adapter:")
        ]
        metadata_save(card, {**metadata, "tags": tags})


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "adapter",
        type=Path,
        metavar="ADAPTER",
        help="folder with adapter_config.json, as TRL leaves it with --use_peft",
    )
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUTPUT",
        help="folder of the merged model; must not be there, or be empty",
    )
    parser.add_argument(
        "--base", help="folder or Hub name; default: the base that the adapter names"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        help="of the merged model, e.g. bfloat16; default: that of the base",
    )
    parser.add_argument(
        "--text",
        default="So 16 + 8 = 24, and 24 - 6 = 18.",
        help="on which the logits are compared",
    )
    options = parser.parse_args()
    done = merge(options.adapter, options.output, options.base, options.dtype, options.text)
    print(f"Done: {done}. The model is in {options.output}")


if __name__ == "__main__":
    with user_errors():
        main()
