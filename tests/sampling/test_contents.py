"""A run is known by what its configuration names: source code, weights, and the order of agents."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import EchoAgent, TextReward
from toa_trl.errors import ConfigError
from toa_trl.rewards.combine import (
    HeldOutReward,
    MinimumPart,
    MinimumReward,
    WeightedPart,
    WeightedSumReward,
)
from toa_trl.rewards.function import FunctionReward
from toa_trl.rewards.judge import JudgeReward
from toa_trl.sampler import TOASampler
from toa_trl.sampling import contents
from toa_trl.sampling.contents import digest_of_source, digests_of_files
from toa_trl.sampling.identity import check_same_identity, differences, fingerprint
from toa_trl.types import Message, Prompt

MODULES = {
    "own_scale.py": "FACTOR = 2.0\nUNUSED = 1\n",
    "own_parts_here.py": '''
"""Parts of a user."""
import functools

from own_scale import FACTOR
from toa_trl.agents import Agent
from toa_trl.rewards import RewardModel
from toa_trl.search import Search
from toa_trl.tasks.alignment import Alignment
from toa_trl.types import Action, Completion

WEIGHTS = {"length": 1.0}

def helper(text):
    return len(text) * FACTOR

def score(completions, **columns):
    # the length
    return [helper(c[0]["content"]) * WEIGHTS["length"] for c in completions]

def unused(text):
    return 0

class Base(Agent):
    def answer(self, seed):
        return f"answer {seed}"

class MyAgent(Base):
    def __init__(self, name):
        self.name = name

    async def generate(self, messages, *, sampling, seed):
        return Completion(self.answer(seed))

class MyReward(RewardModel):
    async def score(self, prompt, responses):
        return [helper(text) for text in responses]

class MySearch(Search):
    def choose(self, index):
        return Action(self.agents[0])

class MyTask(Alignment):
    def parse(self, prompt, text):
        return text.strip()
''',
}
MODEL = {
    "model.safetensors": "weights",
    "config.json": "{}",
    "generation_config.json": '{"eos_token_id": 1}',
    "README.md": "card",
    "trainer_state.json": "{}",
}
SCRIPTED = [{"name": "a", "engine": "scripted"}, {"name": "b", "engine": "scripted"}]
FUNCTION = {"kind": "function", "function": "own_parts_here:score"}


def forget() -> None:
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the user's modules and a local model."""
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "model").mkdir()
    for name, text in MODEL.items():
        (tmp_path / "model" / name).write_text(text)
    (tmp_path / "rubric.md").write_text("Be strict.")
    (tmp_path / "recorded.jsonl").write_text('{"prompt": "One?", "response": "1"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # no bytecode: two versions written within a second have the same time
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield tmp_path
    forget()


def change(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


def sampler(**changes: Any) -> TOASampler:
    forget()
    importlib.invalidate_caches()
    given = {"agents": SCRIPTED, "reward_model": TextReward(), "budget": 2, "progress": False}
    return TOASampler(**{**given, **changes})


def run(run_dir: str | Path = "run", **changes: Any) -> None:
    sampler(**changes).sample(["One?"], output_dir=run_dir)._journal.close()


REWARD: dict[str, Any] = {"reward_model": FUNCTION}
WEIGHTED = {"kind": "weighted_sum", "rewards": [{"reward": {"kind": "own_parts_here:MyReward"}}]}
SERVED = {
    "name": "a",
    "engine": "openai",
    "model": "model",
    "base_url": "http://127.0.0.1:9",
}
JUDGE = {
    "kind": "judge",
    "agent": {"name": "judge", "engine": "scripted", "responses": ["RATING: [[7]]"]},
    "rubric": "rubric.md",
}
PARTS = "own_parts_here.py"


@pytest.mark.parametrize(
    ("settings", "changed", "named"),
    [
        (REWARD, (PARTS, "len(text) *", "len(text) +"), r"reward\.function \(own_parts_here:score"),
        (REWARD, (PARTS, '"length": 1.0', '"length": 2.0'), r"reward\.function.*source code"),
        (REWARD, ("own_scale.py", "FACTOR = 2.0", "FACTOR = 3.0"), r"reward\.function.*source"),
        ({"reward_model": WEIGHTED}, (PARTS, "helper(text) for", "-helper(text) for"), "MyReward"),
        (
            {"reward_model": JUDGE},
            ("rubric.md", "strict", "kind"),
            r"reward_words\.rubric: \"Be st",
        ),
        (
            {"agents": [{"name": "a", "engine": "own_parts_here:MyAgent"}]},
            (PARTS, "answer {seed}", "reply {seed}"),  # in the base class
            r"agents\.a\.engine \(own_parts_here:MyAgent\)",
        ),
        (
            {"search": "own_parts_here:MySearch"},
            (PARTS, "self.agents[0]", "self.agents[-1]"),
            r"search \(own_parts_here:MySearch\)",
        ),
        ({"task": "own_parts_here:MyTask"}, (PARTS, "text.strip()", "text.upper()"), "task"),
        (
            {"task": {"name": "own_parts_here:MyTask"}},
            (PARTS, "text.strip()", "text.upper()"),
            "task",
        ),
        (
            {
                "agents": [{"name": "a", "engine": "recorded", "path": "recorded.jsonl"}],
                "search": "best_of_n",
            },
            ("recorded.jsonl", '"1"', '"2"'),
            r"agents\.a\.path \(recorded\.jsonl\): changed files: recorded\.jsonl",
        ),
    ],
)
def test_a_changed_content_is_refused_and_named(
    folder: Path, settings: dict[str, Any], changed: tuple[str, str, str], named: str
) -> None:
    run(**settings)
    run(**settings)  # nothing has changed
    change(*changed)
    with pytest.raises(ConfigError, match=named):
        run(**settings)


@pytest.mark.parametrize(
    "changed",
    [
        (PARTS, "    # the length\n", ""),
        (PARTS, "return 0", "return 1"),  # a function that the reward does not use
        (PARTS, "helper(c[0]", "helper( c[0]"),
        ("own_scale.py", "UNUSED = 1", "UNUSED = 2"),
    ],
)
def test_what_does_not_decide_the_reward_may_change(
    folder: Path, changed: tuple[str, str, str]
) -> None:
    run(**REWARD)
    change(*changed)
    run(**REWARD)


@pytest.mark.parametrize(
    ("file", "refused"),
    [
        ("model.safetensors", True),
        ("generation_config.json", True),
        ("config.json", True),
        ("README.md", False),
        ("trainer_state.json", False),
    ],
)
def test_replaced_files_of_a_local_model_are_refused(
    folder: Path, file: str, refused: bool
) -> None:
    def identity() -> dict[str, Any]:
        return sampler(agents=[SERVED]).identity

    before = identity()
    shutil.copytree("model", "copy")
    shutil.rmtree("model")
    shutil.copytree("copy", "model", copy_function=shutil.copyfile)  # other times, same content
    assert identity() == before
    Path("model", file).write_text("another")
    if not refused:
        assert identity() == before
        return
    with pytest.raises(ConfigError, match=rf"agents\.a\.model \(model\): changed files: {file}"):
        check_same_identity("run", before, identity())
    assert fingerprint(before) != fingerprint(identity())


def test_the_base_of_an_adapter_counts_too(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for path in (base, adapter):
        path.mkdir()
    (base / "model.safetensors").write_text("one")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = digests_of_files(adapter)
    (base / "model.safetensors").write_text("two")
    assert digests_of_files(adapter) != before


def test_a_large_file_is_known_by_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "WHOLE_BYTES", 1 << 20)
    file = tmp_path / "model.safetensors"
    digests = set()
    for content in (
        b"a" * (40 << 20),
        b"a" * (40 << 20) + b"a",
        b"b" * (40 << 20),
        b"a" * (40 << 20) + b"c",
    ):
        file.write_bytes(content)
        digests.add(digests_of_files(file)[file.name])
    assert len(digests) == 4


def test_files_have_the_digests_that_journals_of_earlier_runs_hold(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert digests_of_files(file) == {file.name: "fc5de2059d9a93c7"}
    with file.open("wb") as weights:  # just too large to be read whole
        for place in (0, 1 << 20, 32 << 20, 64 << 20):
            weights.seek(place)
            weights.write(b"weights")
    assert digests_of_files(file) == {file.name: "81b1888406af40a5"}


def test_only_paths_of_models_are_read(folder: Path) -> None:
    agent = {"name": "model", "engine": "openai", "model": "meta-llama/Llama-3.1-8B-Instruct"}
    assert contents.contents_of({"agents": [agent]}) == {}
    assert list(contents.contents_of({"agents": [{"name": "a", "model": "model"}]})) == [
        "agents[0].model (model)"
    ]


def test_of_an_import_only_the_names_that_are_used_count(folder: Path) -> None:
    Path("own_of_two.py").write_text(
        "from own_scale import FACTOR, UNUSED\n\ndef score(completions, **columns):\n"
        "    return [FACTOR for _ in completions]\n"
    )
    digests = []
    for old, new in (("", ""), ("UNUSED = 1", "UNUSED = 2"), ("FACTOR = 2.0", "FACTOR = 3.0")):
        change("own_scale.py", old, new)
        sys.modules.pop("own_of_two", None)
        digests.append(digest_of_source(importlib.import_module("own_of_two").score))
    sys.modules.pop("own_of_two")
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("importing", ["own_package", "own_package.rewards"])
@pytest.mark.parametrize(
    "statement", ["from .scale import FACTOR", "from . import scale; FACTOR = scale.FACTOR"]
)
def test_what_a_package_imports_from_itself_counts(
    folder: Path, importing: str, statement: str
) -> None:
    package = folder / "own_package"
    package.mkdir()
    sources = {"__init__": "", "rewards": "", "scale": "FACTOR = 2.0\n"}
    sources[importing.partition(".")[2] or "__init__"] = (
        f"{statement}\n\ndef score(completions, **columns):\n"
        "    return [FACTOR for _ in completions]\n"
    )
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    score = importlib.import_module(importing).score
    try:
        before = digest_of_source(score)
        (package / "scale.py").write_text("FACTOR = 3.0\n")
        assert digest_of_source(score) != before
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
            del sys.modules[name]


def scored_here(completions: Any, **columns: Any) -> list[float]:
    return [float(len(completions))]


def test_functions_and_objects_given_in_python_are_known_by_their_source(folder: Path) -> None:
    parts = importlib.import_module("own_parts_here")

    given: list[Callable[[], dict[str, Any]]] = [
        lambda: {"reward_model": parts.score},
        lambda: {"reward_model": functools.partial(parts.score)},
        lambda: {"reward_model": FunctionReward(parts.score)},
        lambda: {"reward_model": parts.MyReward()},
        lambda: {"agents": [parts.MyAgent("a")]},
        lambda: {"search": parts.MySearch},
        lambda: {"task": parts.MyTask()},
    ]
    before = [TOASampler(**with_defaults(make())).identity["contents"] for make in given]
    for old, new in [
        ("len(text) *", "len(text) +"),
        ("answer {seed}", "reply {seed}"),
        ("self.agents[0]", "self.agents[-1]"),
        ("text.strip()", "text.upper()"),
    ]:
        change(PARTS, old, new)
    forget()
    parts = importlib.import_module("own_parts_here")
    for make, then in zip(given, before, strict=True):
        now = TOASampler(**with_defaults(make())).identity["contents"]
        changed = [place for place in now if now[place] != then[place]]
        assert now.keys() == then.keys()
        assert len(changed) == 1, now


COMBINED: list[tuple[Callable[[Any], Any], tuple[str, str], str]] = [
    (
        lambda parts: WeightedSumReward(
            [WeightedPart(reward=TextReward()), WeightedPart(reward=parts.MyReward())]
        ),
        ("helper(text) for", "-helper(text) for"),
        r"reward\.rewards\[1\]\.reward \(MyReward\): the source code",
    ),
    (
        lambda parts: MinimumReward([MinimumPart(reward=parts.score)]),
        ("len(text) *", "len(text) +"),
        r"reward\.rewards\[0\]\.reward \(score\): the source code",
    ),
    (
        lambda parts: HeldOutReward({"kind": "length"}, FunctionReward(parts.score)),
        ("len(text) *", "len(text) +"),
        r"reward\.second\.reward \(score\): the source code",
    ),
    (
        lambda parts: HeldOutReward(
            FUNCTION, MinimumReward([MinimumPart(reward=parts.MyReward())])
        ),
        ("helper(text) for", "-helper(text) for"),
        r"reward\.second\.reward\.rewards\[0\]\.reward \(MyReward\): the source code",
    ),
    (
        lambda parts: WeightedSumReward(
            [WeightedPart(reward={"kind": "length"}, weight=parts.WEIGHTS["length"])]
        ),
        ('"length": 1.0', '"length": 2.0'),
        r"reward\.rewards\[0\]: the settings have changed",
    ),
    (
        lambda parts: {"kind": "minimum", "rewards": [{"reward": parts.MyReward()}]},
        ("helper(text) for", "-helper(text) for"),
        r"reward\.rewards\[0\]\.reward \(MyReward\): the source code",
    ),
    (
        lambda parts: JudgeReward(agent=parts.MyAgent("j")),
        ("answer {seed}", "reply {seed}"),
        r"reward\.agent \(MyAgent\): the source code",
    ),
]


@pytest.mark.parametrize(("make", "changed", "named"), COMBINED)
def test_a_changed_part_of_a_reward_that_was_built_in_python_is_refused(
    folder: Path, make: Callable[[Any], Any], changed: tuple[str, str], named: str
) -> None:
    def begin() -> None:
        forget()
        importlib.invalidate_caches()
        reward = make(importlib.import_module("own_parts_here"))
        given = with_defaults({"reward_model": reward, "progress": False})
        sampler = TOASampler(**given)
        sampler.begin([Prompt("p", (Message("user", "One?"),))], "run").close()

    begin()
    begin()  # nothing has changed
    change(PARTS, *changed)
    with pytest.raises(ConfigError, match=named):
        begin()


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    return {"agents": SCRIPTED, "reward_model": TextReward(), "budget": 2, **given}


def test_parts_of_this_package_and_things_without_source_have_no_digest() -> None:
    assert digest_of_source(FunctionReward) is None
    assert digest_of_source(len) is None
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def f(): return 1", namespace)
    assert digest_of_source(namespace["f"]) is None
    assert digest_of_source(scored_here) is not None
    assert digest_of_source(lambda: 1) is not None


def test_a_place_may_change_from_files_to_source() -> None:
    old, new = {"contents": {"p (x)": {"config.json": "1"}}}, {"contents": {"p (x)": "2"}}
    for then, now in ((old, new), (new, old)):
        assert differences(then, now) == ["p (x): the source code has changed"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (0.1, None, "k: 0.1 -> null"),
        ("a" * 90, "b", f'k: "{"a" * 90}" -> "b"'),
        ("a" * 999 + "x", "a" * 999 + "y", f'k: ...{"a" * 30}x" -> ...{"a" * 30}y"'),
        ("x" + "a" * 999, "y" + "a" * 999, f'k: "x{"a" * 98}... -> "y{"a" * 98}...'),
        ({"t": "a" * 999}, {}, f'k.t: "{"a" * 99}... -> null'),
    ],
)
def test_a_difference_shows_of_long_texts_where_they_differ(old: Any, new: Any, said: str) -> None:
    assert differences({"k": old}, {"k": new}) == [said]


def test_the_order_of_agents_counts(tmp_path: Path) -> None:
    sorted_order, other = sampler().identity, sampler(agents=SCRIPTED[::-1]).identity
    assert fingerprint(sorted_order) != fingerprint(other)
    run(tmp_path)
    with pytest.raises(ConfigError, match="order of agents: a, b -> b, a"):
        run(tmp_path, agents=SCRIPTED[::-1])


def test_a_configuration_of_version_0_1_0_keeps_its_fingerprint() -> None:
    # digits that version 0.1.0 gave
    assert fingerprint({"agents": {"a": "x", "b": "y"}, "seed": 1}) == "87f3dcfa7819cec0"
    # a key would change them; what a run does not have has none
    assert (
        not {"reward_words", "contents", "allocation"}
        & sampler(reward_model={"kind": "length"}).identity.keys()
    )


def test_a_journal_without_contents_is_resumed_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(**REWARD)
    with closing(sqlite3.connect("run/journal.sqlite")) as db:
        (text,) = db.execute("SELECT value FROM run WHERE key = 'identity'").fetchone()
        identity = json.loads(text)
        assert identity.pop("contents")
        db.execute("UPDATE run SET value = ? WHERE key = 'identity'", (json.dumps(identity),))
        db.commit()
    change(PARTS, "len(text) *", "len(text) +")
    with caplog.at_level(logging.WARNING):
        run(**REWARD)
    assert "reward.function (own_parts_here:score) is unchanged is not known" in caplog.text


@pytest.mark.parametrize(
    "change_of_speed",
    [
        {"prompts_in_flight": 1},
        {"patience_s": 3.0},
        {"agents": [{**agent, "latency_s": 0.01} for agent in SCRIPTED]},
        {"agents": [{**agent, "price": {"prompt": 1.0}} for agent in SCRIPTED]},
        {"limits": {"max_tokens": 10_000}},
        {"sft": {"top_k": 2}},
    ],
)
def test_operational_keys_may_change(tmp_path: Path, change_of_speed: dict[str, Any]) -> None:
    run(tmp_path)
    run(tmp_path, **change_of_speed)


def test_an_agent_object_of_another_class_is_refused(tmp_path: Path) -> None:
    class Other(EchoAgent):
        pass

    run(tmp_path, agents=[EchoAgent("a")])
    with pytest.raises(ConfigError, match=r"agents\.a: "):
        run(tmp_path, agents=[Other("a")])
