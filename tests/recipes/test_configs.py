"""recipes/configs: every file is one command, with keys and values that its recipe takes."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.cli.options import read_config
from toa_trl.cli.schema import CONFIGURATIONS
from toa_trl.search import SEARCHES
from toa_trl.search.toa import TOA
from toa_trl.utils.config import Config
from toa_trl.utils.registry import load_object

ROOT = Path(__file__).parents[2]
# those of the paper are commands of toa-trl, see test_paper.py; for pipelines see tests/pipeline
CONFIGS = sorted(
    path
    for path in (ROOT / "recipes/configs").rglob("*.yaml")
    if path.parts[-3] != "paper" and path.parent.name != "pipelines"
)
each = pytest.mark.parametrize(
    "path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "recipes/configs"))
)
PAPER = [path for path in CONFIGS if path.parent.name != "demo"]
TRAINING = [
    path
    for path in PAPER
    if path.stem.endswith(("_full", "_lora", "_qlora")) and not path.stem.startswith("grpo")
]
LLAMA = ROOT / "recipes/configs/llama3-8b"
VALUES = (
    "beta",
    "dtype",
    "learning_rate",
    "lora_alpha",
    "lora_r",
    "lr_scheduler_type",
    "max_length",
    "num_train_epochs",
    "warmup_steps",
)


class Parsed(Exception):
    """What the options of a recipe became."""


def command(path: Path) -> list[str]:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("# ")
    return shlex.split(first[2:])


def options(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the recipe of the launch command makes of a configuration.

    The recipe is stopped there.
    """
    words = command(path)
    recipe = next(word for word in words if word.startswith("recipes/") and word.endswith(".py"))
    monkeypatch.chdir(ROOT)
    if Path(recipe).stem in CONFIGURATIONS:
        model = load_object("schema", CONFIGURATIONS[Path(recipe).stem][0])
        config = read_config(model, words[words.index(recipe) + 1 :])
        return {key: as_written(getattr(config, key)) for key in model.model_fields}
    return trained(Path(recipe).stem, path, monkeypatch)


def as_written(value: Any) -> Any:
    """A value of a configuration, with entries as the mappings that they were in the file."""
    if isinstance(value, list):
        return [as_written(entry) for entry in value]
    return value.model_dump(exclude_unset=True) if isinstance(value, Config) else value


def trained(recipe: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training recipe makes of a configuration, in the working folder of the clone."""
    from trl import TrlParser

    parse = TrlParser.parse_args_and_config

    def stop(parser: Any, arguments: list[str]) -> None:
        if any(action.dest == "use_cpu" for action in parser._actions):
            arguments = [
                *arguments,
                "--use_cpu",
                "True",
            ]  # bf16 is for GPUs, and checked against this machine
        raise Parsed(parse(parser, arguments))

    monkeypatch.setattr(TrlParser, "parse_args_and_config", stop)
    file = f"recipes/{recipe}.py"
    monkeypatch.setattr(sys, "argv", [file, "--config", str(path)])
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(file, run_name="__main__")
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    return {key: value for part in parsed.value.args[0] for key, value in vars(part).items()}


@each
def test_the_first_line_starts_it(path: Path) -> None:
    words = command(path)
    files = [word for word in words if re.search(r"\.(py|yaml)$", word)]
    assert str(path.relative_to(ROOT)) == words[words.index("--config") + 1]
    assert len(files) >= 2
    assert [word for word in files if not (ROOT / word).is_file()] == []


@each
def test_its_recipe_takes_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(path, monkeypatch)
    for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if key in (
            "use_cpu",
            "lora_target_modules",
        ):  # the one is set by this test, the other read as one name
            continue
        assert found[key] == value or key in ("datasets", "train", "report_to", "sampling"), key


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_the_trainings_promise(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(path, monkeypatch)
    lora = path.stem.endswith("lora")
    assert found["load_in_4bit"] == path.stem.endswith("_qlora")
    assert found["report_to"]
    assert found["use_peft"] == lora
    assert "zero3" in " ".join(command(path)) or lora or "0.5b" in str(path)
    assert found["max_length"] >= 2 * 2048  # what the responses may have, and room for a prompt
    assert found["bf16"]
    assert found["gradient_checkpointing"]
    assert found["num_train_epochs"] == 1
    assert found["save_total_limit"] == 1
    assert 0 < found["warmup_steps"] < 1  # a share: an old warmup_ratio would be an unknown key
    if path.stem.startswith("sft"):
        assert found["packing"] is True
        assert found["packing_strategy"] == "bfd"
        assert found["completion_only_loss"] is True
    if path.stem.startswith("dpo") and not lora:
        assert found["precompute_ref_log_probs"]
    if path.stem.startswith("simpo"):  # CPO's 0.1 and 0.5 are far too small
        assert 2.5 <= found["beta"] <= 10
        assert 0.3 <= found["simpo_gamma"] / found["beta"] <= 0.5
    # whoever trains all weights in one process keeps them in float32: there is no other copy of
    # them
    if not lora and "zero3" not in " ".join(command(path)):
        assert found["dtype"] == "float32"


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_value_of_a_training_has_its_reason(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        key = line.partition(":")[0]
        assert line.startswith("#") or key not in VALUES or "  # " in line, line


def test_the_two_rates_of_sft_differ_in_nothing_else() -> None:
    paths = [LLAMA / f"{name}.yaml" for name in ("sft_full", "sft_low_rate_full")]
    one, other = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths)
    assert (one.pop("learning_rate"), other.pop("learning_rate")) == (2e-5, 5e-6)
    assert one.pop("output_dir") != other.pop("output_dir")
    assert one == other


def test_a_base_model_stops_where_its_template_ends_a_turn() -> None:
    path = ROOT / "recipes/configs/qwen2.5-7b-base/sft_full.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["model_name_or_path"] == "Qwen/Qwen2.5-7B"
    assert config["eos_token"] == "<|im_end|>"


def test_the_normalized_loss_has_the_margin_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(LLAMA / "dpo_norm_full.yaml", monkeypatch)
    assert (found["loss_type"], found["beta"]) == (["sigmoid_norm"], 5.0)
    assert found["attn_implementation"] == "flash_attention_2"


@pytest.mark.parametrize("method", ["simpo", "orpo"])
def test_every_method_without_a_reference_has_an_8b_configuration(method: str) -> None:
    path = ROOT / f"recipes/configs/llama3-8b/{method}_full.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["method"] == method


def test_an_8b_student_learns_from_the_reward_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "recipes/configs/llama3-8b"
    found = options(folder / "grpo_lora.yaml", monkeypatch)
    sampled = yaml.safe_load((folder / "synthesize.yaml").read_text(encoding="utf-8"))
    assert found["dataset_name"] == sampled["output_dir"]
    assert found["trust"] == sampled["reward"]["trust_remote_code"]
    assert found["max_completion_length"] == sampled["sampling"]["max_tokens"]
    batch = found["per_device_train_batch_size"] * found["gradient_accumulation_steps"]
    assert batch % found["num_generations"] == 0
    assert found["use_peft"]
    assert found["bf16"]


def test_the_full_comparison_has_every_search_three_seeds_and_enough_problems() -> None:
    config = read_config(ComparisonConfig, ["--config", "demo/compare_full"])
    assert set(config.compared) == set(SEARCHES.targets)
    assert (config.seeds, min(config.budgets), max(config.budgets)) == ([0, 1, 2], 8, 64)
    assert config.baseline == "parallel"
    assert len(config.load_prompts()) >= 480


def test_the_papers_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from toa_trl.search import make_search

    found = options(ROOT / "recipes/configs/llama3-8b/synthesize.yaml", monkeypatch)
    names = [agent["name"] for agent in found["agents"]]
    search = make_search(found["search"], names, found["budget"], **found["search_params"])
    assert isinstance(search, TOA)
    assert (len(names), found["budget"], search.width) == (4, 160, 53)
    assert found["preference"] == {"policy": "rank", "rejected_rank": 30}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_their_neighbours(attention: str) -> None:
    # what packing_strategy: bfd promises, also where no flash attention is installed
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = AutoModelForCausalLM.from_pretrained(
        ROOT / "toa_trl/demo/weights/student", attn_implementation=attention
    ).eval()
    examples = [list(range(5, 25)), list(range(60, 27, -1)), list(range(30, 41))]
    together = [token for example in examples for token in example]
    row = {
        "input_ids": together,
        "labels": together,
        "seq_lengths": [len(example) for example in examples],
    }
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([row])
    del batch["labels"]
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        apart = torch.cat(
            [model(input_ids=torch.tensor([example])).logits[0] for example in examples]
        )
        as_one = model(input_ids=torch.tensor([together])).logits[0]
    assert torch.allclose(packed, apart, atol=1e-4)
    assert not torch.allclose(as_one, apart, atol=1e-1)
