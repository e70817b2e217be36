"""Any task of the `lm_eval` package (EleutherAI's Language Model Evaluation Harness), for a model entry as agents have it."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import ClientError

from toa_trl.errors import AgentError, ConfigError
from toa_trl.models.loading import check_whole_model, weights_source
from toa_trl.utils.registry import choose


def run_lm_eval(
    model_entry: Mapping[str, Any],
    tasks: Sequence[str] | str,
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    apply_chat_template: bool = True,
) -> dict[str, dict[str, float]]:
    """Evaluate one model. The task says how it samples; the entry's `sampling` is for evaluate.py's own prompts.

    Args:
        model_entry: {name, engine, model, ...} as in a run's `agents`; engine transformers (a folder with an adapter alone
            is loaded on its base), vllm, or openai (the first base URL; tasks that generate, as chat servers give no
            log-likelihoods of a prompt).
        tasks: names of tasks, groups or tags; or one name.
        include_path: folder with task files of the user's own.
        limit: problems per task, for a trial.
        num_fewshot: examples in the prompt; None leaves it to the task.
        batch_size: of engine transformers; vLLM and servers batch on their own.
        apply_chat_template: what an instruction-tuned model needs; False for a base model. A chat server always applies it.

    Returns:
        {task: {metric: value, "<metric>_stderr": standard error, "num_problems": count}}. A metric with a filter is called
        "<metric>,<filter>", as in lm_eval's own tables. A standard error that lm_eval does not know is left out.

    Raises:
        ConfigError: lm_eval is not installed, an unknown task (the nearest ones are named) or engine, or a model or data set
            that cannot be had.
        AgentError: the server failed, after lm_eval's own retries.
    """
    place = f"lm_eval: model {model_entry['name']!r}"
    arguments = choose(place, "engine", _BACKENDS, model_entry.get("engine"))
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise ConfigError(
            f"lm_eval cannot be imported ({error}); pip install 'toa_trl[eval]'"
        ) from error
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    backend, model_args = arguments(model_entry)
    manager = _task_manager(tasks, include_path)
    try:
        done = simple_evaluate(
            model=backend,
            model_args=model_args,
            tasks=tasks,
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size={"hf": batch_size, "vllm": "auto"}.get(backend, 1),
            system_instruction=model_entry.get("system_prompt"),
            apply_chat_template=apply_chat_template or backend == "local-chat-completions",
            log_samples=False,
        )
    except ClientError as error:
        raise AgentError(f"{place}: {type(error).__name__}: {error}") from error
    except (ImportError, NotImplementedError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    found = {task: _metrics(row) for task, row in done["results"].items()}
    for task, counts in done["n-samples"].items():  # a group has none of its own
        found[task]["num_problems"] = counts["effective"]
    return found


def _transformers(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    model = str(entry["model"])
    # a device that lm_eval does not know makes it take a GPU if there is one; without any it asks for CUDA
    arguments = {
        "pretrained": model,
        "device": entry.get("device") or "any",
        "dtype": entry.get("dtype", "auto"),
    }
    base, _ = weights_source(f"lm_eval: model {entry['name']!r}", model)
    if base != model:
        arguments |= {"pretrained": base, "peft": model, "tokenizer": model}
    return "hf", arguments


def _vllm(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    check_whole_model(f"lm_eval: model {entry['name']!r}", str(entry["model"]))
    return "vllm", {
        "pretrained": str(entry["model"]),
        "dtype": entry.get("dtype", "auto"),
        **(entry.get("engine_args") or {}),
    }


def _openai(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if "base_url" not in entry:
        raise ConfigError(f"lm_eval: model {entry['name']!r}: the key 'base_url' is missing")
    urls = entry["base_url"]
    url = urls if isinstance(urls, str) else urls[0]
    key = os.environ.get(entry.get("api_key_env", "OPENAI_API_KEY"), "")
    return "local-chat-completions", {
        "model": entry["model"],
        "base_url": f"{url.rstrip('/')}/chat/completions",
        "num_concurrent": entry.get("max_concurrency", 16),
        "header": {"Authorization": f"Bearer {key}"},
    }


_BACKENDS = {"transformers": _transformers, "openai": _openai, "vllm": _vllm}


def _task_manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """Raises:
    ConfigError: one of the tasks is not known.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ConfigError(f"lm_eval: include_path {str(include_path)!r} is no folder")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own  # to read lm_eval's own 14,000 tasks takes many seconds
    manager = TaskManager(include_path=include_path and str(include_path))
    for task in tasks:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            raise ConfigError(
                f"lm_eval: there is no task {task!r}"
                + (f"; did you mean {', '.join(near)}?" if near else "")
                + ("" if include_path else " (a task file of your own is found by include_path)")
            )
    return manager


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Of "<metric>,<filter>" and "<metric>_stderr,<filter>"; the row's further keys hold no comma."""
    found: dict[str, float] = {}
    for key, value in row.items():
        metric, comma, name = key.partition(",")
        if not comma or not isinstance(value, int | float) or math.isnan(value):
            continue
        stderr = metric.endswith("_stderr")
        plain = metric.removesuffix("_stderr") + ("" if name == "none" else f",{name}")
        found[f"{plain}_stderr" if stderr else plain] = float(value)
    return found
