"""Is the student better? Greedy and sampled accuracy by a verifier and mean reward, for one or several checkpoints.

python recipes/evaluate.py --config recipes/configs/demo/evaluate.yaml

Prints a table and writes it under "student" into results.json, with 95 % intervals.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from toa_trl.agents import make_agent, make_sampling
from toa_trl.cli import parse, structure, user_errors
from toa_trl.config import PromptArguments, structured
from toa_trl.errors import ConfigError
from toa_trl.evaluation.accuracy import measure
from toa_trl.evaluation.results import table, update_results
from toa_trl.rewards import make_reward
from toa_trl.types import Sampling


@dataclass
class EvaluationArguments(PromptArguments):
    models: str = structured("[]", "Checkpoints, as agents: {name, engine: transformers, model}.")
    verifier: str = field(
        default="", metadata={"help": "package.module:name of a TRL reward function: 1 right, 0 wrong."}
    )
    reward: str = structured("{}", "Reward model: {kind: classifier | likelihood | function, ...}.")
    sampling: str = structured("{}", "Of the sampled responses; max_tokens and stop also of the greedy ones.")
    num_samples: int = field(default=4, metadata={"help": "Sampled responses per problem beside the greedy one."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    results: str = field(default="results.json", metadata={"help": "File whose part 'student' is replaced."})


def main() -> None:
    from trl import TrlParser

    (config,) = parse(TrlParser(EvaluationArguments, description=__doc__))
    models, sampling = structure("models", config.models), structure("sampling", config.sampling)
    if not models or not isinstance(models, list):
        raise ConfigError("models: a list with at least one {name, engine, model} is needed")
    prompts = config.load_prompts()
    verifier = make_reward({"kind": "function", "function": config.verifier})
    reward_model = make_reward(structure("reward", config.reward))
    sampling = make_sampling("sampling", Sampling(), sampling)
    agents = [make_agent(entry) for entry in models]  # all of them, so that a wrong path shows before the first hour

    student = {}
    for agent in agents:
        result = asyncio.run(
            measure(agent, prompts, verifier, reward_model, sampling, num_samples=config.num_samples, seed=config.seed)
        )
        student[agent.name] = result.as_json()
        update_results(Path(config.results), "student", student)
    print(table([{"model": name, **row} for name, row in student.items()]))


if __name__ == "__main__":
    with user_errors():
        main()
