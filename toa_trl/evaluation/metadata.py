"""What a model card on the Hub shows of results.json: the `model-index` of its metadata block, and a table for readers.

The format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Intervals go into a metric's `args`, so that a
later run replaces its figure instead of standing beside it under another name.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.utils.files import replace_section, replace_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

# key in results.json -> (type, name), whose interval is under "<key>_interval" unless INTERVALS says otherwise
STUDENT = {
    "accuracy": ("accuracy", "Accuracy, greedy"),
    "sampled_accuracy": ("accuracy", "Accuracy, sampled"),
    "maj_at_k": ("accuracy", "maj@{k}"),
    "pass_at_k": ("pass@k", "pass@{k}"),
    "mean_verifier_score": ("verifier_score", "Mean score by the verifier"),
    "mean_reward": ("reward", "Mean reward, greedy"),
    "chrf": ("chrf", "chrF"),
    "bleu": ("bleu", "BLEU"),
    "comet": ("comet", "COMET"),
}
WIN_RATES = {
    "win_rate": ("win_rate", "Win rate against {baseline} by {by}"),
    "win_rate_matched_length": (
        "win_rate",
        "Win rate at matched length against {baseline} by {by}",
    ),
}
ALPACA_EVAL = {
    "win_rate": ("win_rate", "Win rate against {baseline} by {annotator}"),
    "length_controlled_win_rate": (
        "win_rate",
        "Length-controlled win rate against {baseline} by {annotator}",
    ),
}
INTERVALS = {
    "accuracy": "interval",
    "sampled_accuracy": "sampled_interval",
    "win_rate": "interval",
    "win_rate_matched_length": "interval_matched_length",
}


def model_metadata(
    results: Mapping[str, Any],
    model: str,
    *,
    dataset_name: str,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
) -> ModelCardData:
    """The metadata of one model; `to_yaml()` of it is what stands between the two `---` of its README.md.

    Args:
        results: content of results.json.
        model: name of the model there.
        dataset_name: the problems or prompts that `student` and `win_rates` were measured on.
        base_model: Hub name of the model that it was trained from.
        datasets: Hub names of the data that it was trained on.

    Raises:
        ConfigError: results.json has no figure of this model.
    """
    from huggingface_hub import ModelCardData

    if not (measured := list(_results(results, model, dataset_name))):
        names = {row["model"] for row in results.get("win_rates", ())}
        names.update(*(results.get(part, ()) for part in ("student", "alpaca_eval", "lm_eval")))
        raise ConfigError(
            f"results.json has no figure of {model!r}; it has {', '.join(sorted(names)) or 'none at all'}"
        )
    return ModelCardData(
        model_name=model,
        eval_results=measured,
        base_model=base_model,
        datasets=list(datasets) or None,
    )


def write_metadata(path: Path, results: Mapping[str, Any], model: str, **about: Any) -> None:
    """Merge the metadata into a model card, such as TRL leaves with a checkpoint; without a card, write one of it alone.

    What is there stays, other models' and other figures of this one included: only a figure of the same task, data set and
    metric is replaced (comments in the YAML are lost). Once more with the same results, the file is the same.

    Args:
        path: of the README.md.
        results: content of results.json.
        model: name of the model there.
        about: the further arguments of `model_metadata`.

    Raises:
        ConfigError: nothing was measured of this model, or the card's metadata cannot be read.
    """
    from huggingface_hub import metadata_load, metadata_save
    from huggingface_hub.repocard_data import (
        eval_results_to_model_index,
        model_index_to_eval_results,
    )

    fresh = model_metadata(results, model, **about)
    new: list[EvalResult] = fresh.pop("eval_results")
    try:
        card = (metadata_load(path) if path.is_file() else None) or {}
        index = list(card.get("model-index") or [])
        at = next((i for i, entry in enumerate(index) if entry["name"] == model), len(index))
        old = model_index_to_eval_results([index[at]])[1] if index[at:] else []
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: the metadata of this model card cannot be read: {' '.join(str(error).split())}; mend or remove it"
        ) from error
    replaced = {_identity(result) for result in new}
    kept = [result for result in old if _identity(result) not in replaced]
    index[at : at + 1] = eval_results_to_model_index(model, [*kept, *new])
    for key in ("base_model", "datasets"):
        if fresh.get(key):
            card.setdefault(key, fresh[key])
    # written beside and moved: the card is whole, or the one before
    beside = path.with_name(path.name + ".new")
    if path.is_file():
        shutil.copyfile(path, beside)
    metadata_save(beside, {**card, "model-index": index})
    os.replace(beside, path)


def write_evaluation(
    path: Path, results: Mapping[str, Any], model: str, dataset_name: str, baseline: str = ""
) -> None:
    """Write the figures into a model card: into its metadata, and as a table under "## Evaluation".

    Args:
        path: of the README.md.
        results: content of results.json.
        model: name of the model there.
        dataset_name: the problems or prompts that it was measured on.
        baseline: name of the model whose figures stand beside it, where there are any.

    Raises:
        ConfigError: as of `write_metadata`.
    """
    write_metadata(path, results, model, dataset_name=dataset_name)
    columns = {"this model": list(_results(results, model, dataset_name))}
    if baseline not in ("", model):
        columns[f"`{baseline}`"] = list(_results(results, baseline, dataset_name))
    rows = [(each.dataset_name, each.metric_name) for each in columns["this model"]]
    lines = [f"| measured on | what | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for row in rows:
        figures = [
            next(
                (_said(each) for each in column if (each.dataset_name, each.metric_name) == row), ""
            )
            for column in columns.values()
        ]
        lines.append(f"| {row[0]} | {row[1]} | {' | '.join(figures)} |")
    number = results.get("student", {}).get(model, {}).get("num_problems")
    of = f"{number:,} prompts of {dataset_name}; " if number else ""
    about = f"By toa_trl's evaluate.py: {of}in brackets 95 % intervals."
    text = replace_section(
        path.read_text(encoding="utf-8"), "\n".join(["## Evaluation", "", *lines, "", about])
    )
    replace_text(path, text)


def _said(result: EvalResult) -> str:
    interval = (result.metric_args or {}).get("interval_95")
    return f"{result.metric_value:.4g}" + (
        f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    )


def _identity(result: EvalResult) -> tuple[Any, ...]:
    return (*result.unique_identifier, result.metric_type, result.metric_name)


def _results(results: Mapping[str, Any], model: str, dataset_name: str) -> Iterator[EvalResult]:
    alpaca = results.get("alpaca_eval", {}).get(model, {})
    yield from _named(results.get("student", {}).get(model, {}), STUDENT, dataset_name)
    for row in results.get("win_rates", ()):
        if row["model"] == model:
            yield from _named(row, WIN_RATES, dataset_name)
    yield from _named(alpaca, ALPACA_EVAL, "AlpacaEval 2", "tatsu-lab/alpaca_eval")
    for task, row in results.get("lm_eval", {}).get(model, {}).items():
        for metric, value in row.items():
            if metric != "num_problems" and not metric.endswith("_stderr"):
                error = row.get(f"{metric}_stderr")
                extra = {} if error is None else {"standard_error": error}
                yield from _result(metric, metric, value, extra, task)


def _named(
    row: Mapping[str, Any],
    names: Mapping[str, tuple[str, str]],
    dataset_name: str,
    dataset_type: str | None = None,
) -> Iterator[EvalResult]:
    for key, (kind, name) in names.items():
        if key not in row:
            continue
        interval = row.get(INTERVALS.get(key, f"{key}_interval"))
        extra = {} if interval is None else {"interval_95": list(interval)}
        yield from _result(kind, name.format_map(row), row[key], extra, dataset_name, dataset_type)


def _result(
    kind: str,
    name: str,
    value: Any,
    extra: dict[str, Any],
    dataset_name: str,
    dataset_type: str | None = None,
) -> Iterator[EvalResult]:
    """One figure, or none where there is no number."""
    from huggingface_hub import EvalResult

    if isinstance(value, int | float) and math.isfinite(value):
        yield EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=dataset_type or re.sub(r"[^\w./-]+", "-", dataset_name),
            dataset_name=dataset_name,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
            metric_args=extra or None,
            verified=False,
        )
