"""What tokenizer, chat template and generation_config.json do, without any row."""

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateError

from toa_trl.agents.base import NEUTRAL
from toa_trl.errors import ConfigError
from toa_trl.training.findings import Finding
from toa_trl.training.padding import pad_token
from toa_trl.training.prompts import ONLINE
from toa_trl.training.templates import end_of_turn, stop_tokens

USER, SYSTEM = "5f1c user 0b7e", "5f1c system 0b7e"  # texts that no template contains
# methods that train the token at which the student stops; ORPO and SimPO append the eos
LEARN_TO_STOP = ("SFT", "DPO", "KTO")
# fields of generation_config.json that change sampling, with the values that change nothing
DEFAULTS = {**NEUTRAL, "temperature": 1.0, "top_p": 1.0}
DO_NOTHING: Mapping[str, tuple[Any, ...]] = {"top_k": (-1, 0), "min_p": (0.0, None)}


def end_finding(tokenizer: Any, training: Any, model: Any, method: str) -> Finding | None:
    """Return whether the template ends a turn with a token at which the student stops.

    Returns:
        None where it does not matter, or where the template does not show it.
    """
    if method not in (*LEARN_TO_STOP, *ONLINE):
        return None
    tail = end_of_turn(tokenizer)
    if tail is None:
        return None
    end_text = tokenizer.decode(tail)
    name = model.model_name_or_path
    ends = {tokenizer.eos_token_id}
    if not getattr(training, "chat_template_path", None):
        ends |= stop_tokens(name, model.model_revision)
    given = getattr(training, "eos_token", None)
    if given or ends & set(tail):
        return Finding("fine", "eos", f"a turn ends with {end_text!r}, at which the model stops")
    known = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    special = [token for token in tail if token in known]
    if not special:
        return Finding(
            "warning",
            "eos",
            f"the chat template of {name} ends a turn with {end_text!r}, which has "
            "no end-of-sequence token: the student may never stop",
            "--chat_template_path of toa-trl sft names another template",
        )
    end = tokenizer.decode(special[:1])
    fault = (
        f"the chat template of {name!r} ends a turn with {end!r}, and the model stops at "
        f"{tokenizer.eos_token!r}"
    )
    if method == "SFT":
        return Finding(
            "error",
            "eos",
            f"eos_token: {fault}, so the student would never stop",
            f"give --eos_token '{end}' (or --eos_token '{tokenizer.eos_token}' to train it all "
            "the same)",
        )
    remedy = f"train it with toa-trl sft --eos_token '{end}' first"
    return Finding("warning", "eos", f"{fault}: the student may never stop", remedy)


def system_findings(tokenizer: Any, num_system: int, num_rows: int) -> Iterator[Finding]:
    """Yield what happens to system messages, and to rows without one.

    Args:
        tokenizer: with a chat template.
        num_system: rows with a system message, among those that were looked at.
        num_rows: rows that were looked at.
    """
    user = {"role": "user", "content": USER}
    alone = _rendered(tokenizer, [user])
    if alone is None:
        return
    both = _rendered(tokenizer, [{"role": "system", "content": SYSTEM}, user])
    takes = both is not None and SYSTEM in both
    if num_system and not takes:
        does = "has no system role" if both is None else "drops system messages"
        yield Finding(
            "warning",
            "system role",
            f"the chat template {does}: system messages are put at the start of the first user "
            f"message ({num_system} of {num_rows} rows)",
            "ask the student in the same way",
        )
    if both is None or not takes:
        return
    before, _, after = both.partition(SYSTEM)
    header = alone.partition(USER)[0]
    if num_system and header.strip() and header in before:
        what = "the chat template merges the system message into the first user message"
        yield Finding("fine", "system role", what)
    default = alone[len(before) : len(alone) - len(after)].strip()
    if num_system < num_rows and alone.startswith(before) and alone.endswith(after) and default:
        what = f"the chat template adds its own system message to rows without one: {default!r}"
        yield Finding("fine", "system role", what)


def pad_finding(tokenizer: Any, training: Any, method: str) -> Finding:
    """Return which token pads, and whether that hides the end of a response."""
    given = getattr(training, "pad_token", None)
    if method == "reward modeling":
        try:
            token = pad_token(tokenizer, training)
        except ConfigError as error:
            return Finding("error", "pad", str(error))
        return Finding("fine", "pad", f"padded with {token!r}, which ends no text")
    if given is not None and given not in tokenizer.get_vocab():
        what = f"pad_token: {given!r} is not a token of this model"
        return Finding("error", "pad", what, "leave the key out, or name a token that it has")
    token = given or tokenizer.pad_token or tokenizer.eos_token
    if token is None:
        return Finding("error", "pad", "the tokenizer has neither a pad nor an eos token")
    also = ""
    if token == tokenizer.eos_token:
        also = ", the eos: TRL masks padding by its position, so the eos of a response is learned"
    return Finding("fine", "pad", f"padded with {token!r}{also}")


def generation_finding(model: Any) -> Finding | None:
    """Return the sampling that a server takes from generation_config.json, if it has any."""
    from transformers import GenerationConfig

    name = model.model_name_or_path
    try:
        found = GenerationConfig.from_pretrained(name, revision=model.model_revision).to_diff_dict()
    except (OSError, ValueError):  # it has none, or one that transformers refuses
        return None
    changing = {
        key: found[key]
        for key, neutral in DEFAULTS.items()
        if key in found and found[key] not in (neutral, *DO_NOTHING.get(key, ()))
    }
    if not changing:
        return None
    listed = ", ".join(f"{key} {value}" for key, value in changing.items())
    return Finding(
        "fine",
        "sampling",
        f"generation_config.json of {name} sets {listed}, and the student inherits them: a vLLM "
        "server applies them to clients that leave them out. Agents and evaluation of toa_trl ask "
        "every engine for neutral values; `vllm serve --generation-config vllm` helps others",
    )


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str | None:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return None
    return text
