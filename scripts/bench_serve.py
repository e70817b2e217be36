"""Measure what `toa-trl serve` adds to a search: each figure beside the runner alone.

    python scripts/bench_serve.py [--budget 16] [--num_requests 200] [--latency_ms 0]

Two scripted agents, TOA, the reward `length`. The server is a process of its own, on this machine;
the runner alone is the same `SearchModel` in this process. Both take turns on the same prompts, in
rounds; medians of the rounds, with the lowest and the highest.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from statistics import median

import aiohttp

from toa_trl.systems.search_model import SearchModel, SearchSettings
from toa_trl.systems.server import listen, make_app, make_server

IN_FLIGHT, ROUNDS = 16, 5
Ask = Callable[[str], Awaitable[object]]


def model_of(budget: int, latency_ms: float) -> SearchModel:
    agents = [{"name": name, "engine": "scripted", "latency_s": latency_ms / 1000} for name in "ab"]
    return SearchModel(agents, {"kind": "length"}, SearchSettings("toa", budget))


def serve(budget: int, latency_ms: float, pipe: Connection) -> None:
    """Serve in this process; send the port."""
    listener = listen("127.0.0.1", 0)
    pipe.send(listener.getsockname()[1])
    server = make_server(make_app(model_of(budget, latency_ms)))
    asyncio.run(server.serve(sockets=[listener]))


async def seconds(ask: Ask, texts: list[str], in_flight: int) -> float:
    """Return how long all requests take, with so many of them at the same time."""
    waiting, start_s = iter(texts), time.perf_counter()

    async def client() -> None:
        for text in waiting:
            await ask(text)

    await asyncio.gather(*(client() for _ in range(in_flight)))
    return time.perf_counter() - start_s


async def measure(port: int, options: argparse.Namespace) -> None:
    """Print the table."""
    model = model_of(options.budget, options.latency_ms)
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    texts = [f"What is {i} + {i}?" for i in range(options.num_requests)]
    async with aiohttp.ClientSession() as session:

        async def ask_runner(text: str) -> None:
            await model.answer(model.read([{"role": "user", "content": text}]))

        async def ask_server(text: str) -> None:
            body = {"model": "toa", "messages": [{"role": "user", "content": text}]}
            async with session.post(url, json=body) as reply:
                assert (await reply.json())["choices"]

        sides: dict[str, Ask] = {"runner alone": ask_runner, "serve": ask_server}
        figures: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
        for ask in sides.values():
            await seconds(ask, texts[:9], 1)  # warms up
        for name, ask in [*sides.items()] * ROUNDS:
            figures[name][0].append(await seconds(ask, texts, 1) / len(texts) * 1000)
            figures[name][1].append(len(texts) / await seconds(ask, texts, IN_FLIGHT))
    print(f"{'':14}{'ms per request':>26}{f'requests/s, {IN_FLIGHT} in flight':>30}")
    for name, columns in figures.items():
        cells = [f"{median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns]
        print(f"{name:14}{cells[0]:>26}{cells[1]:>30}")
    added_ms = median(figures["serve"][0]) - median(figures["runner alone"][0])
    print(f"{'added':14}{added_ms:>26.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--num_requests", type=int, default=200)
    parser.add_argument("--latency_ms", type=float, default=0.0)  # of each agent's answer
    options = parser.parse_args()
    ours, theirs = Pipe()
    args = (options.budget, options.latency_ms, theirs)
    server = get_context("spawn").Process(target=serve, args=args, daemon=True)
    server.start()
    try:
        asyncio.run(measure(ours.recv(), options))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
