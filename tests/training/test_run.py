"""What is counted, reported and written around a trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from toa_trl.errors import ConfigError
from toa_trl.training.data import TrainingData
from toa_trl.training.run import construction_errors, count_rows, with_lineage


def trainer_with(rows: list[dict[str, Any]]) -> Any:
    return SimpleNamespace(
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
        is_world_process_zero=lambda: True,
        args=SimpleNamespace(max_length=9),
    )


def test_rows_that_trl_drops_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    data = TrainingData(Dataset.from_list([{"text": "a"}] * 3), None)
    assert count_rows(trainer_with([{"input_ids": [1]}] * 3), data, "SFT") == 3
    assert not caplog.text
    assert count_rows(trainer_with([{"input_ids": [1]}]), data, "SFT") == 1
    assert "2 of 3 rows teach nothing: the prompt alone is longer than max_length 9" in caplog.text
    empty = trainer_with([{"input_ids": [1]}])
    empty.train_dataset = empty.train_dataset.select([])
    with pytest.raises(ConfigError, match="no row is left"):
        count_rows(empty, data, "SFT")


def test_kto_makes_two_rows_of_a_pair(caplog: pytest.LogCaptureFixture) -> None:
    data = TrainingData(Dataset.from_list([{"chosen": "a", "rejected": "b"}] * 2), None)
    assert count_rows(trainer_with([{"input_ids": [1]}] * 3), data, "KTO") == 3
    assert "1 of 4 rows teach nothing" in caplog.text


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("two\n lines"), ConfigError, "^two lines$"),
        (RuntimeError("XCallback requires x to be installed"), ConfigError, "^report_to: XCall"),
        (
            ImportError("the package for FlashAttention2 doesn't seem to be installed."),
            ConfigError,
            "^attn_implementation: .*FlashAttention2.*pip install flash-attn.*sdpa",
        ),
        (ImportError("bitsandbytes needs to be installed"), ConfigError, "^bitsandbytes needs"),
        (RuntimeError("out of memory"), RuntimeError, "out of memory"),
        (NotImplementedError("not for this model"), ConfigError, "not for this model"),
        (ValueError("expected a non-empty list"), ConfigError, "no row is left"),
    ],
)
def test_errors_of_construction(error: Exception, raised: type[Exception], message: str) -> None:
    with pytest.raises(raised, match=message), construction_errors():
        raise error


def test_every_card_names_the_data(tmp_path: Path) -> None:
    class Trainer:
        args = SimpleNamespace(output_dir=str(tmp_path), push_to_hub=False)

        def create_model_card(self, model_name: str) -> None:
            (Path(self.args.output_dir) / "README.md").write_text(f"# {model_name}\n")

        def is_world_process_zero(self) -> bool:
            return True

    trainer = with_lineage(Trainer)()
    trainer.lineage = [{"dataset": "org/data", "fraction": None, "rows": 5}]
    trainer.facts = {"base_model": "org/base", "method": "SFT"}
    trainer.create_model_card(model_name="mine")
    card = (tmp_path / "README.md").read_text()
    assert card.count("# mine") == 1
    assert "org/data" in card
    assert (tmp_path / "lineage.json").is_file()
