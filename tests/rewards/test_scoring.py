"""Reward models with heads and code of their own.

Small random models with the same architecture, interface and code replace the weights of ArmoRM,
InternLM2-reward and Qwen2.5-Math-RM, which cannot be loaded here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import PAD
from tests.helpers import wait
from tests.rewards.tiny import BOXED, build, load
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards.classifier import ClassifierReward
from toa_trl.types import Message, Prompt, as_dicts

make = partial(load, "classifier")
PROMPT = Prompt("p", (Message("user", "What is 1 + 1?"),))
TEXTS = [
    "",
    "x",
    f"the token {PAD} in the middle, and more",
    "4",
    "Zoë 🧮",
    "1 + 1 = 2, as everybody can see at once",
]
OWN = ["armo", "internlm2", "qwen"]


@pytest.fixture
def copy_of(tiny: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy with a name of its own, by which transformers distinguishes models' code."""
    return lambda kind: Path(shutil.copytree(tiny(kind)[0], tmp_path / f"{kind}_{tmp_path.name}"))


def by_the_card(kind: str, folder: Path, model: Any, text: str, prompt: Prompt = PROMPT) -> float:
    """Return the scores of the model card's code: one text at a time, from the unsaved model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [*as_dicts(prompt.messages), {"role": "assistant", "content": text}]
    if kind == "internlm2":
        return float(model.get_score(tokenizer, chat))
    if kind == "qwen" and chat[0]["role"] != "system":
        chat.insert(0, BOXED)
    ids = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")["input_ids"]
    model.config.pad_token_id = None  # a single text: its last token is the last
    with torch.inference_mode():
        output = model(input_ids=ids, use_cache=False)
    return float(output.score if kind == "armo" else output[0])


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("system", [False, True])
def test_the_score_is_that_of_the_model_card(
    tiny: Callable[[str], tuple[Path, Any]], kind: str, system: bool
) -> None:
    folder, model = tiny(kind)
    prompt = Prompt("p", (Message("system", "Be brief."), *PROMPT.messages)) if system else PROMPT
    expected = [by_the_card(kind, folder, model, text, prompt) for text in TEXTS]
    assert len({round(value, 3) for value in expected}) == len(TEXTS)
    scores = wait(make(folder).score_details(prompt, TEXTS))
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert all(score.flops for score in scores)


@pytest.mark.parametrize("kind", OWN)
def test_code_of_its_own_is_neither_run_nor_passed_over_without_the_key(
    copy_of: Callable[[str], Path], kind: str
) -> None:
    folder = copy_of(kind)
    witness = folder / "was_run"
    for file in folder.glob("*.py"):
        file.write_text(
            f"open({str(witness)!r}, 'w').close()\n{file.read_text(encoding='utf-8')}",
            encoding="utf-8",
        )
    with pytest.raises(
        ConfigError, match=r"brings its own code \(modeling_\w+\.\w+\).*trust_remote_code: true"
    ):
        make(folder, trust_remote_code=False)
    assert not witness.exists()
    make(folder)
    assert witness.exists()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("from transformers import NoSuchName", "does not run with transformers 5.*NoSuchName"),
        ("import no_such_package", "does not run with transformers 5.*no_such_package"),
    ],
)
def test_code_that_does_not_run_here_is_named(
    copy_of: Callable[[str], Path], line: str, named: str
) -> None:
    folder = copy_of("qwen")
    file = folder / "modeling_qwen2_rm.py"
    file.write_text(f"{line}\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    with pytest.raises(ConfigError, match=named):
        make(folder)


def test_a_model_that_cannot_score_says_so_at_the_start(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("armo")
    template = (
        folder / "chat_template.jinja"
    )  # without the header that the gating network looks for
    template.write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"cannot score a text here.*Token pattern not found"):
        make(folder)


def test_what_the_code_of_a_model_raises_is_a_failure_of_that_text(
    tiny: Callable[[str], tuple[Path, Any]],
) -> None:
    model = make(tiny("armo")[0])
    assert isinstance(model, ClassifierReward)
    header = model._tokenizer.convert_tokens_to_ids("<|assistant|>")
    whole = model._ids
    without = lambda *given: [token for token in whole(*given) if token != header]  # noqa: E731
    model._ids = without  # type: ignore[method-assign]
    with pytest.raises(RewardError, match="Token pattern not found"):
        wait(model.score(PROMPT, ["x"]))


def test_step_scores_are_no_number_per_text(tiny: Callable[[str], tuple[Path, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"one number per text.*kind: process"):
        make(tiny("qwen_prm")[0])


def test_the_first_padding_token_ends_a_text_for_some_heads(
    tiny: Callable[[str], tuple[Path, Any]],
) -> None:
    """The tokenizer's own padding token would end the third text in its middle."""
    folder, _ = tiny("qwen")
    model = make(folder)
    assert isinstance(model, ClassifierReward)
    ids = [model._ids(PROMPT, text) for text in TEXTS]
    own = AutoTokenizer.from_pretrained(folder).pad_token_id
    assert own in ids[2][:-1]
    model._model.config.pad_token_id = own
    with torch.inference_mode():
        cut = float(model._model(input_ids=torch.tensor([ids[2]]))[0])
    assert abs(cut - model._run(ids)[2]) > 1e-3


def test_a_template_without_a_place_for_a_system_message(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("qwen")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    refuses = (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(refuses + template, encoding="utf-8")
    model = make(folder)
    asked = Prompt("p", (Message("system", "Be brief."), *PROMPT.messages))
    folded = Prompt("p", (Message("user", "Be brief.\n\nWhat is 1 + 1?"),))
    no_system = make(folder)
    no_system._template._system = None  # type: ignore[attr-defined]
    assert wait(model.score(asked, ["x"])) == wait(no_system.score(folded, ["x"]))
    with pytest.raises(RewardError, match="refuses the conversation: System role"):
        wait(
            model.score(
                Prompt("p", (Message("system", "Be brief."), Message("system", "Do."))), ["x"]
            )
        )


@pytest.mark.heavy
def test_a_revision_pins_code_and_weights(tmp_path: Path) -> None:
    """With two commits in the Hub's cache and no network, `revision` selects one."""
    hub = tmp_path / "hub" / "models--someone--qwen"
    commits = {name: name * 40 for name in "ab"}
    for seed, commit in enumerate(commits.values()):
        folder = tmp_path / commit
        build("qwen", folder, seed=seed)
        shutil.move(folder, hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commits["b"])
    code = """if True:
        import asyncio, json, sys
        from toa_trl.rewards import make_reward
        from toa_trl.types import Prompt
        entry = {
            "kind": "classifier",
            "model": "someone/qwen",
            "device": "cpu",
            "trust_remote_code": True,
        }
        def score(**more):
            model = make_reward({**entry, **more})
            return float(asyncio.run(model.score(Prompt("p", "What is 1 + 1?"), ["x"]))[0])
        print(json.dumps([score(revision=r) for r in sys.argv[1:]] + [score()]))
    """
    environment = {**os.environ, "HF_HUB_CACHE": str(hub.parent), "HF_HUB_OFFLINE": "1"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    done = subprocess.run(
        [sys.executable, "-c", code, *commits.values()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    first, second, main = json.loads(done.stdout.splitlines()[-1])
    expected = [
        wait(make(hub / "snapshots" / commit).score(PROMPT, ["x"]))[0]
        for commit in commits.values()
    ]
    assert [first, second] == pytest.approx(expected, abs=1e-5)
    assert main == second != first
