"""Mistakes in a training.

Said in one line before the first step, or counted where rows are left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ROOT, WEIGHTS

Recipe = Callable[..., str]
STUDENT = f"{WEIGHTS}/student"


def turns(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def rows(folder: Path, *given: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return folder


def pair(chosen: str = "5", rejected: str = "6", prompt: str = "2 + 3?") -> dict[str, Any]:
    return {"prompt": turns(prompt, "user"), "chosen": turns(chosen), "rejected": turns(rejected)}


def demo(name: str, out: Path, *options: object) -> tuple[object, ...]:
    return (
        name,
        "--config",
        f"recipes/configs/demo/{name}.yaml",
        "--model_name_or_path",
        STUDENT,
        "--output_dir",
        out,
        *options,
    )


FORMATS: dict[str, tuple[str, Sequence[Mapping[str, Any]], str]] = {
    "other columns": ("sft", [{"question": "a"}], "the columns prompt and completion, or messages"),
    "found": (
        "dpo",
        [{"prompt": "a", "completion": "b"}],
        "the columns chosen and rejected are needed; there are: prompt, completion",
    ),
    "texts and messages": (
        "sft",
        [{"prompt": "a", "completion": turns("b")}],
        "in the first row prompt is a text, completion is a list of messages",
    ),
    "numbers": ("dpo", [{"prompt": "a", "chosen": 1, "rejected": 2}], "chosen is 1"),
    "no prompts": ("grpo", [{"question": "a"}], "the columns prompt are needed; there are: quest"),
    "no reward": ("grpo", [{"prompt": "a"}], "reward: the key is missing, and the prompts come"),
    "equal": ("dpo", [pair("5", "5")] * 3, "in every row of 'train' chosen equals rejected"),
    "equal, for a reward model": ("reward", [pair("5", "5")] * 3, "chosen equals rejected"),
    "long": ("dpo", [pair(prompt="word " * 300)] * 3, "no row is left: every prompt"),
    "long, for a reward model": ("reward", [pair("word " * 300)] * 3, "no row is left"),
    "long, for SFT": (
        "sft",
        [{"prompt": turns("word " * 300, "user"), "completion": turns("5")}],
        "no row is left",
    ),
}


@pytest.mark.parametrize("case", FORMATS)
def test_data(recipe: Recipe, tmp_path: Path, case: str) -> None:
    name, given, said = FORMATS[case]
    error = recipe(*demo(name, tmp_path / "out", "--dataset_name", rows(tmp_path / "data", *given)))
    assert said in error
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_nothing_there(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "could not be read" in recipe(
        *demo("sft", tmp_path / "out", "--dataset_name", tmp_path / "data")
    )
    assert "could not be read" in recipe(
        *demo("sft", tmp_path / "out", "--dataset_name", tmp_path / "none")
    )
    (tmp_path / "data" / "train.jsonl").write_text("")
    assert str(tmp_path / "data") in recipe(
        *demo("sft", tmp_path / "out", "--dataset_name", tmp_path / "data")
    )
    rows(tmp_path / "data", pair())
    options = ("--dataset_name", tmp_path / "data", "--eval_strategy", "epoch")
    assert "there is no split 'test', only train" in recipe(
        *demo("dpo", tmp_path / "out", *options)
    )
    assert not (tmp_path / "out").exists()


def test_packed_rows_that_teach_nothing(recipe: Recipe, tmp_path: Path) -> None:
    data = rows(
        tmp_path / "data", *[{"prompt": turns("word " * 300, "user"), "completion": turns("5")}] * 3
    )
    options = ("--dataset_name", data, "--packing", "true")
    assert "no row is left" in recipe(*demo("sft", tmp_path / "out", *options))


def test_packed_sequences_without_a_label_are_counted() -> None:
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    from toa_trl.utils.compat import num_masked_sequences

    labels = [[-100, -100], [1, 2, 3], [-100], [-100, 7], [-100, -100, -100], [5]]
    packed = pack_dataset(Dataset.from_dict({"input_ids": labels, "labels": labels}), 4, "bfd")
    assert len(packed) < len(labels)
    assert num_masked_sequences(packed) == 3


def test_reference_log_probs_of_no_rows(recipe: Recipe, tmp_path: Path) -> None:
    data = rows(tmp_path / "data", *[pair(prompt="word " * 300)] * 3)
    options = ("--dataset_name", data, "--precompute_ref_log_probs", "true")
    assert "no row is left" in recipe(*demo("dpo", tmp_path / "out", *options))


def test_mixtures(recipe: Recipe, tmp_path: Path) -> None:
    data = rows(tmp_path / "data", pair())

    def fails(*parts: Any, **more: Any) -> str:
        config = yaml.safe_load((ROOT / "recipes/configs/demo/dpo.yaml").read_text())
        del config["dataset_name"]
        path = tmp_path / "config.yaml"
        path.write_text(
            yaml.safe_dump(
                {**config, "output_dir": str(tmp_path / "out"), "datasets": list(parts), **more}
            )
        )
        return recipe("dpo", "--config", path, "--model_name_or_path", STUDENT)

    assert "did you mean 'fraction'" in fails({"path": str(data), "fractoin": 0.5})
    assert "datasets[1]: a mapping with a path" in fails({"path": str(data)}, "x")
    assert "either all datasets" in fails({"path": str(data), "fraction": 0.5}, {"path": str(data)})
    assert "datasets could not be read" in fails({"path": str(tmp_path / "none")})
    assert "datasets could not be read" in fails({"path": str(data), "fraction": 0.0})
    other = rows(tmp_path / "other", {"messages": turns("a", "user") + turns("b")})
    error = fails({"path": str(data)}, {"path": str(other)})
    assert f"{other}: the columns chosen and rejected are needed; there are: messages" in error
    assert "both are given" in fails({"path": str(data)}, dataset_name=str(data))
    assert "dataset_name: the key is missing" in fails()


def test_models(recipe: Recipe, training_data: Path, tmp_path: Path) -> None:
    def fails(*options: object) -> str:
        return recipe(
            *demo("sft", tmp_path / "out", "--dataset_name", training_data / "sft", *options)
        )

    (tmp_path / "model").mkdir()
    assert "neither config.json nor adapter_config.json" in fails(
        "--model_name_or_path", tmp_path / "model"
    )
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    assert "toa-trl merge-adapter" in fails("--model_name_or_path", tmp_path / "model")
    assert "no/such-model" in fails("--model_name_or_path", "no/such-model")
    error = fails("--use_peft", "--lora_target_modules", "q_proj", "w_pack")
    assert "lora_target_modules: " in error
    assert "has no w_pack; it has: embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj" in error
    assert "'*.q_proj' is not a regular expression" in fails(
        "--use_peft", "--lora_target_modules", "*.q_proj"
    )
    assert "has no score; it has" in fails("--use_peft", "--lora_target_modules", "score")
    # one target is no pattern, an embedding is one as well, and a reward model has a score: the
    # next mistake is reported
    for name, target in {"sft": "q_proj", "dpo": "embed_tokens", "reward": "score"}.items():
        options = (
            "--use_peft",
            "--lora_target_modules",
            target,
            "--dataset_name",
            tmp_path / "none",
        )
        assert "none could not be read" in recipe(*demo(name, tmp_path / "out", *options))
    assert "packing" in fails("--padding_free", "true")
    assert "report_to" in fails("--report_to", "comet_ml")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_checkpoints(recipe: Recipe, training_data: Path, tmp_path: Path) -> None:
    def fails(checkpoint: object, *options: object) -> str:
        resume = ("--resume_from_checkpoint", checkpoint)
        return recipe(
            *demo(
                "sft", tmp_path / "out", "--dataset_name", training_data / "sft", *resume, *options
            )
        )

    assert "is not a checkpoint, as it has no trainer_state.json" in fails(
        tmp_path / "checkpoint-3"
    )
    other = tmp_path / "checkpoint-4"
    shutil.copytree(ROOT / STUDENT, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    (other / "trainer_state.json").write_text("{}")
    assert "is of another model: num_hidden_layers 5, and here 3" in fails(other)
    (other / "config.json").write_text(json.dumps(config))
    (tmp_path / "lineage.json").write_text(json.dumps({"base_model": "org/base", "data": []}))
    assert (
        "is of another model: the model that was trained 'org/base', and here 'student'"
        in fails(other)
    )
    (tmp_path / "lineage.json").unlink()
    assert "holds a whole model, and this training is with --use_peft" in fails(other, "--use_peft")
    (other / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "other/base", "r": 4})
    )
    assert "holds an adapter, and this training is without --use_peft" in fails(other)
    error = fails(other, "--use_peft")
    assert f"its base 'other/base', and here '{STUDENT}', its rank 4, and here 16" in error


def test_devices(
    recipe: Recipe, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # as a launcher sets it
    options = ("--dataset_name", training_data / "sft", "--use_cpu", "false")
    error = recipe(*demo("sft", tmp_path / "out", *options))
    assert (
        "8 processes are started on this machine, which has no GPU: give accelerate launch "
        "--num_processes 1" in error
    )
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "none could not be read" in recipe(
        *demo("sft", tmp_path / "out", "--dataset_name", tmp_path / "none")
    )
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert "use_cpu" in recipe(*demo("sft", tmp_path / "out", *options, "--bf16", "true"))


def test_keys(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("learning_rat: 1.0\n")
    for name in ("sft", "dpo", "reward", "preference"):
        method = ("--method", "kto") if name == "preference" else ()
        assert "did you mean 'learning_rate'" in recipe(
            name, *method, "--config", tmp_path / "config.yaml"
        )
        assert "did you mean '--learning_rate'" in recipe(name, *method, "--learning_rat", 1)
    assert "method: must be one of kto, orpo, simpo, not 'ipo'" in recipe(
        "preference", "--method", "ipo"
    )
    assert "must be one of kto, orpo, simpo" in recipe("preference")
    assert "method simpo is TRL's CPO" in recipe(
        *demo("preference", tmp_path / "out", "--loss_type", "hinge")
    )
    assert "did you mean '--simpo_gamma'" in recipe(
        "preference", "--method", "simpo", "--simpo_gama", 1
    )


def test_rows_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from datasets import load_dataset

    from toa_trl.training.data import FORMATS as WANTED
    from toa_trl.training.data import usable_rows

    data = rows(tmp_path / "data", pair(), pair("5", "5"), pair("7", "8"))
    left = usable_rows("x", load_dataset(str(data)), "train", WANTED["dpo"])
    assert [row["chosen"][0]["content"] for row in left] == ["5", "7"]
    assert "x: dropped 1 of 3 rows: chosen equals rejected" in caplog.text


def test_a_prompt_that_the_other_columns_have_in_them_goes(tmp_path: Path) -> None:
    from datasets import Dataset

    from toa_trl.training.data import FORMATS as WANTED
    from toa_trl.training.data import usable_rows

    def columns(kind: str, **row: Any) -> list[str]:
        return usable_rows(
            "x", {"train": Dataset.from_list([row])}, "train", WANTED[kind]
        ).column_names

    talk = turns("2 + 3?", "user") + turns("5")
    assert columns("sft", prompt="2 + 3?", messages=talk) == ["messages"]
    assert columns("sft", prompt="2 + 3?", text="2 + 3? 5") == ["text"]
    other = turns("2 + 3?", "user") + turns("6")
    assert columns("dpo", prompt="2 + 3?", chosen=talk, rejected=other) == ["chosen", "rejected"]
    assert columns("dpo", **pair()) == ["prompt", "chosen", "rejected"]
    assert columns("dpo", prompt="a", chosen="b", rejected="c") == ["prompt", "chosen", "rejected"]
