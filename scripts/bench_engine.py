"""The in-process engine.

Batched against one-by-one generation, and what a synthesis run spends outside its models.

python scripts/bench_engine.py    # set OMP_NUM_THREADS to the cores that are free
"""

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

import toa_trl.models.batching
from toa_trl.agents import make_agent
from toa_trl.cli.config import SynthesisConfig
from toa_trl.types import Prompt, Sampling, as_dicts
from toa_trl.utils.config import validate
from toa_trl.utils.files import read_yaml

CONFIG = "recipes/configs/demo/synthesize.yaml"
IN_FLIGHT = 32


class Busy:
    """The wall time in which at least one model computes."""

    def __init__(self) -> None:
        self.seconds, self._active, self._since, self._lock = 0.0, 0, 0.0, threading.Lock()

    def wrap(self, run: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Any]]:
        def timed(items: list[Any]) -> list[Any]:
            with self._lock:
                self._active += 1
                if self._active == 1:
                    self._since = time.perf_counter()
            try:
                return run(items)
            finally:
                with self._lock:
                    self._active -= 1
                    if not self._active:
                        self.seconds += time.perf_counter() - self._since

        return timed


def one_by_one(entry: dict[str, Any], prompts: list[Prompt], sampling: Sampling) -> float:
    """Tokens per second of plain transformers, one prompt after another."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(entry["model"], dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(entry["model"])
    num_tokens, begin = 0, time.perf_counter()
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            as_dicts(prompt.messages),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            out = model.generate(
                **ids,
                do_sample=True,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_tokens,
            )
        num_tokens += out.shape[1] - ids["input_ids"].shape[1]
    return num_tokens / (time.perf_counter() - begin)


def batched(entry: dict[str, Any], prompts: list[Prompt], sampling: Sampling) -> float:
    """Tokens per second of the agent with 32 plays in flight."""
    agent = make_agent({**entry, "max_batch_size": IN_FLIGHT})
    waiting = iter(enumerate(prompts))

    async def work() -> int:
        return sum(
            [
                (
                    await agent.generate(prompt.messages, sampling=sampling, seed=seed)
                ).completion_tokens
                for seed, prompt in waiting
            ]
        )

    async def main() -> int:
        return sum(await asyncio.gather(*(work() for _ in range(IN_FLIGHT))))

    begin = time.perf_counter()
    return asyncio.run(main()) / (time.perf_counter() - begin)


def main() -> None:
    config = validate(SynthesisConfig, read_yaml(Path(CONFIG)))
    prompts, sampling = config.load_prompts(), Sampling(**config.sampling)
    entry = config.agents[-1]
    print(f"agent {entry['name']}, {torch.get_num_threads()} thread(s); tokens per second:")
    one_by_one(entry, prompts[:4], sampling)  # warm up
    alone = one_by_one(entry, prompts[:64], sampling)
    together = batched(entry, list(islice(cycle(prompts), 1024)), sampling)
    print(f"{'one by one':28}{alone:10.0f}")
    print(f"{f'{IN_FLIGHT} plays in flight':28}{together:10.0f}    {together / alone:.1f} x\n")

    busy = Busy()
    original = toa_trl.models.batching.Batcher.__init__

    def timed(self: Any, run: Any, **options: Any) -> None:
        original(self, busy.wrap(run), **options)

    toa_trl.models.batching.Batcher.__init__ = timed  # type: ignore[method-assign]
    sampler = config.sampler(
        config.agents, config.reward, config.search, config.budget, config.search_params
    )
    begin = time.perf_counter()
    sampler.sample(prompts[:150])
    wall = time.perf_counter() - begin
    print(f"synthesis, 150 prompts x {config.budget} plays: {wall:.1f} s of wall time,")
    print(f"of which {100 * (1 - busy.seconds / wall):.1f} % outside generate and score")


if __name__ == "__main__":
    main()
