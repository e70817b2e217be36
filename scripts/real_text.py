"""The three tasks on real text, by the recipes, without GPU or network: the models are recordings.

    python scripts/real_text.py translation alignment math [--data ../shared/data] [--limit 100]

translation  WMT'22 into English from five languages: the recorded outputs of six systems are the
             agents of a parallel search, chrF against the reference is its reward. Do its picks
             beat every system in corpus chrF?
alignment    The 805 AlpacaEval prompts: recorded outputs of five systems, and a scripted server as
             the judge. It rates by the number of words, so the figures do not compare the systems.
             Then evaluate: win rates of the picks over one system by reward and by the judge in
             pairs, and AlpacaEval 2 with a scripted annotator (needs scripts/alpaca_environment).
math         GSM8K test and MATH-500: an agent that gives the gold answers is always right.

The tables are also in runs/real_text/results.json, with everything they are made of; a second start
resumes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sacrebleu
import yaml
from datasets import load_dataset

from toa_trl.data.prompts import load_prompts
from toa_trl.evaluation.results import markdown_table, update_results
from toa_trl.rollouts import is_complete
from toa_trl.tasks import make_task
from toa_trl.types import as_dicts
from toa_trl.utils.files import read_jsonl

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the scripted servers are part of the tests
LANGUAGES = {
    "cs": "Czech",
    "de": "German",
    "is": "Icelandic",
    "ru": "Russian",
    "zh": "Chinese",
    "en": "English",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared/data", help="folder of the data sets"
    )
    parser.add_argument("--limit", type=int, help="take the first so many of each file")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/real_text")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        print(f"\n{part}")
        folder = options.output / (f"{part}-{options.limit}" if options.limit else part)
        rows = PARTS[part](options.data, folder, options.limit)
        update_results(options.output / "results.json", part, rows)
        print(markdown_table(rows))


def translation(data: Path, output: Path, limit: int | None) -> list[dict[str, Any]]:
    rows = {}
    for file in sorted((data / "wmt22").glob("*.jsonl")):
        source, target = (LANGUAGES[code] for code in file.stem.split("-"))
        for row in _rows(file, limit):
            rows[row["id"]] = {**row, "source_language": source, "target_language": target}
    prompts = _write(
        output / "prompts.jsonl",
        ({k: v for k, v in row.items() if k != "outputs"} for row in rows.values()),
    )
    agents = _record(
        output, prompts, "translation", {id: row["outputs"] for id, row in rows.items()}
    )
    run = output / "run"
    settings = {
        "prompts": str(prompts),
        "task": "translation",
        "search": "parallel",
        "budget": len(agents),
    }
    _recipe(
        "synthesize",
        output,
        **settings,
        agents=agents,
        reward={"kind": "chrf"},
        output_dir=str(run),
    )
    picks = {row["prompt_id"]: row["completion"][0]["content"] for row in _load(run / "sft")}

    def scores(texts: Mapping[str, str]) -> tuple[float, float]:
        references = [[rows[id]["reference"] for id in texts]]
        corpus = list(texts.values())
        return sacrebleu.corpus_chrf(corpus, references).score, sacrebleu.corpus_bleu(
            corpus, references
        ).score

    found = []
    for direction in dict.fromkeys(id.rsplit("-", 1)[0] for id in rows):
        of = {id: row["outputs"] for id, row in rows.items() if id.startswith(direction)}
        systems = {
            agent["name"]: scores({id: each[agent["name"]] for id, each in of.items()})
            for agent in agents
        }
        best, pick = (
            max(systems, key=lambda name: systems[name][0]),
            scores({id: picks[id] for id in of}),
        )
        named = {f"chrF of {name}": chrf for name, (chrf, _) in systems.items()}
        bleu = {"BLEU of the best": systems[best][1], "BLEU of the picks": pick[1]}
        found.append(
            {
                "direction": direction,
                "segments": len(of),
                **named,
                "chrF of the picks": pick[0],
                **bleu,
            }
        )
    return found


def alignment(data: Path, output: Path, limit: int | None) -> list[dict[str, Any]]:
    from tests.alpaca_judge import judging as annotating
    from tests.judge_server import judging

    rows = _rows(data / "alpaca_eval/outputs.jsonl", limit)
    prompts = _write(
        output / "prompts.jsonl", ({key: row[key] for key in ("id", "prompt")} for row in rows)
    )
    agents = _record(output, prompts, "alignment", {row["id"]: row["outputs"] for row in rows})
    run, baseline = output / "run", agents[0]
    with judging(nonsense=0.05) as server, annotating() as annotator:
        judge = {
            "agent": {"name": "judge", "engine": "openai", "model": "judge", "base_url": server.url}
        }
        settings = {
            "prompts": str(prompts),
            "search": "parallel",
            "budget": len(agents),
            "agents": agents,
        }
        _recipe(
            "synthesize", output, **settings, reward={"kind": "judge", **judge}, output_dir=str(run)
        )
        picks = {row["prompt_id"]: row["completion"][0]["content"] for row in _load(run / "sft")}
        given = [{"prompt": row["prompt"], "response": picks[row["id"]]} for row in rows]
        pick = {
            "name": "picks",
            "engine": "recorded",
            "path": str(_write(output / "picks.jsonl", given)),
        }
        results = output / "results.json"
        _recipe(
            "evaluate",
            output,
            prompts=str(prompts),
            models=[baseline, pick],
            baseline=baseline["name"],
            num_samples=0,
            reward={"kind": "judge", **judge},
            judge=judge,
            alpaca_eval={"annotator": {"model": "annotator", "base_url": annotator.url}},
            results=str(results),
        )
    found = json.loads(results.read_text(encoding="utf-8"))
    alpaca = {**found["alpaca_eval"]["picks"], "by": "alpaca_eval", "model": "picks"}
    shown = (
        "model",
        "baseline",
        "by",
        "win_rate",
        "interval",
        "num_wins",
        "num_ties",
        "num_losses",
        "num_failed",
    )
    return [{key: row[key] for key in shown} for row in [*found["win_rates"], alpaca]]


def math(data: Path, output: Path, limit: int | None) -> list[dict[str, Any]]:
    found = []
    for name in ("gsm8k_test", "math500"):
        rows = _rows(data / f"math/{name}.jsonl", limit)
        folder = output / name
        prompts = _write(
            folder / "prompts.jsonl",
            ({key: row[key] for key in ("id", "prompt", "answer")} for row in rows),
        )
        gold = {row["id"]: {"gold": rf"The answer is \boxed{{{row['answer']}}}."} for row in rows}
        models = _record(folder, prompts, "math", gold)
        results = folder / "results.json"
        settings = {
            "prompts": str(prompts),
            "task": "math",
            "models": models,
            "results": str(results),
        }
        _recipe("evaluate", folder, **settings, num_samples=0)
        measured = json.loads(results.read_text(encoding="utf-8"))["student"]["gold"]
        shown = ("accuracy", "interval", "num_problems", "num_unjudged")
        found.append({"problems": name, **{key: measured[key] for key in shown}})
    return found


PARTS = {"translation": translation, "alignment": alignment, "math": math}


def _rows(file: Path, limit: int | None) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(file)][:limit]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def _record(
    output: Path, prompts: Path, task: str, outputs: Mapping[str, Mapping[str, str]]
) -> list[dict[str, str]]:
    """An agent for every system, which gives its outputs to the prompts as the task asks them."""
    asked = {
        prompt.id: as_dicts(prompt.messages)
        for prompt in load_prompts(str(prompts), read=make_task(task).read)
    }
    return [
        {
            "name": system,
            "engine": "recorded",
            "path": str(
                _write(
                    output / f"{system}.jsonl",
                    (
                        {"prompt": asked[id], "response": given[system]}
                        for id, given in outputs.items()
                    ),
                )
            ),
        }
        for system in next(iter(outputs.values()))
    ]


def _recipe(name: str, output: Path, **settings: Any) -> None:
    if name == "synthesize":
        settings["preference"] = {"rejected_rank": 0.5}
    config = output / f"{name}.yaml"
    config.write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    if name == "synthesize" and is_complete(settings["output_dir"]):
        return
    command = [sys.executable, f"recipes/{name}.py", "--config", str(config)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def _load(folder: Path) -> Any:
    return load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")


if __name__ == "__main__":
    main()
