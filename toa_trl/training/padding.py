"""The padding token of a reward model: TRL reads a text at its last token that is not padding."""

from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.chat import ChatTemplate
from toa_trl.training.templates import load_student_tokenizer, template_tokenizer

NEW = "<|pad|>"
PROBE = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
# names of special tokens that a model never reads, best first
UNUSED = ("pad", "reserved", "unused", "control")


def with_pad_token(trainer_class: Any) -> Any:
    """Return a subclass of TRL's RewardTrainer whose padding token ends no text.

    Where a tokenizer has no padding token (Llama-3, Mistral), TRL pads with eos, and would train
    the token before the one that every text ends with. Other software reads the last one.
    """

    class PadTokenTrainer(trainer_class):  # type: ignore[misc]
        def __init__(self, model: str, args: Any, **options: Any) -> None:
            revision = (args.model_init_kwargs or {}).get("revision")
            tokenizer = load_student_tokenizer(model, args, revision)
            tokenizer.add_special_tokens({"pad_token": pad_token(tokenizer, args)})
            source = _with_rows(model, args, len(tokenizer), options)
            super().__init__(model=source, args=args, processing_class=tokenizer, **options)

    return PadTokenTrainer


def pad_token(tokenizer: Any, args: Any) -> str:
    """Return a padding token that ends no text; NEW where the vocabulary has none.

    Args:
        tokenizer: of the model.
        args: TRL's RewardConfig, with `pad_token`, `eos_token` and `chat_template_path`.

    Raises:
        ConfigError: `pad_token` ends every text, or is unknown.
    """
    ends = _ends(tokenizer) | {args.eos_token}
    other = template_tokenizer(args.chat_template_path)
    if other is not None:
        ends |= _ends(other)
    special = [token for token in tokenizer.all_special_tokens if token not in ends]
    special += [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and token.content not in ends
    ]
    found: list[str | None] = [tokenizer.pad_token]
    found += [token for name in UNUSED for token in special if name in token.lower()]
    found += [tokenizer.unk_token, tokenizer.bos_token]
    best = next((token for token in found if token is not None and token not in ends), NEW)
    if args.pad_token in ends - {None}:
        raise ConfigError(
            f"pad_token: {args.pad_token!r} ends every text, and the token before it would be "
            "trained; leave the key out" + (f", or set {best!r}" if best != NEW else "")
        )
    if args.pad_token is not None and args.pad_token not in tokenizer.get_vocab():
        raise ConfigError(f"pad_token: {args.pad_token!r} is not a token of this model")
    return args.pad_token or best


def _ends(tokenizer: Any) -> set[str | None]:
    """Return the tokens that end a text: eos, and what ends a conversation."""
    ends = {tokenizer.eos_token}
    if tokenizer.chat_template:
        ends.add(tokenizer.convert_ids_to_tokens(ChatTemplate(tokenizer).render(PROBE)[-1]))
    return ends


def _with_rows(model: str, args: Any, num_tokens: int, options: dict[str, Any]) -> Any:
    """Return the model with a row for every token, or its name where it has them already.

    The row of the padding token changes no score: no other token attends to it.

    Raises:
        ConfigError: the training is one of an adapter, which would not include the new row.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
    from trl.trainer.utils import create_model_from_path

    given = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    code = {key: given[key] for key in ("revision", "trust_remote_code") if key in given}
    config = AutoConfig.from_pretrained(model, **code).get_text_config()
    if num_tokens <= config.vocab_size:
        return model
    if options.get("peft_config") is not None or options.get("quantization_config") is not None:
        raise ConfigError(
            f"pad_token: the tokenizer of {model} has no token to pad with, and a new one needs "
            "whole weights: train without --use_peft and quantization, or name a special token "
            "that ends no text"
        )
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        given["device_map"] = None
    set_seed(args.seed)  # as TRL does: the score head is random
    loaded = create_model_from_path(
        model, AutoModelForSequenceClassification, num_labels=1, **given
    )
    loaded.resize_token_embeddings(num_tokens, mean_resizing=False)
    args.model_init_kwargs = None  # they are spent; TRL would warn
    return loaded
