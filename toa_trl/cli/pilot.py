"""What will the full run take, and what should be chosen? A pilot on some of its prompts.

toa-trl pilot --config run.yaml

Samples a random part of the prompts as run.yaml says, with the same budget for each, into
<output_dir>-pilot. Then prints, and writes into pilot.json there: hours, tokens, FLOPs and price of
the full run, and the recommended budget, tau and agents. Interrupted, the same command resumes.
"""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.options import read_config
from toa_trl.errors import ConfigError
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.pilot import FILE, Pilot, as_json, is_pilot, measure_pilot
from toa_trl.evaluation.pilot.allocation import Adaptive
from toa_trl.evaluation.pilot.demand import FullRun
from toa_trl.evaluation.pilot.text import describe
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.allocation import make_allocation
from toa_trl.sampling.allocation.adaptive import MIN_PLAYS
from toa_trl.sampling.limits import Meter, prices_of
from toa_trl.sampling.runner import derive_seed
from toa_trl.sampling.timing import FILE as TIMINGS
from toa_trl.sampling.timing import Stopwatch, TimedAgent, TimedReward, is_timings, read_calls
from toa_trl.search import Search, first_difference, make_search
from toa_trl.types import Prompt
from toa_trl.utils.escape import say
from toa_trl.utils.files import read_yaml, write_json
from toa_trl.utils.targets import check_ours, check_run_folder, marked


class TimedSampler(TOASampler):
    """A sampler that records how long every call takes."""

    def time_calls(self, stopwatch: Stopwatch) -> None:
        """Record the calls of all agents and of the reward model from now on."""
        self._agents = {name: TimedAgent(a, stopwatch) for name, a in self._agents.items()}
        self._reward_model = TimedReward(self._reward_model, stopwatch)


class PilotConfig(SynthesisConfig):
    """A pilot: the configuration of a run, and how much of it is sampled."""

    pilot_prompts: Annotated[int, Field(ge=2)] = 100
    """Prompts of the pilot, drawn at random; 20 to 200 are sensible, and all if there are fewer."""
    pilot_dir: str = ""
    """Folder of the pilot; by default output_dir with -pilot at its end."""
    gain_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The recommended budget is the smallest from which on doubling the plays gains less than this
    share of what the pilot gained after the first play."""

    sampler_class: ClassVar[type[TOASampler]] = TimedSampler

    @property
    def folder(self) -> Path:
        """Folder of the pilot."""
        return Path(self.pilot_dir or f"{self.output_dir.rstrip('/')}-pilot")

    def run_settings(self) -> dict[str, Any]:
        """Return the settings of the pilot as a run, as its run.yaml holds them."""
        of_run = SynthesisConfig.model_fields
        settings = {key: value for key, value in self.settings().items() if key in of_run}
        changes = {"output_dir": str(self.folder), "runner": "local", "push_to_hub": ""}
        return {**settings, **changes, "pilot_prompts": self.pilot_prompts}

    def as_uniform(self) -> Self:
        """Return the configuration with the same search and the same budget for every prompt."""
        params = make_allocation(self.allocation).search_params(self.search, self.search_params)
        return self.model_copy(update={"allocation": {"kind": "uniform"}, "search_params": params})


def main() -> None:
    """Sample a pilot, or resume it, and say what it says about the full run.

    Raises:
        ConfigError: the configuration is invalid, or the folder holds another run.
        ToaError: sampling failed.
    """
    config = read_config(PilotConfig, description=__doc__)
    folder = config.folder
    check_target(folder)
    prompts = config.load_prompts()
    drawn = draw(prompts, config.pilot_prompts, config.seed)
    say(
        f"{len(drawn)} of {len(prompts)} prompts x {config.budget} plays by "
        f"{len(config.agents)} agents -> {folder}"
    )
    rollouts = sample(config, drawn)
    if rollouts.limit:
        say(f"{rollouts.limit}: the pilot is incomplete; repeat the command with a higher limit")
    pilot = pilot_of(config, rollouts, len(prompts))
    write_json(folder / FILE, marked(as_json(pilot)))
    engines = {entry["name"]: str(entry["engine"]) for entry in config.agents}
    say(describe(pilot, {**engines, None: str(config.reward["kind"])}))
    say(f"{folder / FILE} is written")


def check_target(folder: Path) -> None:
    """Refuse a folder of another run, or with files of others; nothing is changed.

    Raises:
        ConfigError: it is one.
    """
    check_run_folder(folder)
    run_file = folder / "run.yaml"
    has_run = (folder / "journal.sqlite").exists() or (folder / "shards").exists()
    if has_run and run_file.is_file() and "pilot_prompts" not in read_yaml(run_file):
        raise ConfigError(
            f"pilot_dir: {folder} holds a run that is not a pilot; choose another folder"
        )
    check_ours({folder / FILE: is_pilot, folder / TIMINGS: is_timings})


def draw(prompts: list[Prompt], number: int, seed: int) -> list[Prompt]:
    """Return randomly drawn prompts in their order; all of them if there are not more.

    Raises:
        ConfigError: there are fewer than two prompts.
    """
    if len(prompts) < 2:
        raise ConfigError(f"prompts: a pilot needs at least 2 prompts, not {len(prompts)}")
    rng = random.Random(derive_seed(seed, "pilot"))
    places = rng.sample(range(len(prompts)), min(number, len(prompts)))
    return [prompts[place] for place in sorted(places)]


def sample(config: PilotConfig, prompts: list[Prompt]) -> Rollouts:
    """Spend the same budget on every prompt, in this process, and time every call."""
    config = config.as_uniform()
    sampler = config.new_sampler()
    assert isinstance(sampler, TimedSampler)
    sampler.configuration = config.run_settings()
    with closing(Stopwatch(config.folder / TIMINGS)) as stopwatch:
        sampler.time_calls(stopwatch)
        return sampler.sample(prompts, config.folder, config.extend, export=False)


def pilot_of(config: PilotConfig, rollouts: Rollouts, num_prompts: int) -> Pilot:
    """Return what the pilot says about a run with so many prompts."""
    adaptive, config = adaptive_of(config), config.as_uniform()
    names = [entry["name"] for entry in config.agents]

    def in_flight(num: int) -> int:
        return min(config.prompts_in_flight, num) * min(config.plays_in_flight, config.budget)

    def searching(budget: int) -> Search:
        return make_search(config.search, names, budget, config.seed, **config.search_params)

    return measure_pilot(
        list(rollouts),
        read_calls(config.folder / TIMINGS),
        FullRun(num_prompts, config.budget, in_flight(num_prompts), in_flight(len(rollouts))),
        agents=names,
        costs=Costs(Meter({}, prices_of(config.agents)).prices),
        tau=searching(config.budget).tau,
        anytime=is_anytime(searching, config.budget),
        gain_share=config.gain_share,
        adaptive=adaptive,
    )


def adaptive_of(config: PilotConfig) -> Adaptive:
    """Return the settings of the adaptive allocation to compare: the run's, or the defaults."""
    given, default = config.allocation, Adaptive(min_plays=max(MIN_PLAYS, len(config.agents)))
    keys = [field.name for field in fields(Adaptive) if given.get(field.name) is not None]
    return replace(default, **{key: given[key] for key in keys})


def is_anytime(make: Callable[[int], Search], budget: int) -> bool:
    """Return whether a search makes the same first plays with half or double the budget."""

    def differs(smaller: int, larger: int) -> bool:
        return first_difference(lambda: make(smaller), lambda: make(larger), smaller) is not None

    return not differs(max(1, budget // 2), budget) and not differs(budget, 2 * budget)
