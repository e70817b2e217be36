"""The public benchmarks that other packages bring: AlpacaEval 2 and all tasks of lm-eval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.evaluation.alpaca import AlpacaEvalConfig, run_alpaca_eval
from toa_trl.evaluation.harness import LmEvalConfig, run_lm_eval
from toa_trl.evaluation.results import update_results
from toa_trl.models.devices import free_memory


def alpaca_eval_against(
    baseline: str,
    instructions: Sequence[str],
    outputs: Mapping[str, Sequence[str]],
    folder: Path,
    config: AlpacaEvalConfig,
    results: Path,
) -> dict[str, dict[str, Any]]:
    """Run `run_alpaca_eval` for every model but the baseline.

    Args:
        baseline: name of one of the models.
        instructions: the prompts.
        outputs: of each model, one for each instruction.
        folder: gets a folder for each model.
        config: annotator and options.
        results: results.json, whose part "alpaca_eval" is replaced after each model.
    """
    measured = {}
    for number, (name, texts) in enumerate(outputs.items()):
        if name != baseline:
            measured[name] = run_alpaca_eval(
                name, instructions, texts, baseline, outputs[baseline], folder / str(number), config
            )
            update_results(results, "alpaca_eval", measured)
    return measured


def lm_eval_of(
    models: Sequence[Mapping[str, Any]], config: LmEvalConfig, results: Path
) -> dict[str, Any]:
    """Run `run_lm_eval` for every model; replaces the part "lm_eval" of results.json after each."""
    measured = {}
    for entry in models:
        measured[entry["name"]] = run_lm_eval(entry, config)
        free_memory()
        update_results(results, "lm_eval", measured)
    return measured
