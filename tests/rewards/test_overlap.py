from __future__ import annotations

from typing import Any

import pytest
import sacrebleu

from tests.helpers import wait
from toa_trl.errors import RewardError
from toa_trl.rewards import make_reward
from toa_trl.rewards.overlap import bleu_tokenizer
from toa_trl.types import Prompt

REFERENCE = "The cat sat on the mat because it was warm."
OTHER = "As it was warm, the cat was sitting on the mat."
RESPONSES = [
    REFERENCE,
    "The cat sat on a mat, because it was warm.",
    "The cat.",
    "Der Hund",
    "",
    "猫がマットの上に座った。",
]


def score(kind: str, reference: Any, responses: list[str], **params: Any) -> list[float]:
    prompt = Prompt("p", "Translate.", {"source": "...", "reference": reference})  # type: ignore[arg-type]
    return wait(make_reward({"kind": kind, **params}).score(prompt, responses))


@pytest.mark.parametrize("references", [[REFERENCE], [REFERENCE, OTHER]])
def test_scores_are_those_of_sacrebleu(references: list[str]) -> None:
    given: Any = references if len(references) > 1 else references[0]
    assert score("chrf", given, RESPONSES) == [
        sacrebleu.sentence_chrf(r, references).score for r in RESPONSES
    ]
    assert score("bleu", given, RESPONSES) == [
        sacrebleu.sentence_bleu(r, references, use_effective_order=True).score for r in RESPONSES
    ]


@pytest.mark.parametrize("kind", ["chrf", "bleu"])
def test_the_reference_itself_is_best_and_nothing_is_worst(kind: str) -> None:
    scores = score(kind, REFERENCE, RESPONSES)
    assert scores[0] == pytest.approx(100)
    assert scores[0] > scores[1] > scores[2] > scores[4] == 0
    assert all(0 <= value <= 100 + 1e-9 for value in scores)
    assert score(kind, [OTHER, REFERENCE], [REFERENCE]) == pytest.approx([100])


@pytest.mark.parametrize("kind", ["chrf", "bleu"])
@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        (
            {"source": "x", "target": "y"},
            r"'reference' is missing for prompt 'p'; columns: source, target",
        ),
        ({}, r"'reference' is missing for prompt 'p'; columns: none"),
        ({"reference": ""}, "'reference' is empty"),
        ({"reference": []}, "'reference' is empty"),
        ({"reference": 5}, "neither a text nor a list of texts"),
        ({"reference": ["x", None]}, "neither a text nor a list of texts"),
    ],
)
def test_a_column_without_a_reference_is_an_error(kind: str, metadata: Any, named: str) -> None:
    with pytest.raises(RewardError, match=rf"reward '{kind}'.*{named}"):
        wait(make_reward({"kind": kind}).score(Prompt("p", "x", metadata), ["y"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["chrf", "bleu"])
def test_another_column_may_be_named(kind: str) -> None:
    prompt = Prompt("p", "x", {"gold": REFERENCE, "reference": OTHER})  # type: ignore[arg-type]
    assert wait(
        make_reward({"kind": kind, "column": "gold"}).score(prompt, [REFERENCE])
    ) == pytest.approx([100])


@pytest.mark.parametrize(
    ("tokenizer", "languages"),
    [
        (
            "zh",
            "Chinese; zh; ZH-TW; zh_CN; zho; chi; cmn; yue; zho_Hans; zho_Hant; yue_Hant; zh-Hans; "
            "Simplified Chinese; chinese (traditional); Mandarin; Cantonese; 中文; 简体中文",
        ),
        (
            "char",
            "Japanese; ja; ja-JP; jpn; jpn_Jpan; 日本語; Thai; tha_Thai; ไทย; Lao; lao_Laoo; "
            "Central Khmer; khm_Khmr; Burmese; Myanmar (Burmese); mya; mya_Mymr; bod_Tibt; Tibetan",
        ),
        (
            "13a",
            "German; de; deu; deu_Latn; de-CH; zho_Latn; ja-Latn; Serbian (my dialect); English; "
            "Korean; kor_Hang; Vietnamese; Malay; ; Русский; हिन्दी",
        ),
    ],
)
def test_the_tokenizer_of_a_language_in_any_usual_spelling(tokenizer: str, languages: str) -> None:
    found = {name: bleu_tokenizer(name.strip()) for name in languages.split(";")}
    assert found == dict.fromkeys(found, tokenizer)
    assert bleu_tokenizer(float("nan")) == bleu_tokenizer(None) == "13a"


@pytest.mark.parametrize(
    ("reference", "usual"),
    [
        ("今天天气很好,我们走吧", "Chinese"),
        ("今日は天気がいいので散歩に行きます", "Japanese"),
        ("วันนี้อากาศดี เราไปเดินเล่นกันเถอะ", "Thai"),
        ("The word is 天气, the weather.", "English"),
    ],
)
def test_of_an_unknown_language_the_references_decide(reference: str, usual: str) -> None:
    assert bleu_tokenizer("chinois", [reference]) == bleu_tokenizer(usual)
    prompt = Prompt("p", "x", {"reference": reference})  # type: ignore[arg-type]
    named = Prompt("p", "x", {"reference": reference, "target_language": usual})  # type: ignore[arg-type]
    model = make_reward({"kind": "bleu"})
    response = reference[:3] + reference[5:]
    assert wait(model.score(prompt, [response])) == wait(model.score(named, [response]))
