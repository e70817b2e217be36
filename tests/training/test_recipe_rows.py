"""The rows of every builder are what TRL's trainers take."""

from __future__ import annotations

from typing import Any

import pytest

from tests.families import make_family
from tests.helpers import play
from tests.test_rollouts import rollouts
from toa_trl.data.recipes import BUILDERS
from toa_trl.rollouts import Rollouts

# format -> columns that TRL's trainer reads; of groups, GRPO's reads the prompt
TRL = {
    "sft": {"prompt", "completion"},
    "dpo": {"prompt", "chosen", "rejected"},
    "kto": {"prompt", "completion", "label"},
    "groups": {"prompt"},
}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    it: Rollouts = rollouts(2)
    plays = [play(0, 1.0), play(1, 3.0, parent=0), play(2, 2.0, parent=1)]
    it._journal.append_all([(str(i), p) for i in range(2) for p in plays])
    datasets: dict[str, Any] = {}
    for builder in BUILDERS:
        datasets[builder] = it.to_datasets([{"builder": builder, "name": "r"}])
    return datasets


@pytest.mark.parametrize("builder", BUILDERS)
def test_trl_formats_the_rows_of_every_builder(made: dict[str, Any], builder: str) -> None:
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    ((kind, rows),) = made[builder].items()
    assert len(rows) >= 2
    assert set(rows.column_names) >= TRL[kind] | {"prompt_id", "recipe"}
    trained = rows.select_columns(sorted(TRL[kind]))
    assert is_conversational(trained[0])
    tokenizer = make_family("qwen2.5")
    for row in trained:
        formatted = maybe_apply_chat_template(row, tokenizer)
        assert formatted["prompt"].endswith("<|im_start|>assistant\n")
        for column in TRL[kind] - {"prompt", "label"}:
            assert formatted[column].endswith("<|im_end|>\n")
            assert row[column][0]["content"] in formatted[column]
