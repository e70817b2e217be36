"""Is the student better? Checkpoints on the same prompts: accuracy, reward, win rates, benchmarks.

python recipes/evaluate.py --config recipes/configs/demo/evaluate.yaml

Prints tables and writes them into results.json under "student", "win_rates", "alpaca_eval" and
"lm_eval", with 95 % intervals. Responses, scores and verdicts are kept in output_dir as they come:
interrupted, the same command resumes.
"""

import json
from pathlib import Path
from typing import Any

from toa_trl.agents import make_sampling
from toa_trl.cli.arguments import user_errors
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.cli.options import read_config
from toa_trl.evaluation.accuracy import measure_models
from toa_trl.evaluation.benchmarks import alpaca_eval_against, lm_eval_of
from toa_trl.evaluation.judges import kept_judge, kept_reward
from toa_trl.evaluation.metadata import write_evaluations
from toa_trl.evaluation.outputs import check_all, closing_all
from toa_trl.evaluation.results import check_results, terminal_tables, update_results
from toa_trl.evaluation.side_by_side import write_side_by_side
from toa_trl.evaluation.verifier import make_verifier
from toa_trl.evaluation.winrate import win_rates
from toa_trl.rewards.deferred import deferred
from toa_trl.systems.models import Questions, checked_models
from toa_trl.tasks import make_task
from toa_trl.types import Sampling
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.escape import say
from toa_trl.utils.targets import check_folder, check_not_in_run

OF_WIN_RATES = "model baseline by win_rate interval win_rate_matched_length mean_length"


async def evaluate(config: EvaluationConfig) -> tuple[list[str], dict[str, list[str]]]:
    """Ask and judge every model; returns the questions, and the greedy responses of each model."""
    results, task, prompts = Path(config.results), make_task(config.task), config.load_prompts()
    sampling = make_sampling("sampling", Sampling(), config.sampling)
    draws = {"num_samples": config.num_samples, "seed": config.seed}
    questions = Questions(prompts, task, sampling, config.folder, **draws)
    models = await checked_models(config.models, questions)
    verifier = make_verifier(deferred(config.verifier), task, prompts)
    judges: dict[str, Any] = {
        "verifier": verifier,
        "reward_model": kept_reward(config.reward, "reward", config.folder),
        "comet": kept_reward(config.comet, "comet", config.folder),
    }
    judge = kept_judge(config.judge, config.folder)
    async with closing_all(*judges.values(), judge):
        if not all(model.is_complete(questions) for model in models.values()):
            await check_all([], *judges.values(), judge)
        # One after the other, models and judges: a GPU may hold only one of them.
        outputs = {name: await model.outputs(questions) for name, model in models.items()}
        measured = await measure_models(prompts, outputs, task, **judges)
        student = {name: of_model.as_json() for name, (of_model, _) in measured.items()}
        update_results(results, "student", student)
        say(terminal_tables([{"model": name, **row} for name, row in student.items()]))
        scores = {name: by_model for name, (_, by_model) in measured.items()}
        rates: list[dict[str, Any]] = []
        if config.baseline:
            rates = await win_rates(config.baseline, prompts, task, outputs, scores, judge)
        update_results(results, "win_rates", rates)
        compared = (outputs, scores, config.baseline, judge)
        write_side_by_side(config.folder, prompts, task, *compared)
        if rates:
            say(terminal_tables([{key: row[key] for key in OF_WIN_RATES.split()} for row in rates]))
    texts = {name: [output.greedy.text for output in outputs[name]] for name in outputs}
    return [task.question(prompt) for prompt in prompts], texts


def main() -> None:
    """Evaluate models as the options say."""
    config = read_config(EvaluationConfig, description=__doc__)
    results, about = Path(config.results), Path(config.prompts or "lm-eval").stem
    check_folder(config.folder, "output_dir")
    check_not_in_run(config.folder, "output_dir")
    check_results(results)
    if config.lm_eval:  # the other models are checked where a response is missing
        run_until_signal(check_all(config.models))
    if config.has_prompts:
        questions, outputs = run_until_signal(evaluate(config))
    if config.alpaca_eval:
        against = (config.baseline, questions, outputs, config.folder / "alpaca_eval")
        rates = alpaca_eval_against(*against, config.alpaca_eval, results)
        say(f"AlpacaEval: {json.dumps(rates, indent=2)}")
    if config.lm_eval:
        rates = lm_eval_of(config.models, config.lm_eval, results)
        say(f"lm-eval: {json.dumps(rates, indent=2)}")
    if config.model_cards:
        write_evaluations(config.models, results, about, config.baseline)
    say(f"{results} is written")


if __name__ == "__main__":
    with user_errors():
        main()
