"""The models of an evaluation: agents that are asked, runs, and searches that sample live."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from toa_trl.agents import ENGINES
from toa_trl.agents.base import AgentOptions
from toa_trl.agents.deferred import check_entry
from toa_trl.evaluation.ledger import ledger_path
from toa_trl.evaluation.outputs import Outputs, num_missing, respond
from toa_trl.sampling.identity import decisive, digest_of_prompts
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Sampling
from toa_trl.utils.registry import Registry

MODELS: Registry[Any] = Registry(
    key="engine",
    built_in={
        "run": "toa_trl.systems.run_model:RunModel",
        "search": "toa_trl.systems.search_run:SearchRun",
    },
    group="toa_trl.systems",
    common=AgentOptions,
    base=ENGINES,
)


@dataclass(frozen=True)
class Questions:
    """What an evaluation asks its models."""

    prompts: Sequence[Prompt]
    task: Task
    sampling: Sampling
    folder: Path  # keeps what a model has answered
    num_samples: int = 0  # per prompt, beside the greedy response
    seed: int = 0


class EvaluatedModel(Protocol):
    """A model of an evaluation. It is checked once, and then asked. Subclass it."""

    async def check(self, questions: Questions) -> None:
        """Check, before any model is asked, that this one can answer.

        Raises:
            ConfigError: it cannot.
        """
        return None  # noqa: RET501 (a body, so that type checkers see a default)

    def is_complete(self, questions: Questions) -> bool:
        """Return whether `outputs` will load and ask nothing."""
        return False

    async def outputs(self, questions: Questions) -> list[Outputs]:
        """Return the responses to every prompt.

        Raises:
            ToaError: a response is missing; the same call resumes.
        """
        ...


class AgentModel(EvaluatedModel):
    """An agent, asked greedily and with the sampling; see `respond`.

    It is made, and checked before, only if a response is missing.

    Args:
        entry: of the agent.
    """

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._entry = entry

    async def check(self, questions: Questions) -> None:
        """See `check_entry`."""
        if not self.is_complete(questions):
            await check_entry(f"model {self._entry['name']!r}", self._entry)

    def is_complete(self, questions: Questions) -> bool:
        """See `EvaluatedModel`."""
        path = self._ledger(questions)
        return not num_missing(path, questions.prompts, questions.num_samples)

    async def outputs(self, questions: Questions) -> list[Outputs]:
        """See `EvaluatedModel`."""
        return await respond(
            self._entry,
            questions.prompts,
            questions.task,
            questions.sampling,
            num_samples=questions.num_samples,
            seed=questions.seed,
            path=self._ledger(questions),
        )

    def _ledger(self, asked: Questions) -> Path:
        identity = (
            *(decisive(self._entry), digest_of_prompts(asked.prompts), asdict(asked.sampling)),
            asked.seed,
        )
        return ledger_path(asked.folder, self._entry["name"], *identity)


async def checked_models(
    entries: Sequence[Mapping[str, Any]], questions: Questions
) -> dict[str, EvaluatedModel]:
    """Return the models by name, checked before the first is asked.

    Raises:
        ConfigError: an entry is invalid, or a model cannot answer.
    """
    models = {entry["name"]: make_model(entry) for entry in entries}
    for model in models.values():
        await model.check(questions)
    return models


def make_model(entry: Mapping[str, Any]) -> EvaluatedModel:
    """Return the model that an entry {name, engine, ...} describes; nothing is loaded.

    Raises:
        ConfigError: the entry is invalid.
    """
    if entry["engine"] not in MODELS.built_in:
        return AgentModel(entry)
    model: EvaluatedModel = MODELS.build(f"model {entry['name']!r}", entry)
    return model
