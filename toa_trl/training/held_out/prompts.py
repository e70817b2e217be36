"""What a model in training is asked and scored with: held-out prompts, reward, verifier."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.evaluation.verifier import make_verifier
from toa_trl.hub.dataset_card import reward_name
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.rewards.recorded import check_no_code
from toa_trl.sampling.journal import open_journal
from toa_trl.sampling.run_file import FILE as RUN_FILE
from toa_trl.tasks import Task, make_task
from toa_trl.tasks.recorded import recorded_task
from toa_trl.training.data import TrainingData
from toa_trl.training.held_out.options import HeldOutArguments
from toa_trl.training.held_out.split import draw, normalized, prompt_of
from toa_trl.training.prompts import run_of
from toa_trl.types import Prompt, Sampling
from toa_trl.utils.compat import loading_whole_models
from toa_trl.utils.files import read_configuration, read_value

MAX_TOKENS = 1024
RESPONSES = ("prompt", "completion", "chosen", "rejected", "messages", "conversations", "label")
ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts, and how responses to them are sampled and scored."""

    prompts: Sequence[Prompt]
    texts: Sequence[str | None]
    """Of each prompt that is trained on as a plain text, without a chat template; else None."""
    task: Task
    reward: RewardModel | None  # in the main process only, as the verifier
    verifier: RewardModel | None
    sampling: Sampling
    seed: int
    batch_size: int
    scorers: Mapping[str, str] = field(default_factory=dict)
    """Of "reward" and "verifier" what scores, for the model card."""


@dataclass(frozen=True)
class _Run:
    """What the run that the data come from recorded."""

    folder: Path
    configuration: Mapping[str, Any]
    identity: Mapping[str, Any]
    prompts: Mapping[str, Prompt]


def prepare_held_out(
    options: HeldOutArguments, data: TrainingData, training: Any
) -> HeldOut | None:
    """Return what the model is asked during training; None if it is asked nothing.

    Raises:
        ConfigError: the held-out rows have no prompts, nothing could score responses, or run.yaml
            names code that is not trusted.
    """
    from datasets import Dataset

    if not options.held_out_samples:
        return None
    if not isinstance(data.test, Dataset):
        raise ConfigError("held_out_samples: the held-out rows must not be a stream")
    rows = _choose(data.test, options.held_out_samples, training.seed)
    run = _run_of(data.sources, {str(row.get("prompt_id")) for row in rows})
    prompts, texts = _prompts(rows, run)
    task = make_task("alignment")
    if run is not None:
        trust, place = options.held_out_trust, f"{run.folder}/{RUN_FILE}"
        try:
            task = recorded_task(run.configuration, run.identity, trust, place)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--trust", "--held_out_trust true")) from error
    reward = verifier = None
    scorers: dict[str, str] = {}
    if training.process_index == 0:
        entry = _reward_entry(options, run)
        # an adapter is made at random after this
        with random_states_kept(), loading_whole_models():
            reward = None if entry is None else make_reward(entry, "held_out_reward")
            judge = _entry(options, "held_out_verifier") or ""
            if isinstance(judge, str) and judge:
                judge = {"kind": "function", "function": judge}
            verifier = make_verifier(judge, task, prompts)
        entries = {"reward": (reward, entry), "verifier": (verifier, judge or task.verifier)}
        scorers = {name: reward_name(named) for name, (model, named) in entries.items() if model}
        if reward is None and verifier is None:
            raise ConfigError(
                "held_out_reward: the data come from no run with a reward, so name the reward or "
                "held_out_verifier"
            )
    recorded = (run.configuration.get("sampling") or {}) if run is not None else {}
    max_tokens = options.held_out_max_tokens or recorded.get("max_tokens") or MAX_TOKENS
    sampling = Sampling(options.held_out_temperature, max_tokens=max_tokens)
    batch_size = options.held_out_batch_size or training.per_device_eval_batch_size
    how = (sampling, training.seed, batch_size, scorers)
    return HeldOut(prompts, texts, task, reward, verifier, *how)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave the random states of Python, numpy and torch as they were."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _choose(rows: Any, num: int, seed: int) -> list[dict[str, Any]]:
    """Return one row of each of so many prompts: the same ones when the run grows."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = prompt_of(row)
        if prompt is None or "input_ids" in row:
            columns = ", ".join(row)
            raise ConfigError(
                "held_out_samples: the rows have no prompt to answer; prompt and completion, "
                f"messages, or pairs are needed; columns: {columns}"
            )
        found.setdefault(str(row.get("prompt_id") or normalized(prompt)), row)
    chosen = sorted(found, key=lambda key: draw(key, seed))[:num]
    return [found[key] for key in chosen]


def _run_of(sources: Sequence[Mapping[str, Any]], prompt_ids: set[str]) -> _Run | None:
    """Return the run that the data come from; None if they come from none, or from several."""
    folders = set(filter(None, (run_of(str(source["dataset"])) for source in sources)))
    if len(folders) != 1:
        return None
    (folder,) = folders
    identity: Mapping[str, Any] = {}
    prompts: dict[str, Prompt] = {}
    if (folder / "journal.sqlite").is_file():
        with open_journal(folder) as journal:
            identity = journal.identity
            for prompt in journal.prompts():
                if prompt.id in prompt_ids:
                    prompts[prompt.id] = prompt
                    if len(prompts) == len(prompt_ids):
                        break
    return _Run(folder, read_configuration(folder), identity, prompts)


def _prompts(
    rows: Sequence[Mapping[str, Any]], run: _Run | None
) -> tuple[list[Prompt], list[str | None]]:
    """Return the prompts with all that is known of them, each text once."""
    prompts: dict[str, Prompt] = {}
    texts: list[str | None] = []
    for number, row in enumerate(rows):
        prompt_id = str(row.get("prompt_id") or number)
        metadata = {name: value for name, value in row.items() if name not in RESPONSES}
        asked = prompt_of(row)
        known = run.prompts.get(prompt_id) if run is not None else None
        try:
            if known is not None:  # of a draft that is refined, the prompt alone
                prompt = Prompt(prompt_id, known.messages, {**metadata, **known.metadata})
            else:
                messages = asked if isinstance(asked, str) else [_message(one) for one in asked]
                prompt = Prompt(prompt_id, messages, metadata)  # type: ignore[arg-type]
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"held_out_samples: prompt {prompt_id!r} cannot be asked: {error}"
            ) from error
        content = normalized([{"content": message.content} for message in prompt.messages])
        if content not in prompts:
            prompts[content] = prompt
            texts.append(asked if isinstance(asked, str) and known is None else None)
    return list(prompts.values()), texts


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if "from" in message:
        role = ROLES.get(message["from"], message["from"])
        return {"role": role, "content": message["value"]}
    return {name: value for name, value in message.items() if value is not None}


def _reward_entry(options: HeldOutArguments, run: _Run | None) -> Any:
    """Return the entry of the reward model, or None if there is none."""
    if options.held_out_reward:
        return _entry(options, "held_out_reward")
    entry = run.configuration.get("reward") if run is not None else None
    if not isinstance(entry, Mapping) or run is None:
        return None  # of a run without run.yaml, or with a reward that was an object
    if options.held_out_trust:
        return entry
    try:
        check_no_code(entry, "reward")
    except ConfigError as error:
        raise ConfigError(
            f"held_out_reward: the reward of {run.folder}/{RUN_FILE} names code, which is run only "
            "with --held_out_trust true; or name the reward here"
        ) from error
    return entry


def _entry(options: HeldOutArguments, key: str) -> Any:
    """Return an entry that may be a text on the command line."""
    given = vars(options)[key]
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return read_value(key, given)
    return given
