"""The public benchmarks that packages of others bring: AlpacaEval 2 and whatever lm-eval knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.evaluation.alpaca import run_alpaca_eval
from toa_trl.evaluation.harness import run_lm_eval
from toa_trl.evaluation.results import update_results
from toa_trl.utils.registry import check_arguments, construct


def check_benchmarks(alpaca_eval: Mapping[str, Any], lm_eval: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: a key of theirs is missing or not known.
    """
    if alpaca_eval:
        check_arguments("alpaca_eval", run_alpaca_eval, 6, alpaca_eval)
    if lm_eval:
        check_arguments("lm_eval", run_lm_eval, 1, lm_eval)


def alpaca_eval_against(
    baseline: str,
    instructions: Sequence[str],
    outputs: Mapping[str, Sequence[str]],
    folder: Path,
    params: Mapping[str, Any],
    results: Path,
) -> dict[str, dict[str, Any]]:
    """`run_alpaca_eval` of every model but the baseline, into the part "alpaca_eval" of results.json as they come.

    Args:
        baseline: name of one of the models.
        instructions: the prompts.
        outputs: of each model, one for each instruction.
        folder: of a folder for each.
        params: annotator and the further arguments, as they stand in a configuration.
        results: the file.
    """
    found = {}
    for number, (name, texts) in enumerate(outputs.items()):
        if name != baseline:
            given = (name, instructions, texts, baseline, outputs[baseline], folder / str(number))
            found[name] = construct("alpaca_eval", run_alpaca_eval, *given, params=params)
            update_results(results, "alpaca_eval", found)
    return found


def lm_eval_of(
    models: Sequence[Mapping[str, Any]], params: Mapping[str, Any], results: Path
) -> dict[str, Any]:
    """`run_lm_eval` of every model, into the part "lm_eval" of results.json as they come."""
    found = {}
    for entry in models:
        found[entry["name"]] = construct("lm_eval", run_lm_eval, entry, params=params)
        update_results(results, "lm_eval", found)
    return found
