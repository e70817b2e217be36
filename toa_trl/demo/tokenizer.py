"""A word-level tokenizer for the bundled world: single digits, and <unk> for any other text."""

import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from toa_trl.demo import world

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>")
PIECE = r"\n|####|[0-9]|[A-Za-z]+|[^\sA-Za-z0-9]"

# An assistant turn ends in <eos>, and a prompt with the generation prompt is a prefix of the prompt
# with its completion: TRL tells the completion from the prompt by that.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] in ('system', 'assistant') %}<{{ m['role'] }}>{% else %}<user>{% endif %}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of every demo model; its vocabulary covers world and templates."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *"0123456789", *_world_words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s*\n\s*"), "\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="removed", invert=True)
    # words are joined by spaces, except where English text has none
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##none", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=[0-9]) (?=[0-9])"), ""),
            decoders.Replace(Regex(r" (?=[.,?:])"), ""),
            decoders.Replace(Regex(r" ?\n ?"), "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _world_words() -> list[str]:
    texts = [*world.NAMES, *world.THINGS, *world.PHRASES]
    for phrases in world.PHRASES.values():
        texts += phrases
    texts.append("X has. How many are there now? So = 0, 1.\n####")
    for name in ("refine", "draft", "aggregate"):
        texts.append((TEMPLATES / f"{name}.txt").read_text(encoding="utf-8"))
    text = re.sub(r"\{\w+\}", " ", " ".join(texts))
    words = dict.fromkeys(piece for piece in re.findall(PIECE, text) if not piece.isdigit())
    return [word for word in words if word != "X"]
