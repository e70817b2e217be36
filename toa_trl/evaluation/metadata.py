"""Figures of results.json in a model card: `model-index` of its metadata, and a table.

Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Intervals are `args` of a
metric, so that a later run replaces its figure instead of adding one under another name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toa_trl.errors import ConfigError
from toa_trl.evaluation.results import markdown_table
from toa_trl.utils.cards import read_metadata, with_blocks, with_keys
from toa_trl.utils.escape import code, for_markdown
from toa_trl.utils.files import replace_text
from toa_trl.utils.results import interval_key

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

# key in results.json -> (type, name); its interval is `interval_key` but for INTERVALS
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
# the section of version 0.1.0, which had no markers
OLD_SECTION = re.compile(
    r"(?<!-->\n)^## Evaluation\n\n(?:\|.*\n)+\nMeasured with toa-trl evaluate: .*\n*", re.MULTILINE
)
INTERVALS = {
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
    """Return the metadata of one model; its `to_yaml()` is the block at the start of a README.md.

    Args:
        results: content of results.json.
        model: name of the model in the results.
        dataset_name: the problems or prompts that `student` and `win_rates` were measured on.
        base_model: Hub name of the model that it was trained from.
        datasets: Hub names of the data that it was trained on.

    Raises:
        ConfigError: results.json has no figure of this model.
    """
    from huggingface_hub import ModelCardData

    measured = list(_results(results, model, dataset_name))
    if not measured:
        names = {row["model"] for row in results.get("win_rates", ())}
        names.update(*(results.get(part, ()) for part in ("student", "alpaca_eval", "lm_eval")))
        raise ConfigError(
            f"results.json has no figure of {model!r}; "
            f"it has figures of {', '.join(sorted(names)) or 'no model'}"
        )
    return ModelCardData(
        model_name=model,
        eval_results=measured,
        base_model=base_model,
        datasets=list(datasets) or None,
    )


def write_metadata(path: Path, results: Mapping[str, Any], model: str, **about: Any) -> None:
    """Merge the metadata into a model card, or write a card that has only metadata.

    Everything else in the card stays, also figures of other models and other figures of this one:
    only figures of the same task, data set and metric are replaced (YAML comments are lost).
    Idempotent.

    Args:
        path: path of the README.md.
        results: content of results.json.
        model: name of the model in the results.
        about: further arguments of `model_metadata`.

    Raises:
        ConfigError: nothing was measured of this model, or the card's metadata cannot be read.
    """
    from huggingface_hub.repocard_data import (
        eval_results_to_model_index,
        model_index_to_eval_results,
    )

    fresh = model_metadata(results, model, **about)
    new: list[EvalResult] = fresh.pop("eval_results")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    card = read_metadata(path, text)
    try:
        index = list(card.get("model-index") or [])
        names = [entry["name"] for entry in index]
        at = names.index(model) if model in names else len(index)
        old = model_index_to_eval_results([index[at]])[1] if model in names else []
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: the metadata of this card cannot be read: model-index: "
            f"{type(error).__name__}: {error}; fix or remove it"
        ) from error
    replaced = {_identity(result) for result in new}
    kept = [result for result in old if _identity(result) not in replaced]
    index[at : at + 1] = eval_results_to_model_index(model, [*kept, *new])
    named = {key: fresh[key] for key in ("base_model", "datasets") if fresh.get(key)}
    added = {key: value for key, value in named.items() if key not in card}
    replace_text(path, with_keys(path, text, {**added, "model-index": index}))


def write_evaluation(
    path: Path, results: Mapping[str, Any], model: str, dataset_name: str, baseline: str = ""
) -> None:
    """Write the figures into a model card: as metadata, and as a table under "## Evaluation".

    Args:
        path: path of the README.md.
        results: content of results.json.
        model: name of the model in the results.
        dataset_name: the problems or prompts that it was measured on.
        baseline: name of the model for a second column, where it was measured.

    Raises:
        ConfigError: see `write_metadata`.
    """
    write_metadata(path, results, model, dataset_name=dataset_name)
    rows: dict[tuple[str, str | None], dict[str, str]] = {}
    for result in _results(results, model, dataset_name):
        key = (result.dataset_name, result.metric_name)
        row = {"measured on": for_markdown(key[0]), "metric": for_markdown(key[1] or "")}
        rows[key] = row | {"this model": _shown(result)}
    if baseline not in ("", model):
        for result in _results(results, baseline, dataset_name):
            row = rows.get((result.dataset_name, result.metric_name), {})
            row[code(baseline)] = _shown(result)
    num_problems = results.get("student", {}).get(model, {}).get("num_problems")
    measured = f"{num_problems:,} prompts of {for_markdown(dataset_name)}; " if num_problems else ""
    about = f"Measured with toa-trl evaluate: {measured}95 % intervals in brackets."
    section = f"## Evaluation\n\n{markdown_table(list(rows.values()))}\n\n{about}"
    text = OLD_SECTION.sub("", path.read_text(encoding="utf-8"))
    replace_text(path, with_blocks(text, {"evaluation": section}))


def write_evaluations(
    models: Sequence[Mapping[str, Any]], results: Path, dataset_name: str, baseline: str
) -> None:
    """Write the figures into the card of every local model except the baseline.

    Args:
        models: entries {name, model, ...}.
        results: path of results.json.
        dataset_name: the problems or prompts that they were measured on.
        baseline: name of the model that is left out, or "".

    Raises:
        ConfigError: see `write_metadata`.
    """
    measured = json.loads(results.read_text(encoding="utf-8"))
    for entry in models:
        folder = Path(entry.get("model") or "nowhere")
        if entry["name"] != baseline and folder.is_dir():
            write_evaluation(folder / "README.md", measured, entry["name"], dataset_name, baseline)


def _shown(result: EvalResult) -> str:
    interval = (result.metric_args or {}).get("interval_95")
    if interval is None:
        return f"{result.metric_value:.4g}"
    return f"{result.metric_value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"


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
        interval = row.get(INTERVALS.get(key, interval_key(key)))
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
    """Yield one figure, or nothing where the value is not a finite number."""
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
