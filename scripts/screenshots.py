"""Make the pictures of the viewer in docs/: a small run with scripted agents, in Chromium.

python scripts/screenshots.py
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from toa_trl import TOASampler
from toa_trl.agents import Agent
from toa_trl.rewards import RewardModel
from toa_trl.types import Completion, Message, Prompt, Sampling

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import chromium, set_size  # noqa: E402

DOCS = ROOT / "docs"
AGENTS = {"llama-3.1-8b": 0.45, "qwen2.5-7b": 0.55, "mistral-7b": 0.35}  # skill: a step is right
NAMES = ("Eva", "Omar", "Lin", "Ada", "Noah", "Mia", "Ravi", "Zoe")
STEP = re.compile(r"^Step \d: .*$", re.MULTILINE)
WIDTH, HEIGHT = 1280, 860
PICTURES = {
    "viewer_tree.png": "run=apples&view=tree&prompt=apples-3",
    "viewer_pairs.png": "run=apples&view=pairs&sort=margin&descending=true",
}


def solution(question: str) -> list[str]:
    """Return the right steps."""
    start, more, away, bags = map(int, re.findall(r"\d+", question)[:4])
    total = start + more
    left = total - away
    whole = 2 * left + bags
    return [
        f"Step 1: After picking more there are {start} + {more} = {total} apples.",
        f"Step 2: Without those given away {total} - {away} = {left} are left.",
        f"Step 3: Twice as many are 2 x {left} = {2 * left}.",
        f"Step 4: With those found in the end there are {2 * left} + {bags} = {whole} apples.",
        f"Step 5: So the answer = {whole}.",
    ]


def slip(step: str, rng: random.Random) -> str:
    """Return a step with a wrong result."""
    results = re.findall(r"= (\d+)", step)
    wrong = str(int(results[-1]) + rng.choice((-10, -2, 2, 10)))
    return step.replace(results[-1], wrong)


class Solver(Agent):
    """Solves a problem step by step; improves the steps of a draft."""

    def __init__(self, name: str, skill: float) -> None:
        self.name, self.skill = name, skill

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """Return steps, of which some are wrong."""
        rng = random.Random(seed)
        asked = messages[-1].content
        right, draft = solution(asked), STEP.findall(asked)[-5:]
        steps = [step if rng.random() < self.skill else slip(step, rng) for step in right]
        if len(draft) == len(right):
            pairs = zip(draft, right, strict=True)
            steps = [new if rng.random() < self.skill / 2 else old for old, new in pairs]
        text = "\n".join(steps)
        return Completion(text, "stop", len(asked) // 4, len(text) // 4, 8e9 * len(text) / 2)


class Right(RewardModel):
    """The share of right steps, and a little for short texts."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """Return the rewards."""
        right = solution(prompt.messages[-1].content)
        return [
            sum(step in text for step in right) / len(right) - len(text) / 10_000
            for text in responses
        ]


def sample(folder: Path) -> None:
    """Sample the run of the pictures."""
    rng = random.Random(7)
    prompts = []
    for number, name in enumerate(NAMES):
        start, more, away = rng.randint(12, 60), rng.randint(10, 40), rng.randint(2, 20)
        bags = rng.randint(3, 9)
        question = (
            f"{name} has {start} apples, picks {more} more and gives {away} away. Then somebody "
            f"doubles what is left, and {bags} are found. How many apples are there?"
        )
        prompts.append({"id": f"apples-{number}", "prompt": question})
    agents = [Solver(name, skill) for name, skill in AGENTS.items()]
    sampler = TOASampler(agents, Right(), budget=48, progress=False, search_params={"tau": 0.2})
    sampler.sample(prompts, folder)


@contextmanager
def viewer(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield the address of the page."""
    command = [sys.executable, "-m", "toa_trl", "view", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        (address,) = re.findall(r"http://\S+", server.stdout.readline())
        try:
            yield address
        finally:
            server.terminate()


def best_refinement(address: str, query: str) -> int:
    """Return the play that shows most: the best refinement of the prompt."""
    with urlopen(f"{address}api/tree?{query.replace('&view=tree', '')}") as answer:
        plays = json.load(answer)["plays"]
    refined = [play for play in plays if play["kind"] == "refine"]
    return int(max(refined, key=lambda play: play["reward"])["play"])


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        sample(Path(temporary) / "apples")
        with viewer(Path(temporary)) as address, chromium("hide-scrollbars") as browser:
            set_size(browser, WIDTH, HEIGHT)
            for name, query in PICTURES.items():
                if "view=tree" in query:
                    query += f"&play={best_refinement(address, query)}"
                browser.get(f"{address}?{query}")
                time.sleep(3)
                browser.save_screenshot(str(DOCS / name))
                print(f"{DOCS / name}: {(DOCS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
