"""What TRL's RewardTrainer saves is a reward model here, whole or as an adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.families import LLAMA3, make_family, make_one_token, save_family_model
from tests.helpers import wait
from tests.integration.conftest import ROOT
from toa_trl.errors import ConfigError
from toa_trl.rewards import make_reward
from toa_trl.training.merge_adapter import merge
from toa_trl.training.padding import with_pad_token
from toa_trl.types import Prompt

STUDENT = ROOT / "toa_trl/demo/weights/student"
TEXTS = ["5 + 3 = 8", "5 + 3 = 9", "I have 5 apples and 3 apples"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_trained_by_trl_scores_as_it_did_in_the_trainer(
    tmp_path: Path, lora: bool
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    def turns(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": text}]

    rows = [{"chosen": turns("5 + 3 = 8"), "rejected": turns("5 + 3 = 9")}] * 8
    settings: dict[str, Any] = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
    }
    arguments = RewardConfig(
        str(tmp_path), max_steps=3, learning_rate=1e-2, logging_steps=1, seed=0, **settings
    )
    peft = (
        LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
        if lora
        else None
    )
    trainer = RewardTrainer(
        str(STUDENT), args=arguments, train_dataset=Dataset.from_list(rows), peft_config=peft
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "reward"))
    assert (tmp_path / "reward" / "adapter_config.json").is_file() == lora

    expected = []
    for text in TEXTS:
        asked = trainer.processing_class.apply_chat_template(
            turns(text), return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            expected.append(float(trainer.model.eval()(**asked).logits[0, 0]))
    reward = make_reward({"kind": "classifier", "model": str(tmp_path / "reward"), "device": "cpu"})
    found = wait(reward.score(Prompt("p", "How many?"), TEXTS))  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[0] > found[1]


TURNS = [{"role": "user", "content": "How many?"}]
ANSWERS = ["5", "a longer answer than the others, 5 + 3 = 8", "", "5 + 3 = 9"]
EOS = {"llama3": "<|eot_id|>", "qwen2.5": "<|im_end|>", "mistral": "</s>"}
# with the padding token that the recipe trains with
TOKENIZERS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama3, missing": (partial(make_family, "llama3"), "<|reserved_special_token_0|>"),
    "llama3, eos": (partial(make_family, "llama3", pad=EOS["llama3"]), LLAMA3[2]),
    "llama3, only bos": (partial(make_family, "llama3", reserved=False), "<|begin_of_text|>"),
    "qwen2.5, differs": (partial(make_family, "qwen2.5"), "<|endoftext|>"),
    "qwen2.5, eos": (partial(make_family, "qwen2.5", pad=EOS["qwen2.5"]), "<|vision_pad|>"),
    "gemma, differs": (partial(make_family, "gemma"), "<pad>"),
    "mistral, missing": (partial(make_family, "mistral"), "<unk>"),
    "mistral, eos": (partial(make_family, "mistral", pad=EOS["mistral"]), "<unk>"),
    "one token, missing": (make_one_token, "<|pad|>"),
    "one token, eos": (partial(make_one_token, pad=True), "<|pad|>"),
}
CASES = [
    *((name, "recipe", 0) for name in TOKENIZERS),
    ("one token, eos", "recipe", 8),
    ("one token, missing", "recipe, LoRA", 8),
    ("llama3, missing", "recipe, LoRA", 0),
    ("mistral, eos", "recipe, LoRA", 0),
    *((name, "foreign", 0) for name in TOKENIZERS if "only" not in name),
    ("llama3, missing", "foreign, LoRA", 0),
    ("qwen2.5, eos", "foreign, LoRA", 0),
    ("mistral, eos", "foreign, LoRA", 0),
]


def trained(folder: Path, base: Path, how: str) -> Any:
    """Train two steps, save, and return TRL's trainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    rows = [
        {"chosen": [*TURNS, answer(one)], "rejected": [*TURNS, answer(other)]}
        for one, other in pairwise(ANSWERS)
    ]
    arguments = RewardConfig(
        str(folder),
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
    )
    lora = LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], modules_to_save=["score"]
    )
    kind = with_pad_token(RewardTrainer) if "recipe" in how else RewardTrainer
    trainer = kind(
        str(base),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora if "LoRA" in how else None,
    )
    trainer.train()
    trainer.save_model(str(folder))
    return trainer


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(("name", "how", "spare_rows"), CASES)
def test_a_reward_model_is_read_where_it_was_trained(
    tmp_path: Path, name: str, how: str, spare_rows: int
) -> None:
    """Scores of the trainer's own batches, of `classifier` alone and in batches, and of vLLM."""
    make, pad = TOKENIZERS[name]
    base = save_family_model(tmp_path / "base", make(), spare_rows=spare_rows)
    folder = tmp_path / "reward"
    trainer = trained(folder, base, how)
    if "recipe" in how:
        assert trainer.processing_class.pad_token == pad
        assert AutoTokenizer.from_pretrained(folder).pad_token == pad
    rows = [
        trainer.processing_class.apply_chat_template([*TURNS, answer(text)], return_dict=False)
        for text in ANSWERS
    ]
    batch = trainer.data_collator([{"chosen_ids": ids, "rejected_ids": rows[0]} for ids in rows])
    with torch.inference_mode():
        expected = trainer.model.eval()(**batch).logits[: len(rows), 0].tolist()
    assert len({round(value, 4) for value in expected}) == len(rows)

    prompt = Prompt("p", TURNS)  # type: ignore[arg-type]
    classifier = make_reward({"kind": "classifier", "model": str(folder), "device": "cpu"})
    alone = [wait(classifier.score(prompt, [text]))[0] for text in ANSWERS]
    together = wait(classifier.score(prompt, ANSWERS))
    assert alone == pytest.approx(expected, abs=1e-4)
    assert together == pytest.approx(expected, abs=1e-4)

    if "LoRA" in how:
        merge(folder, tmp_path / "merged", None, "auto", "text")
        merged = make_reward({"kind": "classifier", "model": str(tmp_path / "merged")})
        assert wait(merged.score(prompt, ANSWERS)) == pytest.approx(expected, abs=1e-4)

    server = {"kind": "vllm", "model": "m", "base_url": "http://localhost:1"}
    served = make_reward(server if "recipe" in how else {**server, "tokenizer": str(folder)})
    served._endpoints.post = partial(as_vllm, classifier._model, trainer.processing_class)  # type: ignore[attr-defined]
    assert wait(served.score(prompt, ANSWERS)) == pytest.approx(expected, abs=1e-4)


async def as_vllm(model: Any, tokenizer: Any, path: str, body: Any, parse: Any) -> float:
    """Answer as vLLM does, which reads the last token of a text."""
    assert path == "classify"
    ids = body.get("input") or tokenizer.apply_chat_template(body["messages"], return_dict=False)
    model.config.get_text_config().pad_token_id = None  # transformers then reads the last token
    with torch.inference_mode():
        value = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
    return parse({"data": [{"probs": [value]}]})


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("llama3, missing", {"pad_token": "<|eot_id|>"}, "'<|eot_id|>' ends every text.*reserved"),
        ("llama3, missing", {"pad_token": "<none>"}, "'<none>' is not a token of"),
        ("one token, eos", {"lora": True}, "has no token to pad with.*use_peft"),
    ],
)
def test_a_padding_token_that_ends_every_text_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], named: str
) -> None:
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    base = save_family_model(tmp_path / "base", TOKENIZERS[name][0]())
    arguments = RewardConfig(str(tmp_path / "reward"), use_cpu=True, bf16=False)
    arguments.pad_token = options.get("pad_token")
    lora = LoraConfig(task_type="SEQ_CLS") if "lora" in options else None
    with pytest.raises(ConfigError, match=named.replace("|", r"\|")):
        with_pad_token(RewardTrainer)(str(base), args=arguments, peft_config=lora)
