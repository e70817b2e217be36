"""Merge an adapter (LoRA, or any other kind that PEFT can merge) into its base model.

    toa-trl merge-adapter runs/my-lora runs/my-model

The adapter of a reward model gives a reward model. OUTPUT gets model, tokenizer, chat template,
generation config, model card and lineage. It is written under another name and renamed, so it is
either complete or missing, and an existing folder is not changed. Before that the model is loaded
and its logits on a text are compared with those of base and adapter; the largest difference is
printed.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import user_errors
from toa_trl.errors import ConfigError, ToaError
from toa_trl.models.loading import load_tokenizer
from toa_trl.utils.escape import say
from toa_trl.utils.files import fresh_path
from toa_trl.utils.targets import check_folder, check_not_in_run

# largest difference of two logits that rounding explains, relative to the largest logit
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def merge(adapter: Path, output: Path, base: str | None, dtype: str, text: str) -> str:
    """Merge an adapter into its base, check the result, and move it to its place.

    Args:
        adapter: folder with adapter_config.json.
        output: folder of the merged model; must be empty or not exist.
        base: folder or Hub name; None: the base that the adapter names.
        dtype: of the merged model; auto: that of the base.
        text: on which logits are compared.

    Returns:
        A summary in one line.

    Raises:
        ConfigError: the adapter or its base is invalid, or the output exists.
        ToaError: the merged model differs from base and adapter, or cannot be written.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError(
            f"ADAPTER: {adapter} has no adapter_config.json; name an adapter's folder"
        )
    check_folder(output.parent, "OUTPUT")
    check_not_in_run(output, "OUTPUT")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"OUTPUT: {output} exists already; name another folder, or delete it")
    import torch
    import transformers
    from peft import PeftConfig

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"--dtype: must be float32, bfloat16, float16 or auto, not {dtype!r}")
    config = PeftConfig.from_pretrained(adapter)
    if base is not None:
        config.base_model_name_or_path, config.revision = base, None
    if config.base_model_name_or_path is None:
        raise ConfigError(
            f"ADAPTER: {adapter} names no base_model_name_or_path in its adapter_config.json; give "
            "--base"
        )
    has_tokenizer = base is None or (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer("ADAPTER", str(adapter if has_tokenizer else base), template=False)
    is_reward_model = config.task_type == "SEQ_CLS"
    auto_class = getattr(
        transformers,
        "AutoModelForSequenceClassification" if is_reward_model else "AutoModelForCausalLM",
    )
    model = load_with_adapter(adapter, config, auto_class, dtype, tokenizer)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.float()

    unfinished = fresh_path(output)
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a merge that was killed
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        model = model.merge_and_unload()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        copy_card(adapter, unfinished)
        del model
        model = auto_class.from_pretrained(unfinished, dtype="auto").eval()
        with torch.inference_mode():
            difference = float((model(input_ids=ids).logits.float() - expected).abs().max())
        saved_dtype = str(model.dtype).removeprefix("torch.")
        allowed = TOLERANCE.get(saved_dtype, 1e-4) * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise ToaError(
                f"merged, {adapter} is another model: logits differ by up to {difference:.2g}, and "
                f"rounding explains {allowed:.2g} (an adapter of tied embeddings cannot be merged);"
                " nothing was written"
            )
        os.replace(unfinished, output)
    except ToaError:
        raise
    except Exception as error:  # safetensors has its own exception for a full disk
        raise ToaError(
            f"{output} could not be written: {first_line(error)}; nothing was written"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return (
        f"{adapter} on {config.base_model_name_or_path}, merged ({saved_dtype}); logits differ by "
        f"{difference:.2g} at most"
    )


def load_with_adapter(
    adapter: Path, config: Any, auto_class: Any, dtype: str, tokenizer: Any
) -> Any:
    """Return the base model with the adapter on it.

    Raises:
        ConfigError: the base cannot be loaded, or the adapter does not fit it or cannot be merged.
    """
    from peft import PeftModel

    base = config.base_model_name_or_path
    # the adapter brings a score head of one label; transformers would give the base one of two
    labels = {"num_labels": 1} if config.task_type == "SEQ_CLS" else {}
    try:
        model = auto_class.from_pretrained(base, revision=config.revision, dtype=dtype, **labels)
    except Exception as error:  # torch, safetensors and transformers have exceptions of their own
        raise ConfigError(
            f"the base {base!r} of {adapter} cannot be loaded: {first_line(error)}; see --base"
        ) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # the training added tokens
    unfit = f"{adapter} does not fit the base {base!r}"
    try:
        adapted = PeftModel.from_pretrained(model, adapter, config=config)
        mergeable = hasattr(adapted.base_model, "merge_and_unload")
        # loaded again, because from_pretrained only warns of weights that do not fit
        loaded = adapted.load_adapter(str(adapter), "default") if mergeable else None
    except Exception as error:
        raise ConfigError(f"{unfit}: {first_line(error)}; see --base") from error
    if loaded is None:
        kind = config.peft_type.value
        raise ConfigError(f"{adapter}: an adapter of the kind {kind} cannot be merged")
    wrong = [*loaded.missing_keys, *loaded.unexpected_keys]
    if wrong:
        raise ConfigError(
            f"{unfit}: only one of them has {wrong[0]} ({len(wrong)} such weights); see --base"
        )
    set_special_tokens(model, tokenizer)
    return adapted.eval()


def set_special_tokens(model: Any, tokenizer: Any) -> None:
    """Set the tokens for padding and for the end of a response, as the Trainer does.

    An adapter does not include them.
    """
    if tokenizer.pad_token_id is not None:  # a reward model is read before it
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is None or tokenizer.eos_token_id is None:
        return
    ends = generation.eos_token_id
    if not isinstance(ends, list):
        ends = [] if ends is None else [ends]
    if tokenizer.eos_token_id not in ends:
        generation.eos_token_id = [tokenizer.eos_token_id, *ends]


def copy_card(adapter: Path, folder: Path) -> None:
    """Copy model card and lineage of the adapter; the card's metadata become those of a model."""
    from huggingface_hub import metadata_load, metadata_save

    for name in ("README.md", "lineage.json"):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
    card = folder / "README.md"
    metadata = metadata_load(card) if card.is_file() else None
    if metadata:
        metadata["library_name"] = "transformers"
        of_adapters = "base_model:adapter:"
        tags = metadata.get("tags") or []
        metadata["tags"] = [
            tag for tag in tags if not (tag == "lora" or tag.startswith(of_adapters))
        ]
        metadata_save(card, metadata)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    """Merge the adapter that sys.argv names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("adapter", type=Path, metavar="ADAPTER", help="folder that TRL saves with --use_peft")
    add("output", type=Path, metavar="OUTPUT", help="new or empty folder of the merged model")
    add("--base", help="folder or Hub name (default: the base that the adapter names)")
    add("--dtype", default="auto", help="of the merged model (default: that of the base)")
    add(
        "--text",
        default="So 16 + 8 = 24, and 24 - 6 = 18.",
        help="text on which logits are compared",
    )
    options = parser.parse_args()
    summary = merge(options.adapter, options.output, options.base, options.dtype, options.text)
    say(f"Done: {summary}. The model is in {options.output}")


if __name__ == "__main__":
    with user_errors():
        main()
