"""Every command of README and docs/ is executed as printed, or NOT_EXECUTED says why not.

tests/docs/shell.py has what stands for models of the Hub, for GPUs and for hours of training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.shell import (
    PROGRAMS,
    WEIGHTS,
    ctrl_c_when_ready,
    execute,
    fetch,
    replaced,
    run_until_parsed,
    short_trainings,
)
from tests.docs.snippets import (
    PAGES,
    ROOT,
    Block,
    at,
    blocks,
    files_of,
    of,
    page_of,
    sentences,
    shell_commands,
)
from tests.hub.test_push import be_the_hub
from tests.pipeline.conftest import _stub  # noqa: F401
from tests.server import Process, serving
from toa_trl.cli.main import TRAININGS

WHEEL = "integration/test_wheel.py::test_the_wheel_samples_and_trains_outside_the_clone"
COMET = "integration/test_comet.py::test_the_scores_are_those_of_comet_itself"
OPTIONS_OF_TRL = "training/test_trl_features.py::test_the_commands_of_toa_trl_are_understood"
PARSED = "docs/test_commands.py::test_a_script_that_takes_hours_takes_its_options"
TRAINED = "integration/test_data_table.py::test_a_killed_data_table_goes_on"
NOT_EXECUTED = {
    "git clone": ("needs a network", WHEEL),
    "cd toa_trl": ("needs the clone", WHEEL),
    "python3 -m venv": ("needs a network", WHEEL),
    "source .venv": ("changes the shell alone", WHEEL),
    "pip install": ("needs a network", WHEEL),
    ".venv/bin/pip install": ("needs a network", WHEEL),
    ".venv-vllm/bin/pip install": ("needs a network", "integration/test_vllm.py::"),
    "bash scripts/demo": ("takes minutes", "integration/test_pipeline.py::test_compare_and_report"),
    "bash scripts/test": ("runs these tests", "docs/test_commands.py::"),
    "toa-trl sft --accelerate_config fsdp2 --num_processes 8": ("eight GPUs", OPTIONS_OF_TRL),
    "hf jobs run": (
        "machines of the Hub",
        "training/test_trl_features.py::test_the_options_of_hugging_face_jobs_exist",
    ),
    "ssh": ("needs a second machine", "viewer/test_guard.py::"),
    "vllm serve": ("vLLM and GPUs", "integration/test_vllm.py::test_a_run_over_servers"),
    "bash scripts/comet_environment": ("needs a network", COMET),
    ".venv-comet/": ("unbabel-comet and a network", COMET),
    "sed -i": ("a model of unbabel-comet", COMET),
    "ray start": ("a cluster", "integration/test_ray.py::test_a_shard_is_taken_over"),
    "toa-trl synthesize --config run.yaml --runner ray": (
        "starts a cluster for half a minute",
        "integration/test_ray.py::test_a_shard_is_taken_over",
    ),
    "toa-trl iterate": (
        "trains four times in processes of its own",
        "integration/test_iterate.py::test_",
    ),
    "python recipes/compare.py --config recipes/configs/demo/allocation.yaml": (
        "trains 54 students",
        TRAINED,
    ),
    "python recipes/compare.py --config recipes/configs/demo/allocation_dpo.yaml": (
        "needs students of the command before it",
        TRAINED,
    ),
    "python scripts/": ("takes minutes to hours", PARSED),
}
"""Beginnings of commands -> why they are not executed, and the test that covers them."""
TRAINING = {*TRAININGS, "accelerate"}
SLOW = {*TRAINING, "check", "estimate", "evaluate", "merge-adapter", "run", "serve"}
SLOW |= {"serve-agents", "recipes/compare.py"}
"""Commands that load TRL or models, or start servers."""


def exceptions(words: list[str]) -> list[str]:
    """Return the entries of NOT_EXECUTED that a command has."""
    line = " ".join(words)
    return [beginning for beginning in NOT_EXECUTED if f"{line} ".startswith(beginning)]


def executed(block: Block) -> list[list[str]]:
    """Return the commands of a block that are executed."""
    return [words for words in shell_commands(block.text) if not exceptions(words)]


def is_slow(words: list[str]) -> bool:
    return not SLOW.isdisjoint(words) or "demo/" in " ".join(words)


def parameters() -> Iterator[Any]:
    """Yield every block with commands that are executed."""
    heavy = [pytest.mark.heavy, pytest.mark.xdist_group("docs")]
    for block in of("bash"):
        if commands := executed(block):
            slow = any(map(is_slow, commands)) or "run.yaml" in files_of(page_of(block))
            yield pytest.param(block, id=at(block), marks=heavy if slow else [])


@pytest.mark.parametrize("block", of("bash"), ids=at)
def test_every_command_is_executed_or_has_one_reason_why_not(block: Block) -> None:
    for words in shell_commands(block.text):
        found = exceptions(words)
        is_known = words[0].rpartition("/")[2] in PROGRAMS
        assert len(found) == 1 or (not found and is_known), " ".join(words)


def test_every_block_has_a_language_that_a_test_reads() -> None:
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages == {"bash", "json", "python", "text", "toml", "yaml"}


@pytest.mark.parametrize("beginning", NOT_EXECUTED)
def test_what_is_not_executed_is_on_a_page_and_covered_by_another_test(beginning: str) -> None:
    found = [
        b.place for b in of("bash") for w in shell_commands(b.text) if beginning in exceptions(w)
    ]
    assert found
    reason, test = NOT_EXECUTED[beginning]
    file, _, name = test.partition("::")
    assert reason
    assert f"def {name or 'test_'}" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.fixture
def adapter(place: Path) -> None:
    """An adapter on the student, runs/my-lora."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(WEIGHTS / "student")
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(student, config).save_pretrained("runs/my-lora")


@pytest.fixture(scope="module")
def hub() -> Iterator[Process]:
    """The Hub, to which commands push."""
    with serving("tests.hub_server") as process:
        yield process


@pytest.fixture
def servers(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the guide's fleet serves, and its hosted model."""
    shutil.rmtree("runs/my-run")  # which the guide's run.yaml makes
    with serving() as server:
        names = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "judge")
        llama, qwen, judge = ({"model": name, "base_url": [server.url]} for name in names)
        endpoints = {"agents": {"llama": llama, "qwen": qwen}, "reward": judge}
        Path("endpoints.yaml").write_text(yaml.safe_dump(endpoints))
        config = Path("run.yaml").read_text()
        Path("run.yaml").write_text(config.replace("https://api.example.com/v1", server.url))
        monkeypatch.setenv("EXAMPLE_KEY", "none")
        yield


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_:FutureWarning",  # GRPO and DPO of TRL
    "ignore:Could not find a config file:UserWarning:peft",  # it asks the Hub, not its cache
)
@pytest.mark.parametrize("block", [*parameters()])
def test_a_block_is_executed(block: Block, place: Path, request: pytest.FixtureRequest) -> None:
    page = page_of(block)
    for name, text in files_of(page).items():
        Path(name).write_text(replaced(text))
    for words in executed(block._replace(text=replaced(block.text))):
        with ExitStack() as around:
            patch = around.enter_context(pytest.MonkeyPatch.context())
            command = {*words[:3]}
            if "push" in command or "--push_to_hub" in words:
                be_the_hub(request.getfixturevalue("hub"), patch, place / "hub")
                patch.setenv("HF_TOKEN", "me_write")
            elif "view" in command:
                around.enter_context(ctrl_c_when_ready("toa_trl.cli.view", fetch))
            elif "serve" in command:
                around.enter_context(ctrl_c_when_ready("toa_trl.cli.serve", asking(page)))
            elif "run" in command:
                request.getfixturevalue("stub")
                patch.setattr("toa_trl.pipeline.memory.num_accelerators", lambda: 4)
            elif "merge-adapter" in command:
                request.getfixturevalue("adapter")
            elif command & TRAINING:
                around.enter_context(short_trainings())
            elif "endpoints.yaml" in Path("run.yaml").read_text() and "synthesize" in command:
                request.getfixturevalue("servers")
            execute(words)
        for option, value in pairwise(words):
            if option in ("--output", "--output_dir") and words[0] == "toa-trl":
                assert (Path(value) / "README.md").is_file(), value
            if option == "--results":
                assert Path(value).is_file(), value


OF_A_RUN = {"audit", "convert", "merge", "recover", "show", "status"}
NAMES = {"RUN": "runs/my-run", "ID": "apples-3", "eval.jsonl": "heldout.jsonl"}
"""What a reader puts in the place of names in sentences."""


def read_run_in_sentences() -> set[str]:
    """Return the commands in sentences that read a run."""
    lines = [line.split() for page in PAGES for line in sentences(page)]
    return {
        " ".join(NAMES.get(word, word) for word in words)
        for words in lines
        if words[1] in OF_A_RUN and len(words) > 2
    }


@pytest.mark.parametrize("line", sorted(read_run_in_sentences()))
def test_a_command_in_a_sentence_that_reads_a_run_is_executed(line: str, place: Path) -> None:
    if line.startswith("toa-trl merge"):
        prompts = Path("prompts.jsonl").read_text().splitlines(keepends=True)
        for number in (1, 2):
            Path(f"{number}.jsonl").write_text(prompts[number])
            options = ["--prompts", f"{number}.jsonl", "--output_dir", f"runs/part-{number}"]
            execute(["toa-trl", "synthesize", "--config", "run.yaml", *options])
    execute(line.split())


def asking(page: Path) -> Callable[[str], None]:
    """Return a function that executes the examples of a page against the server at an address."""

    def ask(url: str) -> None:
        for example in of("python", [page]):
            exec(compile(example.text.replace("http://127.0.0.1:8000/v1", url), str(page), "exec"))

    return ask


@pytest.mark.heavy
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize(
    "words",
    [
        w
        for b in of("bash")
        for w in shell_commands(b.text)
        if w[1].startswith("scripts/") and w[0] == "python"
    ],
    ids=" ".join,
)
def test_a_script_that_takes_hours_takes_its_options(words: list[str], place: Path) -> None:
    run_until_parsed(words[1:])
