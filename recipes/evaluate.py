"""Is the student better? Checkpoints on the same prompts: accuracy, reward, win rates, and the public benchmarks.

python recipes/evaluate.py --config recipes/configs/demo/evaluate.yaml

Prints tables and writes them into results.json under "student", "win_rates", "alpaca_eval" and "lm_eval", with 95 %
intervals. Responses, scores and verdicts are kept in output_dir as they come: killed and started again, it goes on.
"""

import gc
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from toa_trl.agents import make_agent, make_sampling
from toa_trl.cli.arguments import parse, user_errors
from toa_trl.cli.config import EvaluationArguments, make_verifier
from toa_trl.evaluation.accuracy import Scores, measure_model
from toa_trl.evaluation.alpaca import AlpacaEvalConfig
from toa_trl.evaluation.benchmarks import alpaca_eval_against, lm_eval_of
from toa_trl.evaluation.harness import LmEvalConfig
from toa_trl.evaluation.ledger import keep, ledger_path
from toa_trl.evaluation.metadata import write_evaluation
from toa_trl.evaluation.outputs import Outputs, check_all, closing_all, respond
from toa_trl.evaluation.results import markdown_table, update_results
from toa_trl.evaluation.winrate import win_rates
from toa_trl.rewards import make_reward
from toa_trl.rewards.judge import JudgeReward
from toa_trl.sampling.identity import decisive, digest_of_prompts
from toa_trl.tasks import make_task
from toa_trl.types import Sampling
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.config import validate
from toa_trl.utils.registry import construct

OF_WIN_RATES = (
    "model",
    "baseline",
    "by",
    "win_rate",
    "interval",
    "win_rate_matched_length",
    "mean_length",
)


async def evaluate(config: Any) -> tuple[list[str], dict[str, list[str]]]:
    """Ask and judge every model; returns what was asked, and the greedy responses of each."""
    results, task, prompts = Path(config.results), make_task(config.task), config.load_prompts()
    sampling = make_sampling("sampling", Sampling(), config.sampling)
    verifier = make_verifier(config.verifier, task, prompts)
    folder, pairs = Path(config.output_dir), {"mode": "pairwise", **config.judge}
    reward_model, comet = (
        keep(make_reward(entry), folder, f"_{name}", decisive(entry)) if entry else None
        for name, entry in {"reward": config.reward, "comet": config.comet}.items()
    )
    made = construct("judge", JudgeReward, params=pairs) if config.judge else None
    judge = keep(made, folder, "_judge", decisive(pairs))
    judges = {"verifier": verifier, "reward_model": reward_model, "comet": comet}
    outputs: dict[str, list[Outputs]] = {}
    scores: dict[str, Scores] = {}
    student: dict[str, dict[str, Any]] = {}
    async with closing_all(*judges.values(), judge):
        await check_all([], *judges.values(), judge)
        for entry in config.models:  # one after the other: a GPU may hold only one of them
            name = entry["name"]
            path = ledger_path(
                folder,
                name,
                decisive(entry),
                digest_of_prompts(prompts),
                asdict(sampling),
                config.seed,
            )
            settings = {"num_samples": config.num_samples, "seed": config.seed, "path": path}
            async with closing_all(make_agent(entry)) as (agent,):
                outputs[name] = await respond(agent, prompts, task, sampling, **settings)
            del agent
            gc.collect()
            measurement, scores[name] = await measure_model(prompts, outputs[name], task, **judges)
            student[name] = measurement.as_json()
            update_results(results, "student", student)
        print(markdown_table([{"model": name, **row} for name, row in student.items()]))

        rows = (
            await win_rates(config.baseline, prompts, task, outputs, scores, judge)
            if config.baseline
            else []
        )
        update_results(results, "win_rates", rows)
        if rows:
            print(markdown_table([{key: row[key] for key in OF_WIN_RATES} for row in rows]))
    texts = {name: [each.greedy.text for each in found] for name, found in outputs.items()}
    return list(map(task.question, prompts)), texts


def main() -> None:
    from trl import TrlParser

    (config,) = parse(TrlParser(EvaluationArguments, description=__doc__))
    results, folder, told = (
        Path(config.results),
        Path(config.output_dir),
        partial(json.dumps, indent=2),
    )
    alpaca_eval, lm_eval = (
        validate(model, entry, place) if entry else None
        for model, entry, place in (
            (AlpacaEvalConfig, config.alpaca_eval, "alpaca_eval"),
            (LmEvalConfig, config.lm_eval, "lm_eval"),
        )
    )
    run_until_signal(check_all(config.models))
    if config.prompts or not config.lm_eval:
        questions, outputs = run_until_signal(evaluate(config))
    if alpaca_eval:
        against = (config.baseline, questions, outputs, folder / "alpaca_eval")
        print("AlpacaEval:", told(alpaca_eval_against(*against, alpaca_eval, results)))
    if lm_eval:
        print("lm-eval:", told(lm_eval_of(config.models, lm_eval, results)))
    if config.model_cards:
        measured, about = (
            json.loads(results.read_text(encoding="utf-8")),
            Path(config.prompts or "lm-eval").stem,
        )
        for entry in config.models:
            if entry["name"] != config.baseline and Path(entry.get("model") or "nowhere").is_dir():
                card = Path(entry["model"]) / "README.md"
                write_evaluation(card, measured, entry["name"], about, config.baseline)


if __name__ == "__main__":
    with user_errors():
        main()
