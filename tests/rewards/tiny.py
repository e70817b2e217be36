"""Small random reward models, saved like Hub repositories: weights, tokenizer, own code.

Each has the architecture and interface of a model whose weights cannot be loaded here. Their scores
mean nothing; the tests check that they are read from the right position in every batch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.llama import modeling_llama

from tests.conftest import PAD, TEMPLATE, make_tokenizer
from toa_trl.rewards import RewardModel, make_reward

CODE = Path(__file__).parent / "own_code"
REWARD_TOKEN, STEP_TAG = "<|reward|>", "<extra_0>"
# kind -> auto class, the class, its configuration's class (None: one of transformers)
OWN = {
    "armo": (
        "AutoModelForSequenceClassification",
        "modeling_custom.LlamaForRewardModelWithGating",
        None,
    ),
    "internlm2": (
        "AutoModel",
        "modeling_internlm2.InternLM2ForRewardModel",
        "configuration_internlm2.InternLM2Config",
    ),
    "qwen": (
        "AutoModel",
        "modeling_qwen2_rm.Qwen2ForRewardModel",
        "configuration_qwen2_rm.Qwen2RMConfig",
    ),
    "qwen_prm": (
        "AutoModel",
        "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        "configuration_qwen2_rm.Qwen2RMConfig",
    ),
}
BOXED = {  # what the chat template of Qwen's models says where no system prompt is given
    "role": "system",
    "content": "Please reason step by step, and put your final answer within \\boxed{}.",
}
KINDS = ("classifier", "gemma2", "causal", "shepherd", "ultrarm", *OWN)


def load(kind: str, folder: Path, **entry: Any) -> RewardModel:
    """Return a reward model of a folder, whose own code is trusted."""
    known = {"kind": kind, "model": str(folder), "device": "cpu", "trust_remote_code": True}
    return make_reward({**known, **entry})


def build(
    kind: str,
    folder: Path,
    *,
    pad: str | None = PAD,
    padding_side: str = "right",
    num_positions: int = 256,
    hidden_size: int = 32,
    seed: int = 0,
    spread: float = 0.3,
    corpus: Sequence[str] = (),
) -> Any:
    """Save a model of one of KINDS, and return the unsaved model in evaluation mode.

    A token is a byte or, with a corpus, a learned part of a word (not for "shepherd").
    """
    tokenizer = shepherd_tokenizer() if kind == "shepherd" else make_tokenizer(pad=pad)
    if corpus and kind != "shepherd":
        tokenizer = tokenizer.train_new_from_iterator(corpus, vocab_size=8000, show_progress=False)
        tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = padding_side
    tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN, STEP_TAG]}, False)
    # its tokenizer begins every text that it encodes with <s>, as its template does not
    if kind == "internlm2":
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        begin = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        tokenizer.backend_tokenizer.post_processor = begin
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": num_positions,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": spread,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    if kind in OWN:
        if kind == "internlm2":
            shape["reward_token_id"] = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        model = _save_with_code(kind, folder, shape)
    else:
        model = _native(kind, {**shape, "num_key_value_heads": 2})
        model.save_pretrained(folder)
        if kind == "ultrarm":
            _rename_head(folder)
            tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return model.eval()


def shepherd_tokenizer() -> Any:
    """Like Mistral's: text starts with <s> and a space; words include their leading space."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-")]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "к",
        "и",
        *letters,
    ]
    vocabulary = {token: i for i, token in enumerate([*tokens, *map("".join, merges)])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _rename_head(folder: Path) -> None:
    """Give a saved classifier the names of LlamaRewardModel in openbmb/UltraRM-13b."""
    weights = load_file(folder / "model.safetensors")
    weights["regression_head.weight"] = weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    config["architectures"] = ["LlamaRewardModel"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _native(kind: str, shape: dict[str, Any]) -> Any:
    if kind == "shepherd":
        return MistralForCausalLM(MistralConfig(**shape))
    if kind in ("classifier", "ultrarm"):
        return LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
    if kind == "gemma2":
        return Gemma2ForSequenceClassification(
            Gemma2Config(**shape, num_labels=1, head_dim=8, sliding_window=64)
        )
    return LlamaForCausalLM(LlamaConfig(**shape))


def _save_with_code(kind: str, folder: Path, shape: dict[str, Any]) -> Any:
    auto_class, reference, config_reference = OWN[kind]
    for module in {
        "decoder",
        *(each.partition(".")[0] for each in (reference, config_reference) if each),
    }:
        shutil.copy(CODE / f"{module}.py", folder)
    if kind == "armo":
        shape |= {"num_labels": 3, "num_objectives": 3}
    # Its code imports a name that this transformers lacks; it exists only while the model is built.
    missing = kind == "armo" and not hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING")
    if missing:
        modeling_llama.LLAMA_INPUTS_DOCSTRING = ""
    try:
        config_class = (
            get_class_from_dynamic_module(config_reference, str(folder))
            if config_reference
            else LlamaConfig
        )
        config = config_class(**shape)
        if config_reference:
            config.rope_scaling = None
        model = get_class_from_dynamic_module(reference, str(folder))(config)
    finally:
        if missing:
            del modeling_llama.LLAMA_INPUTS_DOCSTRING
    if kind == "armo":
        torch.nn.init.normal_(model.reward_transform_matrix)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    written = {key: value for key, value in config.to_dict().items() if key != "rope_parameters"}
    written |= {
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "architectures": [reference.partition(".")[2]],
    }
    written["auto_map"] = {auto_class: reference} | (
        {"AutoConfig": config_reference} if config_reference else {}
    )
    (folder / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
    return model
