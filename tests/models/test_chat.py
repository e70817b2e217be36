"""Chat templates of real families: with and without a place for a system message."""

from __future__ import annotations

from typing import Any

import pytest

from tests.families import FAMILIES, make_family
from toa_trl.models.chat import ChatTemplate, fold_system


def turns(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


SYSTEM, USER, ANSWER = ("system", "Be brief."), ("user", "How many?"), ("assistant", "Three.")
FOLDED = ("user", "Be brief.\n\nHow many?")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_the_system_message(family: str) -> None:
    tokenizer = make_family(family)
    template = ChatTemplate(tokenizer)
    assert template.takes_system == (family in ("llama3", "qwen2.5"))
    text = template.render(turns(SYSTEM, USER, ANSWER), tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert template.render(turns(SYSTEM, USER, ANSWER)) == ids
    assert template.render(turns(SYSTEM, USER), ANSWER[1]) == ids
    assert ChatTemplate(tokenizer, SYSTEM[1]).render(turns(USER, ANSWER)) == ids
    assert ChatTemplate(tokenizer, "not used").render(turns(SYSTEM, USER, ANSWER)) == ids
    assert text.index("Be brief.") < text.index("How many?") < text.index("Three.")
    without = template.render(turns(USER), tokenize=False, add_generation_prompt=True)
    plain = tokenizer.apply_chat_template(turns(USER), tokenize=False, add_generation_prompt=True)
    assert without == plain


def test_a_template_that_drops_system_messages_gets_them_in_the_first_user_message() -> None:
    tokenizer = make_family("gemma")
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}"
    tokenizer.chat_template = template
    assert (
        ChatTemplate(tokenizer).render(turns(SYSTEM, USER), tokenize=False)
        == "Be brief.\n\nHow many?|"
    )


def test_a_template_with_a_system_role_gets_the_message_as_it_is() -> None:
    tokenizer = make_family("llama3")
    plain = tokenizer.apply_chat_template(turns(SYSTEM, USER), tokenize=False)
    assert ChatTemplate(tokenizer).render(turns(SYSTEM, USER), tokenize=False) == plain


@pytest.mark.parametrize(
    ("given", "folded"),
    [
        ([SYSTEM, USER], [FOLDED]),
        ([SYSTEM, USER, ANSWER, USER], [FOLDED, ANSWER, USER]),
        ([("system", "A"), ("system", "B"), USER], [("user", "A\n\nB\n\nHow many?")]),
        ([USER, ANSWER], [USER, ANSWER]),
        ([SYSTEM, ANSWER], [SYSTEM, ANSWER]),
        ([SYSTEM], [SYSTEM]),
    ],
)
def test_folding(given: list[tuple[str, str]], folded: list[tuple[str, str]]) -> None:
    assert fold_system(turns(*given)) == turns(*folded)


def test_what_the_template_refuses_otherwise_is_named() -> None:
    with pytest.raises(ValueError, match=r"refuses the conversation: .*alternate"):
        ChatTemplate(make_family("mistral")).render(turns(USER, USER))


def test_whoever_renders_chooses_the_error() -> None:
    template = ChatTemplate(make_family("mistral"), error=lambda said: KeyError(f"agent: {said}"))
    with pytest.raises(KeyError, match="agent: the chat template refuses"):
        template.render(turns(USER, USER))
