"""Where a model comes from, in the card that TRL writes and in lineage.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load

from toa_trl.evaluation.metadata import write_evaluation
from toa_trl.hub.model_card import model_lineage, write_model_card

RUN = {
    "fingerprint": "0123456789abcdef",
    "search": "toa",
    "budget": 160,
    "agents": {"llama": "org/llama", "odd|one": None},
    "reward": "classifier `org/rm`",
}
FACTS = {"base_model": "org/base", "method": "SFT", "toa_trl": "0.1"}
CARD = "---\ntags: [trl]\n---\n# Model\n\ntext\n\n## Citations\n\n@article\n"
DATA = {"dataset": "me/first", "rows": 12345, "fraction": None, **RUN}


@pytest.fixture(scope="module")
def trl_card() -> str:
    """A card as TRL writes it."""
    from trl.trainer.utils import generate_model_card

    card = generate_model_card(
        base_model=None,
        model_name="my-sft",
        hub_model_id=None,
        dataset_name=None,
        tags=["trl", "sft"],
        wandb_url=None,
        trackio_url=None,
        comet_url=None,
        trainer_name="SFT",
    )
    return str(card)


def test_a_card_of_trls_is_extended_once_and_keeps_what_it_says(
    tmp_path: Path, trl_card: str
) -> None:
    path = tmp_path / "README.md"
    data: list[dict[str, Any]] = [DATA, {"dataset": "me/second", "rows": None, "fraction": 0.25}]
    write_model_card(tmp_path, data, FACTS, trl_card)
    once = path.read_text()
    write_model_card(tmp_path, data, FACTS, trl_card)
    assert path.read_text() == once
    row = "| `me/first` | 12,345 |  | 0123456789abcdef | `toa`, 160 scored plays per prompt | "
    assert row + "llama (`org/llama`), odd\\|one |" in once
    assert "| `me/second` |  | 0.25 |  |  |  |  |" in once
    assert "2. this model: SFT on `me/first` (run 0123456789abcdef), `me/second`" in once
    order = [
        "## Quick start",
        "## Training procedure",
        "## Training data",
        "## Lineage",
        "## Citations",
    ]
    assert [once.index(f"\n{heading}\n") for heading in order] == sorted(
        once.index(f"\n{each}\n") for each in order
    )
    assert "fine-tuned version of `org/base`." in once
    assert f'model="{tmp_path.name}"' in once
    said = [
        line
        for line in trl_card.split("---\n", 2)[2].splitlines()
        if line.strip() and "None" not in line
    ]
    assert all(line in once.splitlines() for line in said)
    about = ModelCard.load(path).data
    assert (about.datasets, about.base_model, set(about.tags)) == (
        ["me/first", "me/second"],
        "org/base",
        {"generated_from_trainer", "trl", "sft", "toa_trl"},
    )
    assert json.loads((tmp_path / "lineage.json").read_text()) == {
        **FACTS,
        "data": data,
        "parent": None,
    }


def test_the_card_names_the_reward_models_of_the_training(tmp_path: Path) -> None:
    facts = {**FACTS, "method": "GRPO", "rewards": ["classifier `org/rm`", "math"]}
    write_model_card(tmp_path, [DATA], facts, CARD)
    text = (tmp_path / "README.md").read_text()
    assert (
        "GRPO on `me/first` (run 0123456789abcdef), rewarded by classifier `org/rm`, math" in text
    )


def test_a_model_of_a_model_has_both_behind_it(tmp_path: Path) -> None:
    sft, dpo, run = tmp_path / "my-sft", tmp_path / "my-dpo", tmp_path / "my-run"
    for folder in (sft, dpo, run / "dpo"):
        folder.mkdir(parents=True)
    write_model_card(sft, [DATA], FACTS, CARD)
    data = [{**DATA, "dataset": str(run / "dpo"), "rows": 7}]
    facts = {"base_model": str(sft), "method": "DPO", "toa_trl": "0.1"}
    for _ in range(2):
        write_model_card(dpo, data, facts, CARD)
    found = model_lineage(str(dpo))
    assert (found["base_model"], found["parent"]) == ("my-sft", model_lineage(str(sft)))
    text = (dpo / "README.md").read_text()
    assert "1. `org/base`, the model that training started from" in text
    assert "2. `my-sft`: SFT on `me/first` (run 0123456789abcdef)" in text
    assert "3. this model: DPO on `my-run/dpo` (run 0123456789abcdef)" in text
    metadata = metadata_load(dpo / "README.md") or {}
    assert (metadata["base_model"], metadata.get("datasets")) == (
        "org/base",
        None,
    )  # my-run is on nobody's Hub
    assert str(tmp_path) not in text + (dpo / "lineage.json").read_text()
    assert model_lineage(str(dpo / "checkpoint-3")) == found


def test_training_that_goes_on_in_its_own_folder_is_one_stage(tmp_path: Path) -> None:
    write_model_card(tmp_path, [DATA], FACTS, CARD)
    again = {"base_model": str(tmp_path), "method": "DPO"}
    for _ in range(3):
        write_model_card(tmp_path, [DATA], again, CARD)
    found = model_lineage(str(tmp_path))
    assert (found["method"], found["parent"]["method"], found["parent"]["parent"]) == (
        "DPO",
        "SFT",
        None,
    )


def test_what_a_card_already_names_stays(tmp_path: Path) -> None:
    card = "---\nbase_model: org/other\ntags: mine\ndatasets: [a/b]\n---\n# Mine\n\nünïcode\n"
    write_model_card(tmp_path, [DATA], FACTS, card)
    assert metadata_load(tmp_path / "README.md") == {
        "base_model": "org/other",
        "tags": ["mine", "toa_trl"],
        "datasets": ["a/b", "me/first"],
    }
    assert "# Mine\n\nünïcode\n\n## Training data\n" in (tmp_path / "README.md").read_text()


def test_a_model_card_edited_by_hand_stays_when_the_model_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_model_card(tmp_path, [DATA], FACTS, CARD)
    write_evaluation(path, RESULTS, "dpo", "problems", "base")
    text = path.read_text().replace("tags:", "license: mit\ntags:", 1)
    path.write_text(f"{text}\n## Mine\n\nDo not use it.\n")
    write_model_card(tmp_path, [DATA], FACTS, CARD.replace("# Model", "# Better"))
    text = path.read_text()
    assert "# Better" in text
    assert "# Model" not in text
    assert "## Mine\n\nDo not use it.\n" in text
    assert "## Evaluation" not in text  # of the model before
    metadata = metadata_load(path) or {}
    assert metadata["license"] == "mit"
    assert "model-index" not in metadata


def test_a_lineage_of_data_is_none_of_a_model_and_a_broken_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    foreign = (
        {"data": [{"name": "x"}]},
        {"base_model": "org/base", "data": [{"name": "x"}]},
        {"base_model": 1, "data": []},
        {"base_model": "org/base", "data": ["x"]},
        {**FACTS, "data": [DATA], "parent": {"data": []}},
    )
    for content in (json.dumps(RUN), "{", "[]", "\xff", *map(json.dumps, foreign)):
        (tmp_path / "lineage.json").write_text(content, encoding="latin-1")
        assert model_lineage(str(tmp_path)) == {}
        facts = {"base_model": str(tmp_path), "method": "SFT"}
        write_model_card(tmp_path / "student", [DATA], facts, CARD)
    assert model_lineage("org/nowhere") == {}


def test_a_card_that_is_not_yaml_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    write_model_card(tmp_path, [DATA], FACTS, CARD)
    assert (tmp_path / "README.edited-1.md").read_text() == "---\na: [\n---\n"
    assert "# Model" in (tmp_path / "README.md").read_text()


RESULTS: dict[str, Any] = {
    "student": {
        "dpo": {"accuracy": 0.5, "interval": [0.4, 0.6], "mean_reward": -1.5, "num_problems": 1000},
        "base": {"accuracy": 0.1, "interval": [0.0, 0.2]},
    },
    "win_rates": [
        {"model": "dpo", "baseline": "base", "by": "judge", "win_rate": 0.6, "interval": [0.5, 0.7]}
    ],
}


def table_cells(text: str) -> list[list[str]]:
    """Return the cells of the table under "## Evaluation", its header first."""
    section = text.partition("## Evaluation\n")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_an_evaluation_is_a_table_beside_the_baseline(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_model_card(tmp_path, [DATA], FACTS, CARD)
    before = path.read_text()
    for _ in range(2):
        write_evaluation(path, RESULTS, "dpo", "problems", "base")
    text = path.read_text()
    assert table_cells(text) == [
        ["measured on", "metric", "this model", "`base`"],
        ["problems", "Accuracy, greedy", "0.5 [0.4, 0.6]", "0.1 [0, 0.2]"],
        ["problems", "Mean reward, greedy", "-1.5", "–"],
        ["problems", "Win rate against base by judge", "0.6 [0.5, 0.7]", "–"],
    ]
    assert "1,000 prompts of problems" in text
    assert text.count("## Evaluation") == 1
    assert before.split("-->\n", 1)[1] in text


def test_no_baseline_no_column(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "README.md", RESULTS, "base", "problems", "base")
    header, *_ = table_cells((tmp_path / "README.md").read_text())
    assert header == ["measured on", "metric", "this model"]
