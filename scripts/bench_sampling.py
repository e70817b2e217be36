"""Measure sampling at scale: each figure beside its baseline and its target.

    python scripts/bench_sampling.py [--only throughput,in_flight]

Needs no GPU: the models are `tests/server.py`, a scripted HTTP server, in a process of its own.

throughput   Plays per second of one process, 64 in flight, against a server that answers at once:
             four `openai` agents, TOA, journal on disk. Baseline: the same HTTP client in a bare
             loop posts the bodies that the run posted. Both take turns, each in a fresh process;
             medians.
cpu          The same in plays per CPU second of that process.
utilisation  1,000 prompts x 16 plays, one in flight per prompt, 100 to 400 ms per call: the share
             of the server's 64 slots that is busy from the first request to the last answer.
             Baseline: 100 threads, each works on one prompt after another, one play after another,
             as the published implementation does.
adaptive     An adaptive allocation beside a uniform one, with the same search. Busy slots as in
             utilisation, both at the same time; plays per CPU second, by turns, medians, of as many
             prompts and of four times as many: the decisions cost a run as much, whatever its size.
in_flight    One prompt, 160 plays of 200 ms: wall time with 16 plays in flight, relative to one at
             a time.
quality      What 16 plays in flight cost: mean best reward of 300 simulated prompts, 160 plays
             each, relative to one at a time. A prompt draws how good each of five agents is at it,
             N(0.10, 0.04), about as ArmoRM's rewards are spread. An answer is worth that + N(0,
             0.02); a refinement goes a third of the way from its draft to what the agent can do at
             best, its quality + 0.08, + N(0, 0.02); nothing is below 0.001. Plays end in random
             order. The scale: best_of_n's mean best reward.
memory       Peak memory of a fresh process that writes 1,000,000 plays of 1 kB (6,250 prompts) to
             the journal and exports them. Baseline: a tenth of them.
rewards      Texts per second of the bundled reward model, all asked at once, on 960 rollouts that
             the bundled agents sample in this run; on a GPU if there is one, else on all cores.
             Baseline: plain transformers, one text after another, with one thread or with all of
             them, whichever is faster.
journal      Plays per second on disk, 256 at a time. Baseline: a commit for each play.
"""

import argparse
import asyncio
import heapq
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from http.client import HTTPConnection
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from threading import local
from typing import Any
from zlib import crc32

import aiohttp

from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.journal import Journal, Writer
from toa_trl.search import make_search
from toa_trl.tasks.base import BUILT_IN, Templates, render
from toa_trl.types import Action, Completion, Play, Prompt, Sampling, as_dicts

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.server import WORDS, serving  # noqa: E402

AGENTS = list("abcd")
WEIGHTS = ROOT / "toa_trl/demo/weights"
IN_FLIGHT = 64
MAX_TOKENS = 2048


@dataclass
class Figure:
    """A line of the table."""

    what: str
    value: str
    baseline: str
    asked: str
    reached: bool


def fresh(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls that run at the same time, each in a fresh process."""
    with ProcessPoolExecutor(
        len(calls), mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as processes:
        return [call.result() for call in [processes.submit(call) for call in calls]]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def problems(number: int) -> list[str]:
    with open(ROOT / "toa_trl/demo/data/synthesis.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["prompt"] for line in file]
    return list(islice(cycle(texts), number))


def trivial_reward(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    return [crc32(completion[-1]["content"].encode()) / 2**33 for completion in completions]


def sample(
    url: str,
    folder: Path,
    *,
    num_prompts: int,
    budget: int,
    plays_in_flight: int = 1,
    prompts_in_flight: int = 256,
    allocation: str = "",
) -> tuple[float, float]:
    """Plays per second, and per CPU second of this process."""
    agents = [{"name": name, "engine": "openai", "model": name, "base_url": url} for name in AGENTS]
    sampler = TOASampler(
        agents,
        trivial_reward,
        budget=budget,
        plays_in_flight=plays_in_flight,
        prompts_in_flight=prompts_in_flight,
        sampling={"max_tokens": MAX_TOKENS},
        # uniform or adaptive: then with the same search, whose choices do not depend on the budget
        allocation={"kind": allocation} if allocation else None,
        search_params={"width": "anytime"} if allocation else {},
        progress=False,
    )
    prompts = problems(num_prompts)
    begin, cpu = time.perf_counter(), time.process_time()
    sampler.sample(prompts, folder, export=False)  # plays alone, not the report of them
    num_plays = num_prompts * budget
    return num_plays / (time.perf_counter() - begin), num_plays / (time.process_time() - cpu)


def write_bodies(folder: Path) -> None:
    """What the run in this folder posted, as it is recorded in its journal."""
    templates = Templates.load(BUILT_IN / "alignment")
    with open(folder / "bodies.jsonl", "w", encoding="utf-8") as file:
        for rollout in Rollouts.load(folder):
            plays = {play.index: play for play in rollout.plays}
            for play in rollout.plays:
                messages = as_dicts(render(rollout.prompt, play.action, plays, templates))
                body = {
                    "model": play.action.agent,
                    "messages": messages,
                    "temperature": 0.7,
                    "top_p": 1.0,
                }
                file.write(json.dumps({**body, "max_tokens": MAX_TOKENS, "seed": play.seed}) + "\n")


def post_bodies(url: str, folder: Path) -> tuple[float, float]:
    """Requests per second of a bare loop, and per CPU second."""
    bodies = [
        json.loads(line)
        for line in (folder / "bodies.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    waiting = iter(bodies)

    async def main() -> None:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=IN_FLIGHT)
        ) as session:

            async def work() -> None:
                for body in waiting:
                    async with session.post(f"{url}/chat/completions", json=body) as answer:
                        await answer.json()

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    begin, cpu = time.perf_counter(), time.process_time()
    asyncio.run(main())
    return len(bodies) / (time.perf_counter() - begin), len(bodies) / (time.process_time() - cpu)


@cache
def rounds(number: int = 5) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Ours and the bare loop by turns: plays per second, and per CPU second."""
    ours, bare = [], []
    for turn in range(number):
        with TemporaryDirectory() as name, serving(words=64, model=AGENTS) as server:
            folder = Path(name)
            ours += fresh(
                partial(
                    sample,
                    server.url,
                    folder,
                    num_prompts=64,
                    budget=160,
                    prompts_in_flight=IN_FLIGHT,
                )
            )
            write_bodies(folder)
            bare += fresh(partial(post_bodies, server.url, folder))
            say(
                f"round {turn + 1} of {number}: {ours[-1][0]:.0f} plays/s, bare loop "
                f"{bare[-1][0]:.0f} requests/s"
            )
            assert server.stats()["served_again"] == server.stats()["served_distinct"], (
                "the bodies differ"
            )
    return ours, bare


def throughput() -> Iterator[Figure]:
    ours, bare = ([wall for wall, _ in each] for each in rounds())
    ratio = median(
        a / b for a, b in zip(ours, bare, strict=True)
    )  # of neighbours: the machine may change its pace
    baseline = f"bare loop {median(bare):,.0f}: {ratio:.2f} of it"
    yield Figure("plays/s", f"{median(ours):,.0f}", baseline, ">= 0.60 of it", ratio >= 0.6)


def cpu() -> Iterator[Figure]:
    ours, bare = (median(cpu for _, cpu in each) for each in rounds())
    yield Figure(
        "plays per CPU second", f"{ours:,.0f}", f"bare loop {bare:,.0f}", ">= 1,500", ours >= 1500
    )


def thread_pool(url: str, num_prompts: int, budget: int, num_threads: int = 100) -> None:
    """A prompt per thread, one play after another.

    An answer, then refinements of what came before.
    """
    host, templates, connections = (
        url.split("/")[2],
        Templates.load(BUILT_IN / "alignment"),
        local(),
    )

    def work(number: int, text: str) -> None:
        if not hasattr(connections, "mine"):
            connections.mine = HTTPConnection(host)
        prompt = Prompt(str(number), text)  # type: ignore[arg-type]
        plays = dict[int, Play]()
        for index in range(budget):
            action = Action("a", "refine", (index - 1,)) if index else Action("a")
            messages = as_dicts(render(prompt, action, plays, templates))
            body = {
                "model": "a",
                "messages": messages,
                "max_tokens": MAX_TOKENS,
                "seed": 1000 * number + index,
            }
            connections.mine.request("POST", "/v1/chat/completions", json.dumps(body))
            answer = json.load(connections.mine.getresponse())
            plays[index] = Play(
                index, action, Completion(answer["choices"][0]["message"]["content"])
            )

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(work, range(num_prompts), problems(num_prompts)))


def utilisation() -> Iterator[Figure]:
    num_prompts, budget, slots = 1000, 16, 64
    say(
        f"utilisation: {num_prompts * budget * 0.25 / slots:.0f} s at the least, ours and the "
        "threads at the same time"
    )
    options: dict[str, Any] = {"slots": slots, "latency_s": (0.1, 0.4), "model": AGENTS}
    with TemporaryDirectory() as folder, serving(**options) as server, serving(**options) as other:
        fresh(
            partial(sample, server.url, Path(folder), num_prompts=num_prompts, budget=budget),
            partial(thread_pool, other.url, num_prompts, budget),
        )
        counted = [each.stats() for each in (server, other)]
    assert all(each["served_distinct"] == num_prompts * budget for each in counted), (
        "not every play was made"
    )
    ours, threads = (
        each["busy_s"] / slots / (each["seconds"] - each["idle_s"]) for each in counted
    )
    yield Figure("busy slots", f"{ours:.3f}", f"100 threads {threads:.3f}", ">= 0.97", ours >= 0.97)


def adaptive() -> Iterator[Figure]:
    num_prompts, budget, slots = 1000, 16, 64
    kinds = ("adaptive", "uniform")
    say("adaptive: 63 s at the least, both at the same time")
    options: dict[str, Any] = {"slots": slots, "latency_s": (0.1, 0.4), "model": AGENTS}
    plays = {"num_prompts": num_prompts, "budget": budget}
    with TemporaryDirectory() as folder, serving(**options) as server, serving(**options) as other:
        runs = zip(kinds, (server, other), strict=True)
        fresh(
            *(
                partial(sample, each.url, Path(folder, kind), allocation=kind, **plays)
                for kind, each in runs
            )
        )
        counted = [each.stats() for each in (server, other)]
    assert all(each["served_distinct"] == num_prompts * budget for each in counted), (
        "not every play was made"
    )
    ours, uniform = (
        each["busy_s"] / slots / (each["seconds"] - each["idle_s"]) for each in counted
    )
    yield Figure(
        "busy slots, adaptive", f"{ours:.3f}", f"uniform {uniform:.3f}", ">= 0.95", ours >= 0.95
    )
    for number in (num_prompts, 4 * num_prompts):
        say(f"adaptive: 3 rounds of {number:,} prompts by turns")
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(3):
            for kind in kinds:
                with TemporaryDirectory() as folder, serving(words=64, model=AGENTS) as server:
                    run = partial(
                        sample,
                        server.url,
                        Path(folder),
                        num_prompts=number,
                        budget=budget,
                        prompts_in_flight=IN_FLIGHT,
                        allocation=kind,
                    )
                    rates[kind] += [cpu for _, cpu in fresh(run)]
        ours, uniform = median(rates["adaptive"]), median(rates["uniform"])
        ratio = median(a / b for a, b in zip(*rates.values(), strict=True))  # of neighbours
        yield Figure(
            f"plays per CPU second, adaptive, {number:,} prompts",
            f"{ours:,.0f}",
            f"uniform {uniform:,.0f}: {ratio:.2f} of it",
            ">= 0.90 of it",
            ratio >= 0.9,
        )


def in_flight() -> Iterator[Figure]:
    say("in_flight: 32 s, both at the same time")
    with TemporaryDirectory() as folder, serving(latency_s=(0.2, 0.2), model=AGENTS) as server:
        rates = fresh(
            *(
                partial(
                    sample,
                    server.url,
                    Path(folder, str(n)),
                    num_prompts=1,
                    budget=160,
                    plays_in_flight=n,
                )
                for n in (1, 16)
            )
        )
    one, many = (160 / wall for wall, _ in rates)
    relative = f"one at a time {one:.2f} s: {many / one:.3f} of it"
    yield Figure(
        "wall time, 16 in flight", f"{many:.2f} s", relative, "<= 0.10 of it", many / one <= 0.1
    )


def best_reward(name: str, seed: int, plays_in_flight: int) -> float:
    """Of a simulated prompt."""
    agents, world = list("abcde"), random.Random(seed)
    quality = {agent: world.gauss(0.10, 0.04) for agent in agents}
    search, rewards = make_search(name, agents, 160, seed), dict[int, float]()
    running: list[tuple[float, int, Action]] = []
    now = 0.0
    while not search.done:
        for play, action in search.ask(plays_in_flight - len(running)):
            heapq.heappush(running, (now + world.uniform(0.5, 1.5), play, action))
        now, play, action = heapq.heappop(running)
        mean = quality[action.agent]
        if action.refs:
            draft = rewards[action.refs[0]]
            mean = draft + (mean + 0.08 - draft) / 3
        rewards[play] = max(0.001, world.gauss(mean, 0.02))
        search.tell(play, rewards[play])
    return max(rewards.values())


def quality() -> Iterator[Figure]:
    say("quality: 3 x 300 simulated prompts")
    one, many, scale = (
        fmean(best_reward(name, seed, plays) for seed in range(300))
        for name, plays in (("toa", 1), ("toa", 16), ("best_of_n", 1))
    )
    baseline = f"one at a time {one:.4f}: {many / one:.3f} of it (best_of_n {scale:.4f})"
    yield Figure(
        "mean best reward, 16 in flight",
        f"{many:.4f}",
        baseline,
        ">= 0.98 of it",
        many >= 0.98 * one,
    )


def long_plays(num_prompts: int) -> Iterator[tuple[str, Play]]:
    """160 plays a prompt, each of 1 kB, that compress about as text does."""
    rng = random.Random(0)
    for prompt in range(num_prompts):
        for index in range(160):
            text = " ".join(rng.choices(WORDS, k=205))
            action = Action("a", "refine", (index - 1,), index - 1, index) if index else Action("a")
            yield (
                f"prompt {prompt}",
                Play(index, action, Completion(text, "stop", 100, 205), rng.random(), seed=index),
            )


def new_journal(folder: str, num_prompts: int) -> Journal:
    journal = Journal(Path(folder) / "journal.sqlite", create=True)
    identity = {
        "search": "toa",
        "search_params": {},
        "budget": 160,
        "seed": 0,
        "sampling": asdict(Sampling()),
    }
    identity |= {"agents": {"a": "a"}, "reward": "none"}
    journal.begin(
        identity,
        (
            Prompt(f"prompt {n}", text)  # type: ignore[arg-type]
            for n, text in enumerate(problems(num_prompts))
        ),
    )
    return journal


async def write(
    journal: Journal, plays: Iterator[tuple[str, Play]], num_writers: int = 256
) -> None:
    """Write plays, so many at a time."""
    writer = Writer(journal)

    async def work() -> None:
        for prompt_id, play in plays:
            await writer.append(prompt_id, play)

    await asyncio.gather(*(work() for _ in range(num_writers)))
    await writer.aclose()


def write_and_export(num_prompts: int) -> int:
    """Peak memory of this process, bytes.

    Not ru_maxrss: that one remembers the process this was forked from.
    """
    with TemporaryDirectory() as folder:
        journal = new_journal(folder, num_prompts)
        asyncio.run(write(journal, long_plays(num_prompts)))
        Rollouts(journal).save(folder)
        journal.close()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def memory() -> Iterator[Figure]:
    say("memory: one to three minutes")
    (small,) = fresh(partial(write_and_export, 625))
    (large,) = fresh(partial(write_and_export, 6250))
    what = "peak memory, 1,000,000 plays"
    yield Figure(
        what,
        f"{large / 1e6:.0f} MB",
        f"100,000 plays {small / 1e6:.0f} MB",
        "<= 600 MB",
        large <= 600e6,
    )


def score(num_prompts: int = 60, budget: int = 16) -> tuple[float, float]:
    """Texts per second: all at once, and one by one with plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from toa_trl.rewards import make_reward

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = str(WEIGHTS / "reward_hackable")
    agents = [
        {"name": name, "engine": "transformers", "model": str(WEIGHTS / name)}
        for name in ("add", "subtract", "multiply", "generalist")
    ]
    sampler = TOASampler(
        agents,
        trivial_reward,
        budget=budget,
        sampling={"max_tokens": 64},
        task=str(ROOT / "toa_trl/demo/templates"),
        progress=False,
    )
    rollouts = sampler.sample(problems(num_prompts))
    texts = [
        (rollout.prompt, play.completion.text if play.completion else "")
        for rollout in rollouts
        for play in rollout.scored
    ]
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_cores)

    begin = 0.0

    async def at_once() -> list[float]:
        reward = make_reward({"kind": "classifier", "model": path, "device": device})
        await reward.score(texts[0][0], [texts[0][1]])  # warm
        nonlocal begin
        begin = time.perf_counter()
        scores = await asyncio.gather(*(reward.score(prompt, [text]) for prompt, text in texts))
        return [each for (each,) in scores]

    scores = asyncio.run(at_once())
    together = len(texts) / (time.perf_counter() - begin)

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval().to(device)

    def one(prompt: Prompt, text: str) -> float:
        messages = [*as_dicts(prompt.messages), {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True).to(
            device
        )
        with torch.inference_mode():
            return float(model(**ids).logits[0, 0])

    rates = []
    for threads in sorted(
        {1, num_cores}
    ):  # a second thread rather costs a single text, so both are tried
        torch.set_num_threads(threads)
        one(*texts[0])  # warm
        begin = time.perf_counter()
        expected = [one(prompt, text) for prompt, text in texts]
        rates.append(len(texts) / (time.perf_counter() - begin))
    alone = max(rates)
    assert all(abs(a - b) < 1e-2 for a, b in zip(scores, expected, strict=True)), (
        "the scores differ"
    )
    return together, alone


def rewards() -> Iterator[Figure]:
    say("rewards: 960 rollouts of the bundled agents")
    ((together, alone),) = fresh(score)
    ratio = together / alone
    baseline = f"one by one {alone:,.0f}: {ratio:.1f} x"
    yield Figure("texts scored/s", f"{together:,.0f}", baseline, ">= 5 x", ratio >= 5)


def journal() -> Iterator[Figure]:
    say("journal: 50,000 plays, then 3,000 with a commit each")
    rates = []
    for num_plays, together in ((50_000, True), (3_000, False)):
        plays = list(islice(long_plays(320), num_plays))
        with TemporaryDirectory(dir=ROOT) as folder:  # where runs are, not where a RAM disk may be
            written = new_journal(folder, 320)
            begin = time.perf_counter()
            if together:
                asyncio.run(write(written, iter(plays)))
            else:
                for prompt_id, play in plays:
                    written.append(prompt_id, play)
            rates.append(num_plays / (time.perf_counter() - begin))
            assert written.counts().num_scored == num_plays
            written.close()
    many, one = rates
    yield Figure(
        "plays written/s", f"{many:,.0f}", f"a commit each {one:,.0f}", ">= 5,000", many >= 5000
    )


FIGURES = (throughput, cpu, utilisation, adaptive, in_flight, quality, memory, rewards, journal)


def main() -> None:
    names = [figure.__name__ for figure in FIGURES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(names), help="comma list of figures")
    chosen = parser.parse_args().only.split(",")
    if unknown := set(chosen) - set(names):
        parser.error(f"unknown figures: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(f"{'':46}{'asked':16}{'baseline'}")
    for figure in FIGURES:
        if figure.__name__ in chosen:
            for line in figure():
                missed = "" if line.reached else "    MISSED"
                print(
                    f"{line.what:32}{line.value:>10}    {line.asked:16}{line.baseline}{missed}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
