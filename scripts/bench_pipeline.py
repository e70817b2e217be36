"""Measure a pipeline against the same stages by hand: wall time in the bundled world.

    python scripts/bench_pipeline.py [--num_prompts 100] [--budget 16] [--repeats 1]

By hand means the commands that a user would type one after the other. Both take turns, each in a
fresh folder, and their results are compared. The goal is at most 1.1 times the time by hand.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
STUDENT = "toa_trl/demo/weights/student"
EVALUATION: dict[str, Any] = {
    "prompts": "toa_trl/demo/data/heldout.jsonl",
    "num_prompts": 100,
    "verifier": "toa_trl.demo.world:accuracy_reward",
    "sampling": {"temperature": 0.7, "max_tokens": 64},
    "num_samples": 0,
}


def run(*arguments: object) -> None:
    """Run a command of toa-trl to its end."""
    subprocess.run(
        [sys.executable, "-m", "toa_trl", *map(str, arguments)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def by_hand(folder: Path, num_prompts: int, budget: int) -> Path:
    """Run every stage as a user would; returns the results."""
    synthesis, sft, dpo = (folder / name for name in ("synthesize", "sft", "dpo"))
    sizes = ("--num_prompts", num_prompts, "--budget", budget)
    run("synthesize", "--config", "demo/synthesize", *sizes, "--output_dir", synthesis)
    for method, start, out in (("sft", STUDENT, sft), ("dpo", sft, dpo)):
        options = ("--model_name_or_path", start, "--dataset_name", synthesis, "--output_dir", out)
        run(method, "--config", f"demo/{method}", *options)
    entry = {"engine": "transformers"}
    students = {"base": STUDENT, "sft": str(sft), "dpo": str(dpo)}
    models = [{"name": name, "model": model, **entry} for name, model in students.items()]
    results = folder / "results.json"
    content = {**EVALUATION, "models": models, "baseline": "base", "results": str(results)}
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(content))
    run("evaluate", "--config", folder / "evaluate.yaml")
    report = ("--results", results, "--output", folder / "report.html")
    run("report", synthesis, *report)
    return results


def by_pipeline(folder: Path, num_prompts: int, budget: int) -> Path:
    """Run the same stages as a pipeline; returns the results."""
    sizes = {"num_prompts": num_prompts, "budget": budget}
    content = {
        "output_dir": str(folder / "out"),
        "student": {"name": "student", "engine": "transformers", "model": STUDENT},
        "stages": [
            {"run": "synthesize", "config": "demo/synthesize", "options": sizes},
            {"run": "sft", "config": "demo/sft"},
            {"run": "dpo", "config": "demo/dpo"},
            {"run": "evaluate", "config": EVALUATION},
        ],
    }
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(content))
    run("run", file)
    return folder / "out/results.json"


def main() -> None:
    """Print the times, their ratio, and whether the results are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"by hand": [], "pipeline": []}
    found: dict[str, Any] = {}
    for repeat in range(options.repeats):
        ways = [("by hand", by_hand), ("pipeline", by_pipeline)]
        for name, way in ways if repeat % 2 == 0 else reversed(ways):
            folder, start = Path(mkdtemp(prefix="toa_trl-bench-")), time.perf_counter()
            results = way(folder, options.num_prompts, options.budget)
            times[name].append(time.perf_counter() - start)
            student = json.loads(results.read_text(encoding="utf-8"))["student"]
            found[name] = {model: figures["accuracy"] for model, figures in student.items()}
            shutil.rmtree(folder)
            print(f"{name}: {times[name][-1]:.1f} s, accuracy {found[name]}", flush=True)
    hand, pipeline = median(times["by hand"]), median(times["pipeline"])
    print(f"\nby hand {hand:.1f} s, pipeline {pipeline:.1f} s: {pipeline / hand:.3f} x")
    print(f"results equal: {found['by hand'] == found['pipeline']}")


if __name__ == "__main__":
    main()
