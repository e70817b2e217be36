"""Any task of the `lm_eval` package (EleutherAI's Language Model Evaluation Harness)."""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import ClientError

from toa_trl.agents.completions import split_reasoning
from toa_trl.errors import AgentError, ConfigError
from toa_trl.models.chat import ChatTemplate, fold_system
from toa_trl.models.sources import is_adapter, weights_source
from toa_trl.utils.config import Config, NonNegativeInt, PositiveInt, Text
from toa_trl.utils.config_errors import nearest
from toa_trl.utils.escape import escaped_prints


class LmEvalConfig(Config):
    """Tasks of lm_eval, and how they are asked."""

    tasks: Text | list[Text]
    """Names of tasks, groups or tags; or one name."""
    include_path: str | None = None
    """Folder with task files of your own."""
    limit: PositiveInt | None = None
    """Problems per task, for a trial."""
    num_fewshot: NonNegativeInt | None = None
    """Examples in the prompt; by default the task decides."""
    batch_size: PositiveInt = 8
    """Batch size of engine transformers; vLLM and servers batch on their own."""
    apply_chat_template: bool = True
    """Instruction-tuned models need it, base models do not; a chat server always applies it."""


@escaped_prints()
def run_lm_eval(
    model_entry: Mapping[str, Any], config: LmEvalConfig
) -> dict[str, dict[str, float]]:
    """Evaluate one model. The task decides how it samples, not the entry's `sampling`.

    Answers are scored without the model's reasoning, unless the entry has `keep_reasoning`. What
    tasks print is escaped, because it may quote the model.

    Args:
        model_entry: {name, engine, model, ...} as in a run's `agents`: engine transformers (an
            adapter is loaded on its base), vllm, or openai (the first base URL; only tasks that
            generate, because chat servers give no log-likelihoods of a prompt).
        config: tasks and options.

    Returns:
        {task: {metric: value, "<metric>_stderr": standard error, "num_problems": count}}. A metric
        with a filter is called "<metric>,<filter>", as in lm_eval's own tables. Unknown standard
        errors are left out.

    Raises:
        ConfigError: lm_eval is not installed, a task or the engine is unknown, or a model or data
            set cannot be loaded.
        AgentError: the server failed, after lm_eval's own retries.
    """
    place = f"lm_eval: model {model_entry['name']!r}"
    engine = model_entry.get("engine")
    if engine not in _BACKENDS:
        known = ", ".join(_BACKENDS)
        raise ConfigError(
            f"{place}: engine must be one of {known}, not {engine!r}{nearest(engine, _BACKENDS)}"
        )
    try:
        from lm_eval import simple_evaluate
        from lm_eval.api.registry import get_model
    except ImportError as error:
        raise ConfigError(
            f"lm_eval cannot be imported ({error}); pip install 'toa_trl[eval]'"
        ) from error
    tasks = [config.tasks] if isinstance(config.tasks, str) else config.tasks
    backend, model_args = _BACKENDS[engine](model_entry)
    manager = _task_manager(tasks, config.include_path)
    try:
        batch_size = {"hf": config.batch_size, "vllm": "auto"}.get(backend, 1)
        model = get_model(backend).create_from_arg_obj(model_args, {"batch_size": batch_size})
        _fold_system(model)
        if engine == "openai":
            _number_choices(model)
        if not model_entry.get("keep_reasoning"):
            _strip_reasoning(model)
        done = simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            limit=config.limit,
            num_fewshot=config.num_fewshot,
            system_instruction=model_entry.get("system_prompt"),
            apply_chat_template=config.apply_chat_template or backend == "local-chat-completions",
            log_samples=False,
        )
    except ClientError as error:
        raise AgentError(f"{place}: {type(error).__name__}: {error}") from error
    except (ImportError, NotImplementedError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    figures = {task: _metrics(row) for task, row in done["results"].items()}
    for task, counts in done["n-samples"].items():  # groups are not counted
        figures[task]["num_problems"] = counts["effective"]
    return figures


def _strip_reasoning(model: Any) -> None:
    """Make a model of lm_eval return answers without the reasoning before them."""
    generate = model.generate_until

    def generate_answers(*args: Any, **options: Any) -> list[str]:
        # a server whose response is nothing but reasoning may have no text
        return [split_reasoning(text or "")[1] for text in generate(*args, **options)]

    model.generate_until = generate_answers


def _number_choices(model: Any) -> None:
    """Make a model of lm_eval read replies whose choices lack an index; it would read no text."""
    parse = model.parse_generations

    def parse_numbered(outputs: Any, **options: Any) -> list[str]:
        for output in outputs if isinstance(outputs, list) else [outputs]:
            for number, choice in enumerate(output.get("choices") or []):
                choice.setdefault("index", number)
        texts: list[str] = parse(outputs, **options)
        return texts

    model.parse_generations = parse_numbered


def _fold_system(model: Any) -> None:
    """Make a model of lm_eval show system messages that its template refuses.

    lm_eval would drop them, a task's description among them.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if not getattr(tokenizer, "chat_template", None) or ChatTemplate(tokenizer).takes_system:
        return
    render = model.apply_chat_template

    def render_folded(messages: Sequence[Mapping[str, Any]], *args: Any, **options: Any) -> Any:
        return render(fold_system(messages), *args, **options)

    model.apply_chat_template = render_folded


def _transformers(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    model = str(entry["model"])
    # with an unknown device lm_eval takes a GPU if there is one; with None it insists on CUDA
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
    if is_adapter(entry["model"]):
        raise ConfigError(
            f"lm_eval: model {entry['name']!r}: {entry['model']!r} holds an adapter alone, and "
            "lm_eval gives vLLM whole models; merge it into its base with toa-trl merge-adapter, "
            "or take the engine transformers"
        )
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


def _task_manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """Return lm_eval's index of tasks.

    Raises:
        ConfigError: one of the tasks is unknown.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ConfigError(f"lm_eval.include_path: {include_path!r} is not a folder")
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own  # reading lm_eval's own 14,000 tasks takes many seconds
    manager = TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            remedy = f"; did you mean {', '.join(near)}?" if near else ""
            if include_path is None:
                remedy += " (task files of your own need include_path)"
            raise ConfigError(f"lm_eval.tasks: there is no task {task!r}{remedy}")
    return manager


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the keys "<metric>,<filter>" and "<metric>_stderr,<filter>" by their short names."""
    figures: dict[str, float] = {}
    for key, value in row.items():
        metric, comma, name = key.partition(",")
        if not comma or not isinstance(value, int | float) or math.isnan(value):
            continue  # a description, or a standard error that lm_eval does not know
        stderr = metric.endswith("_stderr")
        plain = metric.removesuffix("_stderr") + ("" if name == "none" else f",{name}")
        figures[f"{plain}_stderr" if stderr else plain] = float(value)
    return figures
