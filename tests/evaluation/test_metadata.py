"""The metadata block of a model card, read back by huggingface_hub as the Hub would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from toa_trl.errors import ConfigError
from toa_trl.evaluation.metadata import model_metadata, write_metadata

RESULTS: dict[str, Any] = {
    "student": {
        "dpo": {
            "accuracy": 0.5,
            "interval": [0.4, 0.6],
            "mean_reward": -1.5,
            "num_problems": 100,
            "maj_at_k": 0.75,
            "maj_at_k_interval": [0.7, 0.8],
            "k": 8,
            "comet": None,
            "chrf": float("nan"),
        },
        "base": {"accuracy": 0.1, "interval": [0.0, 0.2]},
    },
    "win_rates": [
        {
            "model": "dpo",
            "baseline": "base",
            "by": "judge",
            "win_rate": 0.6,
            "interval": [0.5, 0.7],
            "num_ties": 3,
        },
        {
            "model": "dpo",
            "baseline": "base",
            "by": "chrf",
            "win_rate": 0.55,
            "interval": [0.5, 0.6],
        },
        {
            "model": "sft",
            "baseline": "base",
            "by": "judge",
            "win_rate": 0.2,
            "interval": [0.1, 0.3],
        },
    ],
    "alpaca_eval": {
        "dpo": {
            "baseline": "gpt",
            "annotator": "big",
            "win_rate": 0.3,
            "interval": [0.2, 0.4],
            "num_failed": 2,
        }
    },
    "lm_eval": {
        "dpo": {
            "gsm8k": {
                "exact_match,strict": 0.25,
                "exact_match,strict_stderr": 0.01,
                "num_problems": 8,
            }
        }
    },
}
# as TRL writes it, shortened
TRL = """---
base_model: org/base
library_name: transformers
model_name: student-dpo
tags:
- generated_from_trainer
- trl
- dpo
licence: license
---

# Model Card for student-dpo

---
Not metadata: ünïcode, and a rule above.
"""


def by_name(card: dict[str, Any], at: int = 0) -> dict[str | None, Any]:
    return {
        each.metric_name: each for each in model_index_to_eval_results([card["model-index"][at]])[1]
    }


def test_every_figure_of_the_model_and_no_other_comes_back_from_the_yaml() -> None:
    data = model_metadata(
        RESULTS,
        "dpo",
        dataset_name="org/problems test",
        base_model="org/base",
        datasets=["org/data"],
    )
    card: Any = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    assert card.data.eval_results == data.eval_results
    assert (card.data.model_name, card.data.base_model, card.data.datasets) == (
        "dpo",
        "org/base",
        ["org/data"],
    )
    found = by_name(card.data.to_dict())
    assert {name: each.metric_value for name, each in found.items()} == {
        "Accuracy, greedy": 0.5,
        "maj@8": 0.75,
        "Mean reward, greedy": -1.5,
        "Win rate against base by judge": 0.6,
        "Win rate against base by chrf": 0.55,
        "Win rate against gpt by big": 0.3,
        "exact_match,strict": 0.25,
    }
    assert found["maj@8"].metric_args == {"interval_95": [0.7, 0.8]}
    assert found["Mean reward, greedy"].metric_args is None
    assert found["exact_match,strict"].metric_args == {"standard_error": 0.01}
    assert (
        found["exact_match,strict"].dataset_type
        == found["exact_match,strict"].dataset_name
        == "gsm8k"
    )
    assert found["Win rate against gpt by big"].dataset_type == "tatsu-lab/alpaca_eval"
    assert (found["maj@8"].dataset_type, found["maj@8"].dataset_name) == (
        "org/problems-test",
        "org/problems test",
    )
    assert all(
        each.verified is False and each.task_type == "text-generation" for each in found.values()
    )


def test_a_card_of_trl_keeps_its_content_and_writing_is_idempotent(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(TRL, encoding="utf-8")
    texts = []
    for _ in range(2):
        write_metadata(
            card,
            RESULTS,
            "dpo",
            dataset_name="problems",
            base_model="another/base",
            datasets=["org/data"],
        )
        text = card.read_text(encoding="utf-8")
        data = metadata_load(card)
        assert data is not None
        had = yaml.safe_load(TRL.split("---\n")[1])
        assert {key: data[key] for key in had} == had
        assert data["datasets"] == ["org/data"]
        assert text.endswith(TRL.split("---\n", 2)[2])
        assert len(by_name(data)) == 7
        texts.append(text)
    assert texts[0] == texts[1]
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_new_figure_replaces_the_old_one_and_others_stay(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    write_metadata(card, RESULTS, "dpo", dataset_name="problems")
    write_metadata(card, RESULTS, "base", dataset_name="problems")
    again = {"student": {"dpo": {"accuracy": 0.9, "interval": [0.8, 1.0]}}}
    write_metadata(card, again, "dpo", dataset_name="problems")
    write_metadata(card, again, "dpo", dataset_name="other problems")
    data = metadata_load(card)
    assert data is not None
    assert [entry["name"] for entry in data["model-index"]] == ["dpo", "base"]
    assert by_name(data, 1)["Accuracy, greedy"].metric_value == 0.1
    accuracies = [
        (each.dataset_name, each.metric_value, each.metric_args)
        for each in model_index_to_eval_results([data["model-index"][0]])[1]
        if each.metric_name == "Accuracy, greedy"
    ]
    args = {"interval_95": [0.8, 1.0]}
    assert sorted(accuracies) == [("other problems", 0.9, args), ("problems", 0.9, args)]
    assert by_name(data)["maj@8"].metric_value == 0.75


def test_a_text_without_metadata_gets_some(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Mine\n", encoding="utf-8")
    write_metadata(card, RESULTS, "base", dataset_name="problems")
    assert card.read_text(encoding="utf-8").endswith("-->\n\n# Mine\n")
    assert by_name(metadata_load(card) or {}).keys() == {"Accuracy, greedy"}


def test_a_model_without_figures_names_those_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no figure of 'ppo'; it has figures of base, dpo, sft"):
        write_metadata(tmp_path / "README.md", RESULTS, "ppo", dataset_name="problems")
    with pytest.raises(ConfigError, match="it has figures of no model"):
        model_metadata({}, "dpo", dataset_name="problems")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "block",
    [
        "a: [",
        "- a list",
        "model-index: 3",
        "model-index:\n- results: []",
        "model-index:\n- name: base\n  results: [{}]",
    ],
)
def test_a_card_that_cannot_be_read_is_left_alone(tmp_path: Path, block: str) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\n{block}\n---\ntext\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"README\.md: the metadata of this card cannot be read"):
        write_metadata(card, RESULTS, "base", dataset_name="problems")
    assert card.read_text(encoding="utf-8") == f"---\n{block}\n---\ntext\n"
