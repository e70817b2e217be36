"""A search as a model of an evaluation: it samples live, and its best responses count."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from toa_trl.agents import ENGINES, make_sampling
from toa_trl.agents.base import SamplingEntry
from toa_trl.errors import ConfigError
from toa_trl.evaluation.ledger import ledger_path
from toa_trl.evaluation.outputs import Outputs, check_all, closing_all
from toa_trl.models.devices import free_memory
from toa_trl.rewards import KINDS, make_reward
from toa_trl.rewards.deferred import deferred
from toa_trl.sampler import TOASampler
from toa_trl.sampling.identity import identity_of_run
from toa_trl.sampling.parts import check_parts
from toa_trl.search import make_search
from toa_trl.systems.models import EvaluatedModel, Questions
from toa_trl.systems.run_model import selected_outputs
from toa_trl.utils.config import NonNegativeFloat, PositiveInt, Text


class SearchRun(EvaluatedModel):
    """A search with its own agents and reward: of each prompt the response with the best reward.

    The reward sees the columns of the prompts, so it may be a verifier. The plays are a run in a
    folder of its own in output_dir, named after everything that decides them: interrupted, it
    resumes with what was sampled. The seed is that of the evaluation; num_samples does not apply.

    Args:
        name: name of the model.
        agents: the models that answer: entries {name, engine, ...}.
        reward: the reward model that guides the search: {kind, ...}.
        search: name of the search.
        search_params: parameters of the search.
        budget: scored plays per prompt. A list gives a model for each, called NAME@BUDGET; every
            one is a search of its own.
        sampling: how the agents sample, where it differs from the evaluation's; an agent's own
            `sampling` overrides it.
        plays_in_flight: concurrent plays per prompt.
        prompts_in_flight: prompts worked on concurrently.
        patience_s: seconds without a single play after which the search stops because no agent is
            available.

    Raises:
        ConfigError: an entry is invalid, or a parameter does not fit the search.
    """

    def __init__(
        self,
        name: str,
        agents: Annotated[list[Annotated[dict[str, Any], ENGINES]], Field(min_length=1)],
        reward: Annotated[dict[str, Any], KINDS],
        search: Text = "toa",
        search_params: dict[str, Any] | None = None,
        budget: PositiveInt | list[PositiveInt] = 160,
        sampling: SamplingEntry | None = None,
        plays_in_flight: PositiveInt = 1,
        prompts_in_flight: PositiveInt = 256,
        patience_s: NonNegativeFloat = 900.0,
    ) -> None:
        self._name, self._place = name, f"model {name!r}"
        if isinstance(budget, list):
            raise ConfigError(f"{self._place}: budget: must be an integer, not {budget}")
        try:  # before anything is loaded
            make_search(search, check_parts(agents, reward), budget, **search_params or {})
        except ConfigError as error:
            raise ConfigError(f"{self._place}.{error}") from error
        self._agents, self._reward = agents, reward
        self._sampling: Mapping[str, Any] = sampling or {}
        self._options: dict[str, Any] = {
            "search": search,
            "search_params": search_params,
            "budget": budget,
            "plays_in_flight": plays_in_flight,
            "prompts_in_flight": prompts_in_flight,
            "patience_s": patience_s,
        }

    async def check(self, questions: Questions) -> None:
        """Check the servers and folders of the agents and of the reward; nothing is loaded.

        A reward of the user's own, which may load a model, is not checked.
        """
        place = f"{self._place}.reward"
        built_in = self._reward["kind"] in KINDS.built_in
        reward = make_reward(deferred(self._reward, place), place) if built_in else None
        async with closing_all(reward):
            await check_all(self._agents, reward)

    async def outputs(self, questions: Questions) -> list[Outputs]:
        """Search, or resume, and return the selected response to every prompt.

        Raises:
            ConfigError: a prompt has no scored play.
            ToaError: the search cannot continue; what was scored is kept.
        """
        prompts = list(questions.prompts)
        sampler = TOASampler(
            self._agents,
            self._reward,
            task=questions.task,
            seed=questions.seed,
            sampling=make_sampling(f"{self._place}.sampling", questions.sampling, self._sampling),
            **self._options,
        )
        decides = identity_of_run(sampler.identity, prompts)
        path = ledger_path(questions.folder, self._name, decides, list(decides["agents"]))
        folder = path.with_suffix("")
        await sampler.asample(prompts, folder)
        free_memory()
        return selected_outputs(self._place, folder, prompts)
