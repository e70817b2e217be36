"""`toa-trl merge-adapter`.

The merged model is base and adapter together, whole or not there, and mistakes are one line.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from tests.conftest import make_tokenizer
from tests.helpers import wait
from toa_trl.agents import make_agent
from toa_trl.errors import ConfigError, ToaError
from toa_trl.models.loading import load_model
from toa_trl.rewards import make_reward
from toa_trl.training import merge_adapter
from toa_trl.types import Message, Prompt, Sampling
from toa_trl.utils.files import fresh_path

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "toa_trl/demo/weights/student"
CARD = (
    "---\nlibrary_name: peft\nbase_model: some/base\ntags:\n- base_model:adapter:some/base\n- "
    "lora\n- trl\n---\n\n# My LoRA\n"
)


@pytest.fixture(name="merge")
def _merge() -> Callable[..., str]:
    def merge(
        adapter: Path,
        output: Path,
        base: str | None = None,
        dtype: str = "auto",
        text: str = "16 + 8 = 24",
    ) -> str:
        return str(merge_adapter.merge(adapter, output, base, dtype, text))

    return merge


def save_adapter(
    base: Path, folder: Path, *, task: str = "CAUSAL_LM", own_tokenizer: bool = True, **lora: Any
) -> Path:
    """A LoRA adapter that changes its base, as TRL's trainers save one."""
    torch.manual_seed(1)
    reward = task == "SEQ_CLS"
    model = (
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        if reward
        else AutoModelForCausalLM.from_pretrained(base)
    )
    settings = {"r": 4, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"], **lora}
    get_peft_model(model, LoraConfig(task_type=task, **settings)).save_pretrained(folder)
    if own_tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "lineage.json").write_text('{"method": "SFT"}')
    return folder


def logits(model: Path, text: str = "Eva has 16 coins.") -> torch.Tensor:
    loaded = load_model("here", "AutoModelForCausalLM", str(model), dtype="float32", device="cpu")
    ids = torch.tensor([AutoTokenizer.from_pretrained(STUDENT)(text)["input_ids"]])
    with torch.inference_mode():
        found: torch.Tensor = loaded(input_ids=ids).logits
    return found


def test_the_merged_model_is_base_and_adapter_together(
    tmp_path: Path, merge: Callable[..., str]
) -> None:
    adapter = save_adapter(STUDENT, tmp_path / "lora")
    said = merge(adapter, tmp_path / "deep/merged")
    merged = tmp_path / "deep/merged"
    torch.testing.assert_close(logits(merged), logits(adapter), atol=2e-4, rtol=1e-4)
    assert float((logits(merged) - logits(STUDENT)).abs().max()) > 0.1
    assert f"{adapter} on {STUDENT}, merged (float32); logits differ by" in said
    assert list((tmp_path / "deep").iterdir()) == [merged]  # nothing is left beside it
    assert not list(merged.glob("adapter*"))
    assert (merged / "chat_template.jinja").read_bytes() == (
        STUDENT / "chat_template.jinja"
    ).read_bytes()
    generation = GenerationConfig.from_pretrained(merged)
    assert (generation.eos_token_id, generation.pad_token_id) == (2, 0)
    assert metadata_load(merged / "README.md") == {
        "library_name": "transformers",
        "base_model": "some/base",
        "tags": ["trl"],
    }
    assert (merged / "README.md").read_text().endswith("# My LoRA\n")
    assert json.loads((merged / "lineage.json").read_text()) == {"method": "SFT"}

    agents = [
        make_agent(
            {"name": folder.name, "engine": "transformers", "model": str(folder), "device": "cpu"}
        )
        for folder in (adapter, merged, STUDENT)
    ]
    asked = [Message("user", "Eva has 16 coins. Then 6 are lost. How many coins are there now?")]
    one, two, base = (
        wait(a.generate(asked, sampling=Sampling(0.0, 1.0, 40), seed=0)) for a in agents
    )
    assert one == two  # text, tokens and FLOPs, which are those of the base
    assert one.text != base.text
    assert one.flops is not None


def test_a_tokenizer_that_only_the_base_has_comes_along(
    tmp_path: Path, merge: Callable[..., str]
) -> None:
    adapter = save_adapter(STUDENT, tmp_path / "lora", own_tokenizer=False)
    assert not (adapter / "tokenizer.json").exists()
    merge(adapter, tmp_path / "named")
    moved = tmp_path / "moved"
    shutil.copytree(STUDENT, moved)
    merge(adapter, tmp_path / "given", base=str(moved))
    for name in ("named", "given"):
        assert (tmp_path / name / "tokenizer.json").read_bytes() == (
            STUDENT / "tokenizer.json"
        ).read_bytes()
    torch.testing.assert_close(logits(tmp_path / "given"), logits(tmp_path / "named"))


def test_the_token_with_which_an_adapter_learnt_to_end_ends_the_merged_model(
    causal: Path, tmp_path: Path, merge: Callable[..., str]
) -> None:
    adapter = save_adapter(causal, tmp_path / "lora")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|user|>"  # as SFTTrainer's eos_token changes it
    tokenizer.save_pretrained(adapter)
    merge(adapter, tmp_path / "merged")
    both = [tokenizer.eos_token_id, AutoTokenizer.from_pretrained(causal).eos_token_id]
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == both
    # and the adapter as it is
    for folder in (adapter, tmp_path / "merged"):
        agent: Any = make_agent(
            {"name": "a", "engine": "transformers", "model": str(folder), "device": "cpu"}
        )
        assert agent._engine._eos == set(both)


def test_a_reward_models_adapter_gives_a_reward_model(
    causal: Path, tmp_path: Path, merge: Callable[..., str]
) -> None:
    adapter = save_adapter(causal, tmp_path / "lora", task="SEQ_CLS")
    merge(adapter, tmp_path / "merged")
    texts, prompt = ["4", "five", "a longer answer"], Prompt("p", (Message("user", "2 + 2?"),))
    before, after = (
        wait(
            make_reward({"kind": "classifier", "model": str(folder), "device": "cpu"}).score(
                prompt, texts
            )
        )
        for folder in (adapter, tmp_path / "merged")
    )
    assert after == pytest.approx(before, abs=1e-4)
    assert len({*map(float, after)}) == 3
    # others read it in batches, too
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config.pad_token_id
        == 0
    )


def test_the_dtype_can_be_another(causal: Path, tmp_path: Path, merge: Callable[..., str]) -> None:
    said = merge(save_adapter(causal, tmp_path / "lora"), tmp_path / "merged", dtype="bfloat16")
    assert "bfloat16" in said
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype
        == torch.bfloat16
    )


def test_a_folder_that_is_there_is_left_alone(
    causal: Path, tmp_path: Path, merge: Callable[..., str]
) -> None:
    adapter, output = save_adapter(causal, tmp_path / "lora"), tmp_path / "merged"
    output.mkdir()
    merge(adapter, output)  # it is empty
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(ConfigError, match="exists already; name another folder"):
        merge(adapter, output)
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(ConfigError, match="exists already"):
        merge(adapter, adapter)
    with pytest.raises(ConfigError, match="exists already"):
        merge(adapter, adapter / "README.md")


def test_what_a_killed_merge_has_left_is_cleared_away(
    causal: Path, tmp_path: Path, merge: Callable[..., str]
) -> None:
    fresh = fresh_path(tmp_path / "merged")
    fresh.mkdir()
    (fresh / "model-00001-of-00009.safetensors").write_text("half")
    merge(save_adapter(causal, tmp_path / "lora"), tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"lora", "merged"}
    assert not list((tmp_path / "merged").glob("*-of-*"))


def test_mistakes_are_one_line(causal: Path, tmp_path: Path, merge: Callable[..., str]) -> None:
    adapter, output = save_adapter(causal, tmp_path / "lora"), tmp_path / "merged"
    nameless = tmp_path / "nameless"
    shutil.copytree(adapter, nameless)
    config = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": None})
    )
    layers = {1: tmp_path / "one-layer", 3: tmp_path / "three-layers"}
    for number, folder in layers.items():
        model = AutoModelForCausalLM.from_pretrained(causal)
        model.config.num_hidden_layers, model.config.layer_types = number, None
        AutoModelForCausalLM.from_config(model.config).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    virtual = tmp_path / "virtual"
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(causal), prompts).save_pretrained(virtual)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"adapter": causal}, "has no adapter_config.json; name an adapter's folder"),
        ({"adapter": tmp_path / "nowhere"}, "has no adapter_config.json"),
        ({"adapter": nameless}, "names no base_model_name_or_path .* give --base"),
        ({"adapter": virtual}, "kind PROMPT_TUNING cannot be merged"),
        ({"base": str(tmp_path / "gone")}, "the base '.*gone' of .* cannot be loaded"),
        ({"base": str(STUDENT)}, "does not fit the base"),  # other sizes
        ({"base": str(layers[1])}, r"does not fit the base .* only one of them has .*layers\.1\."),
        ({"base": str(layers[3])}, r"does not fit the base .* only one of them has .*layers\.2\."),
        ({"dtype": "float31"}, "--dtype: must be .*, not 'float31'"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message) as raised:
            merge(**{"adapter": adapter, "output": output, **changes})
        assert "\n" not in str(raised.value)
        assert not output.exists()


def test_what_cannot_be_merged_into_one_model_is_refused(
    tmp_path: Path, merge: Callable[..., str]
) -> None:
    # embeddings are the output's weights, too, and the adapter is on one side alone
    adapter = save_adapter(STUDENT, tmp_path / "lora", target_modules=["embed_tokens"])
    with pytest.raises(ToaError, match="is another model: logits differ by up to"):
        merge(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
