"""scripts/serve_comet.py with a real unbabel-comet, on real translations of WMT'22.

The published weights cannot be loaded here: small random models of the same architecture and
interface stand for them (comet_models.py). What they say is noise, but it is the noise that comet
itself computes from the same texts.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from tests.helpers import wait
from tests.integration.conftest import ENVIRONMENT, ROOT, preloaded_python
from toa_trl.errors import RewardError
from toa_trl.rewards import make_reward
from toa_trl.types import Message, Prompt

PLACE = ROOT / ".venv-comet"
WMT22 = ROOT / "../shared/data/wmt22"
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not (PLACE / "installed").exists(),
        reason="no .venv-comet: bash scripts/test_comet makes it",
    ),
    pytest.mark.skipif(
        not WMT22.is_dir(), reason="no ../shared/data/wmt22: real translations to score"
    ),
]

IMPORTED = ("aiohttp.web", "comet")
NAMES = ("kiwi", "comet", "unite")  # of comet_models.py
Expected = tuple[Path, dict[str, list[float]]]


def prompts(count: int = 8) -> list[tuple[Prompt, list[str]]]:
    """Segments of every direction, each with the translations of six systems."""
    rows = [
        json.loads(line)
        for path in sorted(WMT22.glob("*.jsonl"))
        for line in path.read_text().splitlines()[:count]
    ]
    return [
        (
            Prompt(
                row["id"],
                (Message("user", f"Translate into English: {row['source']}"),),
                {"source": row["source"], "reference": row["reference"]},
            ),
            list(row["outputs"].values()),
        )
        for row in rows
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Return a folder with every model, and comet's own scores of all translations by each."""
    place = tmp_path_factory.mktemp("comet")
    rows = [
        {"src": prompt.metadata["source"], "mt": text, "ref": prompt.metadata["reference"]}
        for prompt, texts in prompts()
        for text in texts
    ]
    done = subprocess.run(
        [python(), ROOT / "tests/integration/comet_models.py", place],
        input=json.dumps(rows),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place, json.loads((place / "scores.json").read_text())


def python() -> str:
    """Return the Python of `.venv-comet`, in processes that share the import of comet."""
    return preloaded_python(PLACE / "bin/python", *IMPORTED)


class Server:
    """One process of scripts/serve_comet.py, that can be started again at its port."""

    def __init__(self, model: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = command(model, "--port", str(self.port), *options)
        self.log = model / "server.log"
        self.url = f"http://127.0.0.1:{self.port}/score"

    def start(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, env=ENVIRONMENT, stdout=log, stderr=log)

    def wait_until_up(self) -> None:
        for _ in range(600):
            with suppress(URLError, ConnectionError):
                urlopen(f"http://127.0.0.1:{self.port}/", timeout=5).close()
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        pytest.fail(f"the server did not start:\n{self.log.read_text()}")


def command(model: object, *options: str) -> list[str]:
    return [
        python(),
        str(ROOT / "scripts/serve_comet.py"),
        "--model",
        str(model),
        *options,
    ]


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """A server, not yet up."""
    server = Server(model, *options)
    server.start()
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def servers(models: Expected) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(serving(models[0] / name, "--batch-size", "16"))
            for name in NAMES
        }
        for server in started.values():
            server.wait_until_up()
        yield started


async def score(url: str, asked: list[tuple[Prompt, list[str]]], **options: Any) -> list[Any]:
    """The scores of every prompt's texts, or the error, all asked for at once."""
    reward = make_reward({"kind": "http", "url": url, "name": "wmt22-cometkiwi-da", **options})
    try:
        return await asyncio.gather(
            *(reward.score(*each) for each in asked), return_exceptions=True
        )
    finally:
        await reward.aclose()


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def without(prompt: Prompt, *columns: str) -> Prompt:
    return replace(
        prompt,
        metadata={key: value for key, value in prompt.metadata.items() if key not in columns},
    )


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("kiwi", ()),
        ("kiwi", ("reference",)),
        ("comet", ()),
        ("unite", ()),
        ("unite", ("reference",)),
    ],
)
def test_the_scores_are_those_of_comet_itself(
    models: Expected, servers: dict[str, Server], name: str, columns: tuple[str, ...]
) -> None:
    expected = models[1][f"{name} {'free' if columns else 'referenced'}"]
    asked = [(without(prompt, *columns), texts) for prompt, texts in prompts()]
    assert len(expected) == 240
    assert max(expected) - min(expected) > 0.01, "scores that are all alike would show nothing"
    for options in ({}, {"max_batch_size": 1}, {"max_batch_size": 7, "max_concurrency": 3}):
        assert flat(wait(score(servers[name].url, asked, **options))) == pytest.approx(
            expected, abs=1e-5
        )
    backwards = [(prompt, texts[::-1]) for prompt, texts in asked[::-1]]
    assert flat(wait(score(servers[name].url, backwards)))[::-1] == pytest.approx(
        expected, abs=1e-5
    )


def test_cometkiwi_reads_source_and_translation_and_nothing_else(models: Expected) -> None:
    assert models[1]["kiwi free"] == pytest.approx(models[1]["kiwi referenced"], abs=1e-6)
    assert models[1]["unite free"] != pytest.approx(models[1]["unite referenced"], abs=1e-3)


def test_a_source_that_is_no_column_is_the_last_user_message(
    models: Expected, servers: dict[str, Server]
) -> None:
    asked = [
        (
            replace(
                without(prompt, "source"),
                messages=(
                    Message("user", "Bonjour"),
                    Message("assistant", "Hello"),
                    Message("user", prompt.metadata["source"]),
                ),
            ),
            texts,
        )
        for prompt, texts in prompts()
    ]
    assert flat(wait(score(servers["kiwi"].url, asked))) == pytest.approx(
        models[1]["kiwi free"], abs=1e-5
    )


def test_prompts_with_and_without_a_reference_share_requests(
    models: Expected, servers: dict[str, Server]
) -> None:
    asked = [
        (without(prompt, "reference") if i % 2 else prompt, texts)
        for i, (prompt, texts) in enumerate(prompts())
    ]
    kinds = [("referenced", "free")[i // 6 % 2] for i in range(240)]
    expected = [models[1][f"unite {kind}"][i] for i, kind in enumerate(kinds)]
    assert flat(wait(score(servers["unite"].url, asked))) == pytest.approx(expected, abs=1e-5)

    # COMET has no score without one: a failure, and none for the others
    answers = wait(score(servers["comet"].url, asked, max_attempts=2))
    assert all(isinstance(answer, RewardError) for answer in answers[1::2])
    expected = [x for i, x in enumerate(models[1]["comet referenced"]) if kinds[i] == "referenced"]
    assert flat(answers[::2]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["kiwi", "comet"])
def test_what_comet_would_cut_off_has_no_score(servers: dict[str, Server], name: str) -> None:
    prompt = without(prompts(1)[0][0])
    texts = ["the " * 300, "the " * 3000, " \n", "\u200b", "half \ud800"]
    answers = wait(score(servers[name].url, [(prompt, [text]) for text in texts], max_attempts=1))
    assert isinstance(answers[0], list), "this one fits"
    assert [isinstance(answer, RewardError) for answer in answers[1:]] == [True] * 4
    long = replace(prompt, metadata={**prompt.metadata, "source": "the " * 300})
    (answer,) = wait(score(servers[name].url, [(long, ["the " * 300])], max_attempts=1))
    # CometKiwi would read the whole translation and half of the source; COMET reads each by itself
    assert isinstance(answer, RewardError if name == "kiwi" else list)


def test_a_server_that_is_killed_and_comes_back_costs_nothing(models: Expected) -> None:
    async def scores(server: Server) -> list[list[float]]:
        reward = make_reward(
            {
                "kind": "http",
                "url": server.url,
                "max_batch_size": 2,
                "max_concurrency": 2,
                "wait_s": 90,
            }
        )
        tasks = [asyncio.create_task(reward.score(*each)) for each in prompts()]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            server.process.kill()
            server.process.wait()
            assert not all(task.done() for task in tasks)
            server.start()
            return list(await asyncio.gather(*tasks))
        finally:
            await reward.aclose()

    with serving(models[0] / "kiwi") as server:
        server.wait_until_up()
        first = server.process.pid
        assert flat(wait(scores(server))) == pytest.approx(models[1]["kiwi free"], abs=1e-5)
        assert server.process.pid != first


def test_sigterm_ends_it_in_the_middle_of_a_batch(models: Expected) -> None:
    with serving(models[0] / "kiwi", "--batch-size", "1") as server:
        server.wait_until_up()
        asked = prompts() * 20  # longer than the test may take
        client = threading.Thread(
            target=lambda: wait(score(server.url, asked, max_batch_size=5000, wait_s=0.1))
        )
        client.start()
        time.sleep(1.0)
        assert client.is_alive()
        server.process.terminate()
        assert server.process.wait(10) == 0
        client.join()


def lose_weights(folder: Path) -> None:
    code = "import sys, torch; p = sys.argv[1]; c = torch.load(p, weights_only=False); "
    code += (
        "c['state_dict'] = {k: v for k, v in c['state_dict'].items() if 'estimator' not in "
        "k}; torch.save(c, p)"
    )
    subprocess.run(
        [PLACE / "bin/python", "-c", code, folder / "checkpoints/model.ckpt"], check=True
    )


def name_no_encoder(folder: Path) -> None:
    hparams = yaml.safe_load((folder / "hparams.yaml").read_text())
    (folder / "hparams.yaml").write_text(
        yaml.safe_dump({**hparams, "pretrained_model": "microsoft/infoxlm-large"})
    )


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (shutil.rmtree, "not a file, a folder, or a model that can be downloaded"),
    "no checkpoint": (
        lambda folder: shutil.rmtree(folder / "checkpoints"),
        "exactly one file checkpoints/*.ckpt is needed, not 0",
    ),
    "no hparams": (
        lambda folder: (folder / "hparams.yaml").unlink(),
        "hparams.yaml file is missing",
    ),
    "no encoder": (name_no_encoder, "pretrained_model in hparams.yaml must be"),
    "weights missing": (
        lose_weights,
        "keys that are in the model state dict but not in the checkpoint",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_model_that_cannot_be_loaded_is_one_line(
    models: Expected, tmp_path: Path, case: str
) -> None:
    spoil, said = BAD[case]
    folder = tmp_path / "kiwi"
    shutil.copytree(models[0] / "kiwi", folder)
    spoil(folder)
    done = subprocess.run(
        command(folder), env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"serve_comet.py: error: {folder}: ")
    assert said in error
    assert "Traceback" not in done.stderr
