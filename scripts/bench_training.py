"""The training recipes against TRL's own scripts.

Tokens per second, and the way to the first step; and what settings bring.

python scripts/bench_training.py              # all of it, about fifteen minutes on two quiet cores
python scripts/bench_training.py speed start  # some of: speed, start, reference, packing, gpu

The data are a run of the bundled world, sampled first where runs/bench has none. Baseline and
figure are measured in the same run, in turns, and the median of them counts.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from toa_trl.rollouts import is_complete

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs/bench"
STUDENT = "toa_trl/demo/weights/student"
SETTINGS: dict[str, Any] = {
    "model_name_or_path": STUDENT,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-4,
    "max_length": 256,
    "logging_steps": 1000,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}
SCRIPTS = {"ours": ["recipes/{}.py"], "TRL's": ["-m", "trl.scripts.{}"]}
FIRST_STEP = """
import builtins, importlib, os, runpy, sys, threading, time
spent, depth = 0.0, 0
def counted(function):
    def wrapper(*args, **kwargs):
        global spent, depth
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        depth += 1
        begin = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            depth -= 1
            if not depth:
                spent += time.time() - begin
    return wrapper
builtins.__import__ = counted(builtins.__import__)
importlib.import_module = counted(importlib.import_module)
def stop(*args, **kwargs):
    print("first step:", time.time() - float(os.environ["BEGIN"]), spent, flush=True)
    os._exit(0)
def watch():
    while getattr(sys.modules.get("transformers.trainer"), "Trainer", None) is None:
        time.sleep(0.01)
    sys.modules["transformers.trainer"].Trainer.training_step = stop
threading.Thread(target=watch, daemon=True).start()
script = sys.argv[1:]
if script[0] == "-m":
    sys.argv = script[1:]
    runpy.run_module(script[1], run_name="__main__", alter_sys=True)
else:
    sys.argv, sys.path[0] = script, os.path.dirname(os.path.abspath(script[0]))
    runpy.run_path(script[0], run_name="__main__")
"""


def process(*words: object, **environment: str) -> tuple[str, float]:
    """Output and wall time in seconds of `python WORDS`."""
    env = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        **environment,
    }
    begin = time.time()
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**env, "BEGIN": str(begin), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr, time.time() - begin


def options(kind: str, **changes: Any) -> list[str]:
    settings = {
        **SETTINGS,
        "dataset_name": OUT / "synthesis" / kind,
        "output_dir": OUT / kind,
        **changes,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def trained(*words: object, **environment: str) -> dict[str, float]:
    """What the Trainer says at its end, and the wall time of the whole process."""
    output, wall = process(*words, **environment)
    (summary,) = re.findall(r"\{'train_runtime'.*?\}", output)
    numbers = {key: float(value) for key, value in re.findall(r"'(\w+)': '?([-\d.e+]+)'?", summary)}
    return {
        **numbers,
        "wall": wall,
        "tokens_per_s": numbers["num_tokens"] / numbers["train_runtime"],
    }


def table(*rows: tuple[object, ...]) -> None:
    for number, row in enumerate(rows):
        print(
            "| "
            + " | ".join(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row)
            + " |",
            flush=True,
        )
        if number == 0:
            print("|" + "---|" * len(row))
    print()


def speed(repeats: int) -> None:
    """Tokens per second of the training loop, which is TRL's in both."""
    rows: list[tuple[object, ...]] = [
        (
            "recipe",
            "ours, tokens/s",
            "TRL's script, tokens/s",
            "ratio (asked: 0.98)",
            "range of ratios",
        )
    ]
    for kind, epochs in {"sft": 6, "dpo": 3}.items():
        found: dict[str, list[float]] = {name: [] for name in SCRIPTS}
        for repeat in range(repeats):
            for name in list(SCRIPTS)[:: 1 if repeat % 2 else -1]:  # neither has the colder machine
                words = [part.format(kind) for part in SCRIPTS[name]]
                found[name].append(
                    trained(*words, *options(kind, num_train_epochs=epochs))["tokens_per_s"]
                )
        ratios = [ours / theirs for ours, theirs in zip(found["ours"], found["TRL's"], strict=True)]
        ours, theirs = (float(f"{median(found[name]):.0f}") for name in SCRIPTS)
        rows.append(
            (
                f"{kind}.py",
                f"{ours:,.0f}",
                f"{theirs:,.0f}",
                ours / theirs,
                f"{min(ratios):.3f} to {max(ratios):.3f}",
            )
        )
    print(f"Training loop, median of {repeats} in turns, one CPU thread")
    table(*rows)


def start(repeats: int) -> None:
    """From the start of the process to its first step."""
    rows: list[tuple[object, ...]] = [
        (
            "recipe",
            "ours, s",
            "of it imports",
            "TRL's script, s",
            "of it imports",
            "ratio (asked: <= 1.2)",
        )
    ]
    for kind in ("sft", "dpo"):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SCRIPTS}
        for repeat in range(repeats):
            for name in list(SCRIPTS)[:: 1 if repeat % 2 else -1]:
                words = [part.format(kind) for part in SCRIPTS[name]]
                output, _ = process("-c", FIRST_STEP, *words, *options(kind))
                ((total, imports),) = re.findall(r"first step: ([\d.]+) ([\d.]+)", output)
                found[name].append((float(total), float(imports)))
        total, imports = (
            {name: median(each[at] for each in found[name]) for name in SCRIPTS} for at in (0, 1)
        )
        seconds = (total["ours"], imports["ours"], total["TRL's"], imports["TRL's"])
        rows.append(
            (f"{kind}.py", *(f"{each:.1f}" for each in seconds), total["ours"] / total["TRL's"])
        )
    print(f"Start to first step, median of {repeats} in turns, tiny model, data in the cache")
    table(*rows)


def reference() -> None:
    """Reference log-probs once for all, against anew at every step; two epochs."""
    rows: list[tuple[object, ...]] = [
        ("reference log-probs", "training, s", "whole process, s", "tokens/s", "final loss")
    ]
    for name, value in {"at every step": "false", "precomputed": "true"}.items():
        # a cache of its own, in which no log-probs lie already
        changes = {"num_train_epochs": 2, "precompute_ref_log_probs": value}
        cache = OUT / f"cache-{os.getpid()}-{value}"
        done = trained("recipes/dpo.py", *options("dpo", **changes), HF_DATASETS_CACHE=str(cache))
        rows.append(
            (
                name,
                f"{done['train_runtime']:.1f}",
                f"{done['wall']:.1f}",
                f"{done['tokens_per_s']:,.0f}",
                done["train_loss"],
            )
        )
    print("dpo.py, two epochs")
    table(*rows)


def packing() -> None:
    """Compare packing with padding, on the same rows and the same number of tokens in a batch."""
    rows: list[tuple[object, ...]] = [("SFT", "steps", "training, s", "tokens/s", "final loss")]
    padded = {"num_train_epochs": 4, "per_device_train_batch_size": 32}
    packed = {"num_train_epochs": 4, "packing": "true", "max_length": 512}
    several = {**packed, "per_device_train_batch_size": 8}
    single = {**packed, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    settings: dict[str, dict[str, Any]] = {
        # without flash attention a packed batch is one sequence, and its attention quadratic
        "padded, 32 rows a batch": padded,
        "packed, 8 x 512 tokens a batch": several,
        "packed, 8 times 512": single,
    }
    for name, changes in settings.items():
        done = trained("recipes/sft.py", *options("sft", **changes))
        steps = done["train_steps_per_second"] * done["train_runtime"]
        rows.append(
            (
                name,
                f"{steps:.0f}",
                f"{done['train_runtime']:.1f}",
                f"{done['tokens_per_s']:,.0f}",
                done["train_loss"],
            )
        )
    print("Packing, on the responses of the run")
    table(*rows)


QWEN_05B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, of the vendor's data sheets


def gpu(shape: dict[str, int], vocabulary: int, length: int, **changes: Any) -> None:
    """bf16 SFT and DPO of a random model of Qwen2.5-0.5B's shape.

    Tokens/s and model FLOPs utilisation, Liger on and off.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from toa_trl.models.flops import flops_of

    tokenizer = AutoTokenizer.from_pretrained(ROOT / STUDENT)
    config = Qwen2Config(
        **shape,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(OUT / "random")
    tokenizer.save_pretrained(OUT / "random")
    words = [
        json.loads(line)["prompt"]
        for line in (ROOT / "toa_trl/demo/data/synthesis.jsonl").read_text().splitlines()
    ]
    text = " ".join(words * 20)

    def message(role: str, at: int) -> list[dict[str, str]]:
        return [{"role": role, "content": text[at : at + length // 2]}]  # a token a character

    pairs = [
        {
            "prompt": message("user", at),
            "chosen": message("assistant", at + 7),
            "rejected": message("assistant", at + 99),
        }
        for at in range(512)
    ]
    Dataset.from_list(pairs).to_parquet(OUT / "random-dpo/train.parquet")
    Dataset.from_list(
        [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    ).to_parquet(OUT / "random-sft/train.parquet")
    flops, device = (
        flops_of(config),
        torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    )
    peak = next((value for name, value in PEAK.items() if name in device), float("nan"))
    rows: list[tuple[object, ...]] = [
        ("recipe", "Liger", "tokens/s", "model FLOPs/s", "utilisation")
    ]
    for kind in ("sft", "dpo"):
        for liger in ("false", "true") if find_spec("liger_kernel") else ("false",):
            settings = {
                "model_name_or_path": OUT / "random",
                "dataset_name": OUT / f"random-{kind}",
                "max_length": length,
            }
            settings |= {
                "per_device_train_batch_size": 8,
                "use_liger_kernel": liger,
                "max_steps": 30,
                **changes,
            }
            settings |= {"dtype": "bfloat16", "bf16": "true"}
            found = trained(f"recipes/{kind}.py", *options(kind, **settings))["tokens_per_s"]
            passes = (
                3 if kind == "sft" else 4
            )  # forward and backward; DPO has the reference's forward as well
            spent = found * passes * flops(length) / length
            rows.append((f"{kind}.py", liger, f"{found:,.0f}", spent, spent / peak))
    print(f"bf16, {flops.num_parameters / 1e6:,.0f}M parameters, {length} tokens a row, {device}")
    table(*rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("speed", "start", "reference", "packing", "gpu")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (default: all)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="of the comparisons with TRL's scripts (default: 3)"
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    asked.parts = asked.parts or list(parts)
    if set(asked.parts) != {"gpu"} and not is_complete(OUT / "synthesis"):
        print("Sampling the data: 400 prompts x 24 plays, once")
        process(
            "recipes/synthesize.py",
            "--config",
            "recipes/configs/demo/synthesize.yaml",
            "--output_dir",
            OUT / "synthesis",
        )
    if "speed" in asked.parts:
        speed(asked.repeats)
    if "start" in asked.parts:
        start(asked.repeats)
    if "reference" in asked.parts:
        reference()
    if "packing" in asked.parts:
        packing()
    if "gpu" in asked.parts:
        import torch

        if torch.cuda.is_available():
            gpu(QWEN_05B, 151_936, 1024, use_cpu="false", gradient_checkpointing="false")
        else:
            print("gpu: there is none")


if __name__ == "__main__":
    main()
