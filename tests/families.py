"""Tokenizers in the layout of real models, and tiny random models that use them.

Special tokens, their roles and the chat templates are those of the families; the rest of the
vocabulary is one token per byte or character.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("llama3", "qwen2.5", "gemma", "mistral")
KEEP = object()  # the family's own padding token
LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
]
QWEN25 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
MISTRAL = ["<unk>", "<s>", "</s>"]
# Mistral-7B-Instruct-v0.1
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def make_one_token(*, pad: bool = False) -> Any:
    """Return GPT-2's kind: one special token, which begins and ends texts, and may pad them."""
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    names = {"bos_token": end, "eos_token": end, "unk_token": end}
    names |= {"pad_token": end} if pad else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=_byte_level([end]), **names)
    fast.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


def make_family(family: str, *, pad: Any = KEEP, reserved: bool = True) -> Any:
    """Return the tokenizer of one of FAMILIES.

    Llama-3 and Mistral have no padding token and end a turn with their eos; Qwen2.5 and Gemma have
    one. The templates of Gemma and Mistral refuse a system message.

    Args:
        family: one of FAMILIES.
        pad: another padding token of the vocabulary; None: no padding token.
        reserved: whether Llama-3 has its reserved tokens.
    """
    from transformers import PreTrainedTokenizerFast

    if family == "llama3":
        special = [token for token in LLAMA3 if reserved or "reserved" not in token]
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        tokenizer = _byte_level(special, begin="<|begin_of_text|>")
    elif family == "qwen2.5":
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        special, tokenizer = QWEN25, _byte_level(QWEN25)
    elif family == "gemma":
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
        names["pad_token"] = "<pad>"
        special, tokenizer = GEMMA, _sentencepiece(GEMMA, begin="<bos>")
    else:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        special, tokenizer = MISTRAL, _sentencepiece(MISTRAL, begin="<s>")
    if pad is not KEEP:
        names["pad_token"] = pad
    others = [token for token in special if token not in names.values()]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=others,
        **{name: token for name, token in names.items() if token is not None},
    )
    fast.chat_template = template_of(family)
    return fast


def template_of(family: str) -> str:
    """Return the chat template of one of FAMILIES, from TRL where TRL has it."""
    import trl

    if family == "mistral":
        return MISTRAL_TEMPLATE
    file = {"llama3": "llama3", "qwen2.5": "qwen2_5", "gemma": "gemma"}[family]
    folder = Path(trl.__file__).parent / "chat_templates"
    return (folder / f"{file}.jinja").read_text(encoding="utf-8")


def save_family_model(
    folder: Path,
    tokenizer: Any,
    *,
    labels: int | None = None,
    num_positions: int = 512,
    spare_rows: int = 0,
    seed: int = 0,
    spread: float = 0.3,
) -> Path:
    """Save a tiny random Llama with this tokenizer, and return the folder.

    Args:
        folder: new folder.
        tokenizer: see `make_family`.
        labels: of a sequence classifier; None: a causal language model.
        num_positions: length of the context.
        spare_rows: rows of the embedding that no token has, as Qwen2.5 has them.
        seed: of the weights.
        spread: standard deviation of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=num_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=spread,
        **({} if labels is None else {"num_labels": labels}),
    )
    kind = LlamaForCausalLM if labels is None else LlamaForSequenceClassification
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _byte_level(special: list[str], begin: str | None = None) -> Any:
    """Return Llama-3's and Qwen's kind: bytes first, then the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_begin(tokenizer, begin)


def _sentencepiece(special: list[str], begin: str) -> Any:
    """Return Gemma's and Mistral's kind: the special tokens first, then bytes, then characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *bytes_, "▁", *(chr(code) for code in range(33, 127))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(tokens)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _with_begin(tokenizer, begin)


def _with_begin(tokenizer: Any, begin: str | None) -> Any:
    from tokenizers import processors

    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return tokenizer
