"""Each kind of fault in tokenizer, template or rows is found, and a healthy training is silent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from datasets import Dataset
from transformers import AutoTokenizer

from tests.families import FAMILIES, make_family
from toa_trl.training.data import TrainingData
from toa_trl.training.findings import Finding, act_on
from toa_trl.training.preflight.checks import preflight

STUDENT = Path(__file__).parents[3] / "toa_trl/demo/weights/student"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
USER = {"role": "user", "content": "2 + 3?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It is 5."}
THOUGHT = {"role": "assistant", "content": "<think>\n2 and 3 make 5\n</think>\n\nIt is 5."}
ROW = {"prompt": [USER], "completion": [ANSWER]}
PAIR = {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "6"}]}
DEFAULTS = {
    "trust_remote_code": False,
    "chat_template_path": None,
    "eos_token": None,
    "pad_token": None,
    "max_length": 512,
}


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """Return a function that checks rows with a tokenizer, and returns the findings."""

    def go(
        tokenizer: Any,
        *rows: dict[str, Any],
        method: str = "SFT",
        num_embeddings: int | None = None,
        generation: dict[str, Any] | None = None,
        sources: Any = (),
        **options: Any,
    ) -> list[Finding]:
        folder = tmp_path / "model"
        tokenizer.save_pretrained(folder)
        size = len(tokenizer) if num_embeddings is None else num_embeddings
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size}))
        if generation:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        model = SimpleNamespace(model_name_or_path=str(folder), model_revision=None)
        data = TrainingData(Dataset.from_list([*rows]), None, sources)
        training = SimpleNamespace(**DEFAULTS | options)
        return preflight(data, training, model, method).findings

    return go


def with_template(family: str, template: str, **names: str) -> Any:
    """Return a family's tokenizer with another template: a file of TRL's, or a text."""
    tokenizer = make_family(family)
    path = TEMPLATES / f"{template}.jinja"
    is_name = "{" not in template
    tokenizer.chat_template = path.read_text(encoding="utf-8") if is_name else template
    for name, token in names.items():
        setattr(tokenizer, name, token)
    return tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWICE = "{{ bos_token * 2 }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
DROPS = CHATML.replace("messages %}", "messages if m.role != 'system' %}")
MASKED_END = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
GEMMA_STOPS = {"eos_token_id": [1, 6]}  # <eos>, and <end_of_turn>, as in Gemma's own file


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["SFT", "DPO", "reward modeling"])
def test_a_healthy_training_is_silent(
    family: str, method: str, check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = ROW if method == "SFT" else PAIR
    generation = GEMMA_STOPS if family == "gemma" else None
    findings = check(make_family(family), row, method=method, generation=generation)
    assert {finding.level for finding in findings} == {"fine"}
    act_on(findings)
    assert not caplog.records


@pytest.mark.parametrize(
    ("tokenizer", "row", "options", "level", "said"),
    [
        pytest.param(
            lambda: with_template("llama3", TWICE), ROW, {},
            "error", "1 of 1 rows begin with '<|begin_of_text|>' twice; remove it",
            id="doubled bos in the template",
        ),
        pytest.param(
            lambda: make_family("llama3"), {"text": "<|begin_of_text|>2 + 3 = 5"}, {},
            "error", "begin with '<|begin_of_text|>' twice", id="doubled bos in a text",
        ),
        pytest.param(
            lambda: with_template("llama3", CHATML, eos_token="<|end_of_text|>"), ROW,
            {"eos_token": "<|end_of_text|>"},
            "warning", "do not begin with '<|begin_of_text|>'", id="missing bos",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", CHATML, eos_token="<|endoftext|>"), ROW, {},
            "error", "ends a turn with '<|im_end|>', and the model stops at '<|endoftext|>'",
            id="eos is not the end of a turn",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", CHATML, eos_token="<|endoftext|>"), PAIR,
            {"method": "DPO"},
            "warning", "train it with toa-trl sft --eos_token '<|im_end|>' first",
            id="eos is not the end of a turn, in DPO",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", CHATML, eos_token="<|endoftext|>"),
            {"prompt": [USER]},
            {"method": "RLOO"},
            "warning", "the student may never stop", id="eos is not the end of a turn, in RLOO",
        ),
        pytest.param(
            lambda: make_family("qwen2.5"), ROW, {"pad_token": "<pad>"},
            "error", "pad_token: '<pad>' is not a token of this model", id="unknown pad",
        ),
        pytest.param(
            lambda: make_family("qwen2.5"), PAIR,
            {"pad_token": "<|im_end|>", "method": "reward modeling"},
            "error", "pad_token: '<|im_end|>' ends every text", id="pad of a reward model",
        ),
        pytest.param(
            lambda: make_family("qwen2.5"), ROW, {"num_embeddings": 100},
            "error", "have tokens that the model has no embedding for: it has 100",
            id="tokenizer of another model",
        ),
        pytest.param(
            lambda: AutoTokenizer.from_pretrained(STUDENT), {"messages": [ANSWER]}, {},
            "warning", "for which the tokenizer has no token: they become '<unk>'",
            id="unknown characters",
        ),
        pytest.param(
            lambda: make_family("gemma"), {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
            {"generation": GEMMA_STOPS},
            "warning", "has no system role: system messages are put at the start",
            id="system role refused",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", DROPS), {"messages": [SYSTEM, USER, ANSWER]}, {},
            "warning", "drops system messages", id="system role dropped",
        ),
        pytest.param(
            lambda: make_family("mistral"), {"messages": [USER, USER, ANSWER]}, {},
            "error", "the chat template refuses 1 of 1 rows: Conversation roles must alternate",
            id="refused conversation",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", "deepseek_r1_distill", bos_token="<|vision_pad|>"),
            {"prompt": [USER], "completion": [THOUGHT]}, {"eos_token": "<|im_end|>"},
            "warning", "drops the reasoning of 1 of 1 rows", id="reasoning stripped",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", "deepseek_r1_distill", bos_token="<|vision_pad|>"),
            ROW, {"eos_token": "<|im_end|>"},
            "warning", "the generation prompt opens <think>", id="reasoning opened",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", "qwen3"), ROW, {},
            "warning", "adds an empty <think> block to the responses of 1 of 1 rows",
            id="empty reasoning inserted",
        ),
        pytest.param(
            lambda: with_template("qwen2.5", MASKED_END), {"messages": [USER, ANSWER]},
            {"assistant_only_loss": True},
            "error", "it is not learned: the student would never stop", id="end not learned",
        ),
        pytest.param(
            lambda: make_family("qwen2.5"),
            {"prompt": [USER], "completion": [{**ANSWER, "content": "It is 5.<|im_end|>"}]}, {},
            "warning", "contain special tokens as text", id="special tokens in a response",
        ),
        pytest.param(
            lambda: make_family("qwen2.5"), ROW, {"report_to": ["swanlab", "tensorboard"]},
            "error", "report_to: swanlab is not installed; pip install swanlab, or set it to none",
            id="tracker that is not installed",
        ),
        pytest.param(
            lambda: make_family("llama3"), {"prompt": "2 + 3 =", "completion": " 5"},
            {"max_length": 10},
            "warning", "max_length 10 cuts 1 of 1 rows (100%): a cut response has no end",
            id="cut rows",
        ),
        pytest.param(
            lambda: make_family("llama3"), ROW, {"max_length": 8},
            "error", "max_length 8 cuts 1 of 1 rows (100%), of which 1 are dropped",
            id="no row is left",
        ),
        pytest.param(
            lambda: make_family("llama3"), ROW,
            {"sources": [{"dataset": "a run", "max_tokens": 2048}]},
            "warning", "a run was sampled with max_tokens 2048", id="longer responses",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_found(
    tokenizer: Any, row: dict[str, Any], options: dict[str, Any], level: str, said: str, check: Any
) -> None:
    findings = [
        finding for finding in check(tokenizer(), row, **options) if finding.level != "fine"
    ]
    assert [level, True] == [findings[0].level, said in str(findings[0])], findings
    assert len(findings) == 1, findings


@pytest.mark.parametrize(
    ("tokenizer", "row", "options", "said"),
    [
        (lambda: make_family("qwen2.5"), ROW, {}, "adds its own system message to rows without"),
        (lambda: make_family("llama3"), ROW, {}, "the eos: TRL masks padding by its position"),
        (
            lambda: with_template(
                "mistral",
                "{{ bos_token }}[INST] {% for m in messages %}{{ m.content }}"
                "{% if m.role == 'user' %} [/INST]{% elif m.role == 'assistant' %}"
                "{{ eos_token }}{% endif %}{% endfor %}",
            ),
            {"messages": [SYSTEM, USER, ANSWER]},
            {},
            "merges the system message into the first user message",
        ),
        (
            lambda: with_template("qwen2.5", "qwen3"),
            {"prompt": [USER], "completion": [THOUGHT]},
            {},
            "the longest has",
        ),
        (
            lambda: make_family("qwen2.5"),
            ROW,
            {"generation": {"top_k": 20, "repetition_penalty": 1.05, "do_sample": True}},
            "sets top_k 20, repetition_penalty 1.05, and the student inherits them",
        ),
    ],
)
def test_what_is_no_fault_is_said_all_the_same(
    tokenizer: Any, row: dict[str, Any], options: dict[str, Any], said: str, check: Any
) -> None:
    findings = check(tokenizer(), row, **options)
    assert {finding.level for finding in findings} == {"fine"}, findings
    assert said in "\n".join(map(str, findings))


def test_the_share_of_a_fault_is_counted_on_a_sample(check: Any) -> None:
    text = "It is 5. " * 100
    long = {"prompt": [USER], "completion": [{**ANSWER, "content": text}]}
    findings = check(make_family("qwen2.5"), *[ROW, ROW, ROW, long] * 100, max_length=256)
    (found,) = [finding for finding in findings if finding.check == "max_length"]
    (share,) = re.findall(r"max_length 256 cuts (\d+) of 200 rows", found.what)
    assert 35 <= int(share) <= 65


def test_rows_with_images_are_left_to_their_processor(check: Any) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is this?"}]
    row = {"messages": [{"role": "user", "content": parts}], "images": ["a.png"]}
    assert {finding.level for finding in check(make_family("qwen2.5"), row)} == {"fine"}
