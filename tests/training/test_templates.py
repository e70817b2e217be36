"""The student's chat template: missing, without an end at which it stops, without a system role."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer

from tests.families import make_family, template_of
from toa_trl.errors import ConfigError
from toa_trl.training.data import TrainingData
from toa_trl.training.findings import act_on
from toa_trl.training.padding import pad_token
from toa_trl.training.preflight.checks import preflight
from toa_trl.training.templates import end_of_turn

WEIGHTS = Path(__file__).parents[2] / "toa_trl/demo/weights"
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 3?"}
ANSWER = {"role": "assistant", "content": "5"}
ROW = {"prompt": [USER], "completion": [ANSWER]}


@pytest.fixture
def fit(tmp_path: Path) -> Any:
    """Return a function that fits rows to the template of a tokenizer's folder."""

    def go(
        tokenizer: Any,
        rows: Any = None,
        method: str = "SFT",
        stops_at: list[int] | None = None,
        **options: Any,
    ) -> Any:
        tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
        if stops_at:
            generation = {"eos_token_id": stops_at}
            (tmp_path / "model/generation_config.json").write_text(json.dumps(generation))
        model = SimpleNamespace(model_name_or_path=str(tmp_path / "model"), model_revision=None)
        data = TrainingData(Dataset.from_list([ROW]) if rows is None else rows, None)
        defaults = {"trust_remote_code": False, "eos_token": None, "pad_token": None}
        if method == "reward modeling":
            defaults["chat_template_path"] = None
        training = SimpleNamespace(**defaults | options)
        checked = preflight(data, training, model, method)
        act_on(checked.findings)
        return checked.data

    return go


def base_of_chatml() -> Any:
    """A base student such as Qwen2.5-7B: its template ends with <|im_end|>, its eos is another."""
    tokenizer = make_family("qwen2.5")
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def test_a_tokenizer_without_a_template_is_refused(fit: Any, tmp_path: Path) -> None:
    tokenizer = make_family("qwen2.5")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"no chat template.*: give --chat_template_path"):
        fit(tokenizer, chat_template_path=None)
    with pytest.raises(ConfigError, match=r"toa-trl sft --chat_template_path first"):
        fit(tokenizer, method="DPO")
    (tmp_path / "own.jinja").write_text(template_of("qwen2.5"))
    fit(tokenizer, chat_template_path=str(tmp_path / "own.jinja"))
    make_family("qwen2.5").save_pretrained(tmp_path / "other")
    fit(tokenizer, chat_template_path=str(tmp_path / "other"))
    for wrong in ("none.jinja", "none"):
        with pytest.raises(ConfigError, match=r"chat_template_path: .*none"):
            fit(tokenizer, chat_template_path=str(tmp_path / wrong))
    fit(tokenizer, Dataset.from_list([{"text": "2 + 3 = 5"}]))


def test_the_padding_of_a_reward_model_is_not_what_a_folder_of_a_tokenizer_ends_with(
    tmp_path: Path,
) -> None:
    other = make_family("qwen2.5")
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "own.jinja").write_text(template_of("qwen2.5"))
    tokenizer = make_family("mistral")
    tokenizer.add_special_tokens({"pad_token": "<|im_end|>"})
    for path, expected in (("other", False), ("own.jinja", True)):
        template = str(tmp_path / path)
        args = SimpleNamespace(eos_token=None, pad_token=None, chat_template_path=template)
        assert (pad_token(tokenizer, args) == "<|im_end|>") == expected


def test_a_student_that_would_never_stop_is_refused(fit: Any) -> None:
    with pytest.raises(ConfigError) as error:
        fit(base_of_chatml())
    assert "ends a turn with '<|im_end|>', and the model stops at '<|endoftext|>'" in str(
        error.value
    )
    assert "--eos_token '<|im_end|>'" in str(error.value)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>"])
def test_an_explicit_eos_token_is_taken(fit: Any, token: str) -> None:
    fit(base_of_chatml(), eos_token=token)


def test_what_the_generation_configuration_stops_at_counts(fit: Any) -> None:
    tokenizer = base_of_chatml()
    fit(tokenizer, stops_at=[tokenizer.convert_tokens_to_ids("<|im_end|>")])


@pytest.mark.parametrize("method", ["DPO", "KTO", "ORPO", "reward modeling"])
def test_other_methods_warn_where_it_matters(
    fit: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    worse = {"role": "assistant", "content": "6"}
    pair = {"prompt": [USER], "chosen": [ANSWER], "rejected": [worse]}
    fit(base_of_chatml(), Dataset.from_list([pair]), method=method)
    warned = "train it with toa-trl sft --eos_token '<|im_end|>' first" in caplog.text
    assert warned == (method in ("DPO", "KTO"))


def test_a_template_without_any_end_is_a_warning(
    fit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_family("llama3")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    fit(tokenizer)
    assert "ends a turn with '\\n', which has no end-of-sequence token" in caplog.text
    demo = AutoTokenizer.from_pretrained(WEIGHTS / "student")  # knows no '<' of Gemma's template
    demo.chat_template = template_of("gemma")
    fit(demo)
    assert "ends a turn with '<unk>" in caplog.text


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "mistral"])
def test_instruction_models_pass(fit: Any, family: str, caplog: pytest.LogCaptureFixture) -> None:
    fit(make_family(family))
    assert not caplog.text
    assert end_of_turn(make_family(family))


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_system_message_joins_the_first_user_message(
    fit: Any, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_family(family)
    stops_at = [tokenizer.eos_token_id]
    if family == "gemma":
        stops_at.append(tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    conversation = [SYSTEM, USER, ANSWER]
    folded = {"role": "user", "content": "Be brief.\n\n2 + 3?"}
    for row in (
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
        {"messages": conversation},
        {"chosen": conversation, "rejected": [SYSTEM, USER, {**ANSWER, "content": "6"}]},
    ):
        rows = Dataset.from_list([row, row])
        for given in (rows, rows.to_iterable_dataset()):
            found = list(fit(tokenizer, given, stops_at=stops_at).train)
            assert [list(found[0]), len(found)] == [list(row), 2]
            for name, messages in found[0].items():
                had_system = row[name][0] == SYSTEM
                assert messages == ([folded, *row[name][2:]] if had_system else row[name])
                tokenizer.apply_chat_template([folded], tokenize=False)
    assert caplog.text.count("the chat template has no system role") == 6


def test_rows_without_a_system_message_stay_as_they_are(fit: Any) -> None:
    rows = Dataset.from_list([ROW])
    assert fit(make_family("mistral"), rows).train is rows
    stream = IterableDataset.from_generator(lambda: iter([ROW])).cast(rows.features)
    assert list(fit(make_family("mistral"), stream).train) == [ROW]


def test_the_errors_of_a_template_are_one_line() -> None:
    from jinja2 import TemplateError

    from toa_trl.training.run import construction_errors

    said = "refuses a conversation: roles must alternate"
    with pytest.raises(ConfigError, match=said), construction_errors():
        raise TemplateError("roles must alternate")
