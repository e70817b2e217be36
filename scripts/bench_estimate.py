"""What toa_trl/training/estimate/command.py says beside what is measured.

Trainings of two steps in float32 on the CPU, each in a process of its own.

    python scripts/bench_estimate.py [--only sft,lora]      # a few minutes on one core

Measured: the process's largest resident memory while TRL's trainer runs, less what it was before
the model was made, after the imports and a training of the bundled student, so that what torch
loads at a first step is not counted. The allocator gives freed blocks back at once
(MALLOC_MMAP_THRESHOLD_), or it would measure itself. Nothing is fitted to a case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STUDENT = "toa_trl/demo/weights/student"
SIZES: dict[str, dict[str, int]] = {  # name -> what a LlamaConfig is made of
    "7M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192},
    "18M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 11,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 256},
    "20M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 11,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 4096},
    "53M": {"hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10,
        "num_attention_heads": 10, "num_key_value_heads": 5, "vocab_size": 8192},
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    # the weights and their states are the most of it
    {"recipe": "sft", "model": "53M", "batch": 1, "length": 128},
    {"recipe": "sft", "model": "53M", "batch": 1, "length": 128, "accumulation": 2},
    {"recipe": "dpo", "model": "53M", "batch": 1, "length": 128, "checkpointing": True},
    {"recipe": "dpo", "model": "53M", "batch": 1, "length": 128, "checkpointing": True,
        "precompute": True},
    # the blocks' activations are: 256 words make the head small
    {"recipe": "sft", "model": "student", "batch": 32, "length": 256},
    {"recipe": "sft", "model": "18M", "batch": 8, "length": 256},
    {"recipe": "sft", "model": "18M", "batch": 4, "length": 512},
    {"recipe": "sft", "model": "18M", "batch": 8, "length": 256, "checkpointing": True},
    {"recipe": "sft", "model": "18M", "batch": 8, "length": 256, "lora_r": 16},
    {"recipe": "sft", "model": "18M", "batch": 8, "length": 256, "lora_r": 16,
        "lora_dropout": 0.05},
    {"recipe": "sft", "model": "18M", "batch": 8, "length": 256, "lora_r": 16,
        "checkpointing": True},
    {"recipe": "dpo", "model": "18M", "batch": 4, "length": 256},
    {"recipe": "dpo", "model": "18M", "batch": 4, "length": 256, "lora_r": 16},
    # the head is
    {"recipe": "sft", "model": "7M", "batch": 4, "length": 512},
    {"recipe": "sft", "model": "7M", "batch": 4, "length": 512, "checkpointing": True},
    {"recipe": "sft", "model": "20M", "batch": 8, "length": 256, "lora_r": 16},
    # whole logits are
    {"recipe": "orpo", "model": "7M", "batch": 4, "length": 256},
    {"recipe": "simpo", "model": "7M", "batch": 4, "length": 256},
    {"recipe": "simpo", "model": "18M", "batch": 4, "length": 256},
    # the reference model, and the cache of what is sampled
    {"recipe": "kto", "model": "53M", "batch": 2, "length": 128},
    {"recipe": "kto", "model": "18M", "batch": 8, "length": 256, "lora_r": 16},
    {"recipe": "grpo", "model": "53M", "batch": 2, "length": 128, "beta": 0.1},
    {"recipe": "grpo", "model": "18M", "batch": 2, "length": 128, "checkpointing": True,
        "accumulation": 8},
    {"recipe": "rloo", "model": "18M", "batch": 8, "length": 128},
]  # fmt: skip
PROMPT_TOKENS = 16  # at least as many as the prompt of GRPO and RLOO has


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="cases whose name has all of these words, after commas")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case as JSON, in this process
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure_here(json.loads(options.case))))
        return
    print("| training | estimated, MiB | measured, MiB | ratio | the peak is estimated at |")
    print("| --- | ---: | ---: | ---: | --- |")
    for case in CASES:
        if options.only is None or all(word in name_of(case) for word in options.only.split(",")):
            found = measure(case)
            ratio = found["estimated"] / found["measured"]
            sizes = f"{found['estimated'] / 2**20:,.0f} | {found['measured'] / 2**20:,.0f}"
            print(f"| {name_of(case)} | {sizes} | {ratio:.2f} | {found['peak']} |", flush=True)


def name_of(case: dict[str, Any]) -> str:
    """In words."""
    parts = [case["recipe"], case["model"], f"{case['batch']} x {case['length']}"]
    parts += ["checkpointing"] if case.get("checkpointing") else []
    parts += [f"lora {case['lora_r']}"] if case.get("lora_r") else []
    parts += [f"dropout {case['lora_dropout']}"] if case.get("lora_dropout") else []
    parts += [f"{case['accumulation']} passes a step"] if case.get("accumulation") else []
    parts += ["precomputed reference"] if case.get("precompute") else []
    parts += [f"beta {case['beta']}"] if case.get("beta") else []
    return ", ".join(parts)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{estimated, measured, peak}; sizes in bytes.

    In a process of its own, whose memory begins small.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name_of(case)}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_here(case: dict[str, Any]) -> dict[str, Any]:
    """Estimate the very options that the trainer gets, and measure the growth of the memory."""
    import gc

    import transformers

    from toa_trl.training.estimate.memory import estimate as arithmetic
    from toa_trl.training.estimate.plan import inputs_of
    from toa_trl.training.estimate.sizes import Sharding

    transformers.logging.set_verbosity_error()
    with TemporaryDirectory() as folder:
        warm = {**case, "model": "student", "batch": 2, "length": 32}
        train(warm, config_of("student"), folder)
        gc.collect()
        config = config_of(case["model"])
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = resident("VmRSS")
        model, training = train(case, config, folder)
        measured = resident("VmHWM") - before
    device = Sharding()
    shape, plan = inputs_of(
        case["recipe"], training, model, config, device, on_cpu=True, prompt_tokens=PROMPT_TOKENS
    )
    memory = arithmetic(shape, plan, device)
    return {"estimated": memory.total, "measured": measured, "peak": memory.peak}


def resident(key: str) -> int:
    """VmRSS, or VmHWM, its peak; in bytes."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) * 1024


def config_of(name: str) -> Any:
    from transformers import AutoConfig, LlamaConfig

    if name == "student":
        return AutoConfig.from_pretrained(STUDENT)
    return LlamaConfig(
        **SIZES[name], max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0
    )


def train(case: dict[str, Any], config: Any, folder: str) -> tuple[Any, Any]:
    """Two steps of TRL's trainer; every row fills `length`.

    Returns TRL's ModelConfig and the trainer's configuration.
    """
    import copy

    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import ModelConfig, get_peft_config

    from toa_trl.training.estimate.command import config_class_of

    lora = {"use_peft": bool(case.get("lora_r")), "lora_r": case.get("lora_r") or 16}
    model_config = ModelConfig(
        **lora,
        lora_dropout=case.get("lora_dropout", 0.0),
        lora_target_modules=["all-linear"],
        dtype="float32",
    )
    recipe, length = case["recipe"], case["length"]
    options: dict[str, Any] = {
        "output_dir": folder, "max_steps": 2, "per_device_train_batch_size": case["batch"],
        "gradient_accumulation_steps": case.get("accumulation", 1),
        "gradient_checkpointing": case.get("checkpointing", False), "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    words = " ".join(str(number) for number in range(10, 99)) * 40
    rows = case["batch"] * options["gradient_accumulation_steps"] * 2
    columns: dict[str, list[Any]] = {"prompt": ["1"] * rows}
    model = AutoModelForCausalLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    given: dict[str, Any] = {"peft_config": get_peft_config(model_config)}
    trainer_class: Any
    if recipe == "sft":
        trainer_class, columns = trl.SFTTrainer, {"text": [words] * rows}
    elif recipe in ("dpo", "kto"):
        options["precompute_ref_log_probs"] = case.get("precompute", False)
        trainer_class = trl.DPOTrainer if recipe == "dpo" else trl.KTOTrainer
        if not model_config.use_peft and not options["precompute_ref_log_probs"]:
            given["ref_model"] = copy.deepcopy(model)
    elif recipe == "orpo":
        trainer_class = import_module("trl.experimental.orpo").ORPOTrainer
    elif recipe == "simpo":
        trainer_class = import_module("trl.experimental.cpo").CPOTrainer
        options |= {"loss_type": "simpo", "cpo_alpha": 0.0}
    else:
        trainer_class = trl.GRPOTrainer if recipe == "grpo" else trl.RLOOTrainer
        options |= {"max_completion_length": length - PROMPT_TOKENS, "num_generations": 2}
        options["beta"] = case.get("beta", 0.0)
        # a model that has no end of its answer, so that every completion has all of its tokens
        options["generation_kwargs"] = {"eos_token_id": None}
        given["reward_funcs"] = [lambda completions, **_: [float(len(it)) for it in completions]]
        if options["beta"]:  # TRL loads the reference by the name of the model
            model.save_pretrained(f"{folder}/model")
            model.name_or_path = model.config._name_or_path = f"{folder}/model"
    if recipe in ("dpo", "orpo", "simpo"):
        columns |= {"chosen": [words] * rows, "rejected": ["2" + words] * rows}
    elif recipe == "kto":
        columns |= {"completion": [words] * rows, "label": [True, False] * (rows // 2)}
    if recipe not in ("grpo", "rloo"):
        options["max_length"] = length
    training = config_class_of(recipe)(**options)
    data = Dataset.from_dict(columns)
    trainer = trainer_class(
        model=model, args=training, train_dataset=data, processing_class=tokenizer, **given
    )
    trainer.train()
    return model_config, training


if __name__ == "__main__":
    main()
