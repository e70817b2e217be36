"""What a way of training adds to a student that SFT leaves between 0.5 and 0.85.

    python scripts/bench_students.py grpo [--seeds 0 1 2] [--output runs/students]
    python scripts/bench_students.py builders

OMP_NUM_THREADS=1 is fastest for models of this size.

The bundled world with few prompts: `toa` samples 60 prompts, 32 plays each, and the student learns
from the best response of each (SFT, 3 epochs, batches of 8). Seeds are those of the trainings; the
run is the same for all. Students answer the 480 held-out problems greedily: the mean reward of the
run's reward model, and the share of right answers. Differences are paired over seeds and problems,
with two 95 % intervals: for the trained students, over problems (`bootstrap`), and for other seeds
too (`planned_bound` of `toa_trl.evaluation.intervals`).

grpo: 20 steps of GRPO from the SFT student, on the prompts and with the reward model of the run.

builders: data sets that recipes make of the run, each for as many rows as 3 epochs of the best
responses are (and larger ones for 3 epochs too): SFT from the bundled student, and DPO, KTO and a
listwise loss on groups from the SFT student.

What is trained and judged is kept in the output folder, and not repeated.
"""

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from toa_trl.agents import make_agent
from toa_trl.cli.main import run as toa_trl
from toa_trl.data.prompts import load_prompts
from toa_trl.demo import world
from toa_trl.evaluation.intervals import bootstrap, planned_bound
from toa_trl.training import RewardFunc, reward_func
from toa_trl.types import Prompt, Sampling, as_dicts
from toa_trl.utils.aio import gather_or_cancel

BATCH = 8
NUM_STEPS = 24  # 3 epochs of 60 rows
TOP_4, REFINED = "{builder: best, top_k: 4}", "best,refinement_sft"
DATA: dict[str, dict[str, tuple[str, int]]] = {
    "sft": {
        "best, top_k 4": (TOP_4, NUM_STEPS),
        "best, refinement_sft": (REFINED, NUM_STEPS),
        "best, top_k 4, 3 epochs": (TOP_4, 90),
        "best, refinement_sft, 3 epochs": (REFINED, 35),
    },
    "dpo": {
        "pair": ("pair", NUM_STEPS),
        "top_bottom": ("{builder: top_bottom, max_pairs: 4}", NUM_STEPS),
        "refinement_pairs": ("refinement_pairs", NUM_STEPS),
        "length_matched": ("length_matched", NUM_STEPS),
    },
    "kto": {"kto": ("kto", NUM_STEPS)},
    "groups": {"groups": ("{builder: groups, max_responses: 8}", NUM_STEPS)},
}
"""Format -> name of the student -> recipes, and the number of steps."""


def train(recipe: str, output: Path, *options: object) -> Path:
    """Train unless it is done; return the folder of the model."""
    if not (output / "model.safetensors").is_file():
        options = ("--config", f"demo/{recipe}", "--output_dir", output, *options)
        toa_trl([recipe, *map(str, options), "--disable_tqdm", "true"])
    return output


def sampled(output: Path) -> Path:
    """Sample the run unless it is done; return its folder."""
    run = output / "run"
    size = ("--num_prompts", "60", "--budget", "32")
    if not (run / "report.html").is_file():
        toa_trl(["synthesize", "--config", "demo/synthesize", *size, "--output_dir", str(run)])
    return run


def sft(output: Path, run: Path, seed: int) -> Path:
    """Return the student that learned from the best responses."""
    options = ("--dataset_name", run / "sft", "--per_device_train_batch_size", BATCH)
    return train("sft", output / f"sft-{seed}", *options, "--seed", seed)


def with_grpo(output: Path, run: Path, seed: int) -> dict[str, Path]:
    """Return the students before and after GRPO."""
    before = sft(output, run, seed)
    options = ("--model_name_or_path", before, "--dataset_name", run, "--seed", seed)
    return {"SFT": before, "GRPO": train("grpo", output / f"grpo-{seed}", *options)}


def with_builders(output: Path, run: Path, seed: int) -> dict[str, Path]:
    """Return the students of every data set."""
    students = {"best": sft(output, run, seed)}
    for kind, recipes in DATA.items():
        start = () if kind == "sft" else ("--model_name_or_path", students["best"])
        for number, (name, (wanted, num_steps)) in enumerate(recipes.items()):
            data = output / f"data-{kind}-{number}"
            if not data.is_dir():
                toa_trl(["data", str(run), "--recipe", wanted, "--output", str(data)])
            size = ("--per_device_train_batch_size", BATCH, "--max_steps", num_steps)
            options = (*start, "--dataset_name", data / kind, *size, "--seed", seed)
            recipe = "preference" if kind == "kto" else kind
            method = ("--method", "kto") if kind == "kto" else ()
            folder = output / f"{kind}-{number}-{seed}"
            if kind == "groups":
                students[name] = train_listwise(students["best"], data / kind, folder, seed)
                continue
            students[name] = train(recipe, folder, *options, *method)
    return students


def train_listwise(start: Path, data: Path, output: Path, seed: int) -> Path:
    """Train on groups unless it is done; return the folder of the model.

    DPO for lists (LiPO, arXiv 2402.01878): the cross entropy between the softmax of a group's
    standardized rewards and that of beta * log(policy / reference); rate and beta of demo/dpo.
    """
    if (output / "model.safetensors").is_file():
        return output
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)
    policy, reference = (AutoModelForCausalLM.from_pretrained(start) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-5, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, NUM_STEPS)
    rows = [
        row for file in sorted(data.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    numbers = np.random.default_rng(seed)
    epochs = -(-NUM_STEPS * BATCH // len(rows))
    order = np.concatenate([numbers.permutation(len(rows)) for _ in range(epochs)])
    for step in range(NUM_STEPS):
        losses = []
        for index in order[step * BATCH : (step + 1) * BATCH]:
            row = rows[index]
            values = torch.tensor(row["rewards"])
            wanted = ((values - values.mean()) / values.std()).softmax(0)
            with torch.no_grad():
                before = log_probs(reference, tokenizer, row)
            gains = log_probs(policy, tokenizer, row) - before
            losses.append(-(wanted * (0.1 * gains).log_softmax(0)).sum())
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    policy.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def log_probs(model: Any, tokenizer: Any, row: Mapping[str, Any]) -> torch.Tensor:
    """Return the log-probability of every completion of a group."""
    prompt = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    whole = [
        tokenizer.apply_chat_template([*row["prompt"], *made], return_dict=True)["input_ids"]
        for made in row["completions"]
    ]
    assert all(ids[: len(prompt)] == prompt for ids in whole)
    padded = tokenizer.pad({"input_ids": whole}, padding_side="right", return_tensors="pt")
    logits = model(**padded).logits[:, :-1].log_softmax(-1)
    taken = logits.gather(-1, padded["input_ids"][:, 1:, None]).squeeze(-1)
    mask = padded["attention_mask"][:, 1:].clone()
    mask[:, : len(prompt) - 1] = 0
    return (taken * mask).sum(-1)


def judge(model: Path, problems: Sequence[Prompt], reward: RewardFunc) -> dict[str, list[float]]:
    """Return reward and correctness of the greedy response to each problem."""
    kept = model / "judged.json"
    if kept.is_file():
        content: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8"))
        return content
    agent = make_agent({"name": "student", "engine": "transformers", "model": str(model)})
    greedy = Sampling(temperature=0.0, max_tokens=64)

    async def answer() -> list[str]:
        asked = (agent.generate(one.messages, sampling=greedy, seed=0) for one in problems)
        return [done.text for done in await gather_or_cancel(asked)]

    answers = asyncio.run(answer())
    prompts = [as_dicts(problem.messages) for problem in problems]
    rewards = [value for value in reward(prompts, answers) if value is not None]
    pairs = zip(answers, problems, strict=True)
    right = [float(world.verify(text, one.metadata["answer"])) for text, one in pairs]
    assert len(rewards) == len(problems)
    kept.write_text(json.dumps({"reward": rewards, "accuracy": right}), encoding="utf-8")
    return {"reward": rewards, "accuracy": right}


def table(found: Mapping[str, Mapping[str, NDArray[np.float64]]], first: str) -> list[str]:
    """Return the lines of a table: every student, and its differences from the first one.

    Args:
        found: measure -> student -> shape (seeds, problems).
        first: name of the student that the others are compared with.
    """
    header = ["student"]
    for measure in found:
        header += [measure, f"against {first}, over problems", "over seeds too", "by seed"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in next(iter(found.values())):
        cells = [name]
        for values in found.values():
            gaps = values[name] - values[first]
            of_seeds = ", ".join(f"{share:.3f}" for share in values[name].mean(axis=1))
            cells += [f"{values[name].mean():.3f}"]
            if name == first:
                cells += ["", "", of_seeds]
                continue
            mean, half = gaps.mean(), planned_bound(values, name, first)
            by_seed = ", ".join(f"{gap:+.3f}" for gap in gaps.mean(axis=1))
            low, high = bootstrap([float(gap) for gap in gaps.mean(axis=0)])
            wide = "" if half is None else f"[{mean - half:+.3f}, {mean + half:+.3f}]"
            cells += [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]", wide, by_seed]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


EXPERIMENTS: dict[str, Any] = {"grpo": (with_grpo, "SFT"), "builders": (with_builders, "best")}


def main() -> None:
    """Train, judge and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/students"))
    options = parser.parse_args()
    students_of, first = EXPERIMENTS[options.experiment]
    run = sampled(options.output)
    problems = load_prompts(str(world.DATA / "heldout.jsonl"))
    judged: dict[str, list[dict[str, list[float]]]] = {}
    with reward_func(run) as reward:
        for seed in options.seeds:
            for name, model in students_of(options.output, run, seed).items():
                judged.setdefault(name, []).append(judge(model, problems, reward))
    found = {
        measure: {name: np.array([one[measure] for one in of]) for name, of in judged.items()}
        for measure in ("reward", "accuracy")
    }
    print("\n".join(table(found, first)))


if __name__ == "__main__":
    main()
