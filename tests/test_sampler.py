"""The public face."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from tests.helpers import EchoAgent, TextReward
from toa_trl import AgentError, ConfigError, Prompt, Rollouts, Sampling, ToaError, TOASampler
from toa_trl.rewards.function import length_reward
from toa_trl.search import SEARCHES
from toa_trl.types import Completion, Message

AGENTS = [{"name": "a", "engine": "scripted"}, {"name": "b", "engine": "scripted"}]
REWARD = {"kind": "function", "function": "toa_trl.rewards.function:length_reward"}
PROMPTS = ["One?", "Two?", "Three?"]


class Stop(BaseException):
    """The process dies."""


def sampler(**changes: Any) -> TOASampler:
    settings = {
        "agents": AGENTS,
        "reward_model": TextReward(),
        "budget": 6,
        "progress": False,
        **changes,
    }
    return TOASampler(**settings)


def rows(rollouts: Rollouts) -> list[dict[str, Any]]:
    return rollouts.to_dataset().to_list()


@pytest.mark.parametrize("search", SEARCHES)
def test_samples_with_every_search(search: str) -> None:
    rollouts = sampler(search=search).sample(PROMPTS)
    assert len(rollouts) == 3
    assert [len(r.scored) for r in rollouts] == [6, 6, 6]
    assert rollouts.unfinished == 0
    assert rollouts.given_up == ()


def test_prompts_in_every_form() -> None:
    given = [
        Prompt("x", "One?"),  # type: ignore[arg-type]
        "Two?",
        {"prompt": "Three?", "id": 7, "answer": "3"},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Four?"}]},
    ]
    prompts = [r.prompt for r in sampler(budget=2).sample(given)]
    assert [p.id for p in prompts] == ["x", "1", "7", "3"]
    assert [p.messages[-1].content for p in prompts] == ["One?", "Two?", "Three?", "Four?"]
    assert dict(prompts[2].metadata) == {"answer": "3"}
    assert [
        r.prompt.id
        for r in sampler(budget=2).sample(Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]))
    ] == [
        "0",
        "1",
    ]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [3],
        [None],
        [{"text": "x"}],
        ["One?", {"prompt": "Two?", "id": "0"}],
        [""],
        [{"prompt": []}],
    ],
)
def test_what_is_no_prompt_is_refused(given: list[Any]) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        sampler().sample(given)


def test_the_same_settings_give_the_same_rollouts() -> None:
    assert rows(sampler(seed=3).sample(PROMPTS)) == rows(
        sampler(seed=3, prompts_in_flight=1).sample(PROMPTS)
    )
    assert rows(sampler(seed=3).sample(PROMPTS)) != rows(sampler(seed=4).sample(PROMPTS))


def test_goes_on_where_the_journal_ends(tmp_path: Path) -> None:
    class Echo(EchoAgent):
        identity = "echo"  # objects are told apart by their class, unless they have an identity

    class Dies(Echo):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if len(self.asked) == 4:
                raise Stop
            return await super().generate(messages, sampling=sampling, seed=seed)

    whole = rows(sampler(agents=[EchoAgent("a"), EchoAgent("b")]).sample(PROMPTS))
    dying, again = [Dies("a"), Echo("b")], [Echo("a"), Echo("b")]
    dies = sampler(agents=dying)
    with pytest.raises((Stop, BaseExceptionGroup)):
        dies.sample(PROMPTS, output_dir=tmp_path / "run")
    before = Rollouts.load(tmp_path / "run")
    assert 0 < sum(len(r.plays) for r in before) < 18
    assert before.unfinished == 3
    rollouts = sampler(agents=again).sample(PROMPTS, output_dir=tmp_path / "run")
    assert rows(rollouts) == whole
    assert sum(len(agent.asked) for agent in again) < 18


def test_a_finished_run_is_read_and_not_sampled_again(tmp_path: Path) -> None:
    first = sampler().sample(PROMPTS, output_dir=tmp_path)
    before = rows(first)
    first._journal.close()
    assert rows(sampler(agents=AGENTS).sample(PROMPTS, output_dir=tmp_path)) == before
    assert rows(Rollouts.load(tmp_path)) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budget": 7}, "budget: 6 -> 7"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"search": "parallel"}, 'search: "toa" -> "parallel"'),
        ({"search_params": {"tau": 1.0}}, r"search_params.tau: null -> 1.0"),
        ({"sampling": {"temperature": 0.1}}, "sampling.temperature: 0.7 -> 0.1"),
        ({"plays_in_flight": 2}, "plays_in_flight: 1 -> 2"),
        ({"agents": [*AGENTS, {"name": "c", "engine": "scripted"}]}, r"agents\.c"),
        ({"agents": [{**AGENTS[0], "responses": ["x"]}, AGENTS[1]]}, r"agents\.a\.responses"),
        ({"reward_model": REWARD}, "reward"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, changes: Any, named: str
) -> None:
    first = sampler().sample(PROMPTS, output_dir=tmp_path)
    before = rows(first)
    first._journal.close()
    with pytest.raises(ConfigError, match=named):
        sampler(**changes).sample(PROMPTS, output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"prompts.number: 3 -> 2"):
        sampler().sample(PROMPTS[:2], output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"prompts.digest"):
        sampler().sample([*PROMPTS[:2], "Four?"], output_dir=tmp_path)
    assert rows(Rollouts.load(tmp_path)) == before


def test_where_and_how_fast_may_change_between_sessions(tmp_path: Path) -> None:
    sampler().sample(PROMPTS, output_dir=tmp_path)._journal.close()
    slower = [{**agent, "latency_s": 0.0} for agent in AGENTS]
    assert (
        len(sampler(agents=slower, prompts_in_flight=2).sample(PROMPTS, output_dir=tmp_path)) == 3
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"search": "mcts"}, "mcts"),
        ({"search_params": {"widht": 3}}, "widht"),
        ({"budget": 0}, "budget"),
        ({"agents": []}, "agents"),
        ({"agents": [AGENTS[0], AGENTS[0]]}, "'a'"),
        ({"agents": [{"engine": "scripted"}]}, r"agents\[0\]: the key 'name' is missing"),
        ({"agents": ["gpt"]}, "needs a name"),
        ({"agents": [{"name": "a", "engine": "skripted"}]}, "skripted"),
        ({"reward_model": {"kind": "jury"}}, "jury"),
        ({"reward_model": 3}, "a reward model, a TRL reward function or an entry is needed"),
        ({"sampling": {"temp": 1}}, "temp"),
        ({"plays_in_flight": 0}, "plays_in_flight"),
        ({"prompts_in_flight": "many"}, "prompts_in_flight"),
        ({"task": "poetry"}, "poetry"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sampled(changes: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sampler(**changes)


def test_a_reward_may_be_a_function_an_object_or_an_entry() -> None:
    def length(completions: Any, **columns: Any) -> list[float]:
        return [float(len(c[0]["content"])) for c in completions]

    for reward in (length, TextReward(), REWARD):
        assert sampler(reward_model=reward).sample(PROMPTS).unfinished == 0


def test_parts_that_the_sampler_built_are_closed_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closing(EchoAgent):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    for fails in (0.0, 1.0):
        given, built = Closing("a", fails), Closing("b", fails)
        monkeypatch.setattr("toa_trl.sampling.parts.make_agent", lambda entry, built=built: built)
        with pytest.raises(ToaError) if fails else nullcontext():
            sampler(agents=[given, {"name": "b", "engine": "scripted"}]).sample(PROMPTS)
        assert (given.closed, built.closed) == (0, 1)


def test_when_every_prompt_is_given_up_the_run_says_why() -> None:
    with pytest.raises(ToaError, match=r"every agent failed on every prompt.*b failed"):
        sampler(agents=[EchoAgent("b", 1.0)]).sample(PROMPTS)


def test_prompts_that_were_given_up_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Hates(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if "Two?" in messages[-1].content:
                raise RuntimeError("I hate twos")
            return await super().generate(messages, sampling=sampling, seed=seed)

    rollouts = sampler(agents=[Hates("a")]).sample(PROMPTS)
    assert rollouts.given_up == ("1",)
    assert rollouts.unfinished == 1
    assert "3 plays failed: RuntimeError: I hate twos" in caplog.text
    assert len(rollouts.to_sft()) == 2


def test_works_inside_a_running_event_loop() -> None:
    async def notebook() -> int:
        return len(sampler().sample(PROMPTS))

    assert asyncio.run(notebook()) == 3


def test_the_data_sets_are_in_trls_format() -> None:
    rollouts = sampler(budget=8).sample(PROMPTS)
    sft = rollouts.to_sft(top_k=2)
    assert len(sft) == 6
    assert sft[0]["prompt"] == [{"role": "user", "content": "One?"}]
    assert sft[0]["completion"][0]["role"] == "assistant"
    pairs = rollouts.to_preference(4)
    assert len(pairs) == 3
    assert all(row["rejected_rank"] == 4 and row["chosen_rank"] == 1 for row in pairs)
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in pairs)
    with pytest.raises(ConfigError, match="fewer than 30 scored responses"):
        rollouts.to_preference(30)
    assert {row["rejected_rank"] for row in rollouts.to_preference()} == {2}
    with pytest.raises(ConfigError, match="no prompt has a response at rank 9"):
        sampler(budget=8, preference={"rejected_rank": 9})
    with pytest.raises(TypeError, match="'topk'"):
        rollouts.to_sft(topk=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'polity'"):
        rollouts.to_preference(2, polity="worst")  # type: ignore[call-arg]


def test_saves_what_the_ordinary_tools_read(tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    rollouts = sampler(budget=8).sample(
        [{"prompt": p, "answer": p} for p in PROMPTS], output_dir=run
    )
    dropped = rollouts.save(run, sft={"top_k": 2}, preference={"rejected_rank": 0.5})
    assert {name: dict(reasons) for name, reasons in dropped.items()} == {"sft": {}, "dpo": {}}
    sft = load_dataset(str(run / "sft"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sft.to_list() == rollouts.to_sft(top_k=2).to_list()
    dpo = load_dataset(str(run / "dpo"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dpo.to_list() == rollouts.to_preference(0.5).to_list()
    plays = load_dataset(str(run / "rollouts"), split="train", cache_dir=str(tmp_path / "cache"))
    assert plays.to_list() == rows(rollouts)
    wanted = (
        "prompt_id play agent kind refs parent depth response reward finish_reason "
        "prompt_tokens completion_tokens flops seed"
    )
    assert set(wanted.split()) <= set(plays.column_names)
    whole = load_dataset(
        str(run), "dpo", split="train", cache_dir=str(tmp_path / "cache")
    )  # by the card
    assert whole.to_list() == dpo.to_list()
    card = (run / "README.md").read_text()
    assert "`toa`" in card
    assert "every prompt has a row" in card
    assert "top_k: 2" in card
    # again, over what is there
    rollouts.save(run)
    assert len(list((run / "sft").iterdir())) == 1
    assert not list(run.glob("*.new"))


def test_a_folder_without_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no journal"):
        Rollouts.load(tmp_path)


class Checked(EchoAgent):
    """An agent over a server, which may not be there."""

    there = True

    async def check(self) -> None:
        if not self.there:
            raise ConfigError("it cannot be reached")


def test_servers_are_asked_for_first_and_only_where_there_is_something_to_play(
    tmp_path: Path,
) -> None:
    agent = Checked("a")
    agent.there = False
    with pytest.raises(ConfigError, match="cannot be reached"):
        sampler(agents=[agent]).sample(PROMPTS, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    agent.there = True
    whole = rows(sampler(agents=[agent]).sample(PROMPTS, tmp_path / "run"))
    agent.there = False
    assert rows(sampler(agents=[agent]).sample(PROMPTS, tmp_path / "run")) == whole
    with pytest.raises(ConfigError, match="budget: 6 -> 7"):
        sampler(agents=[agent], budget=7).sample(PROMPTS, tmp_path / "run")


def test_prompts_that_only_failed_come_last(tmp_path: Path) -> None:
    class Picky(EchoAgent):
        fails_on = "One?"

        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if self.fails_on in messages[0].content:
                raise AgentError("too long")
            return await super().generate(messages, sampling=sampling, seed=seed)

    agent = Picky("a")
    first = sampler(agents=[agent], prompts_in_flight=1, limits={"max_tokens": 15}).sample(
        PROMPTS, tmp_path
    )
    assert first.given_up == ("0",)
    agent.asked.clear()
    agent.fails_on = "nothing"
    assert sampler(agents=[agent], prompts_in_flight=1).sample(PROMPTS, tmp_path).unfinished == 0
    assert "One?" in agent.asked[-1][0][0].content


def test_ctrl_c_in_a_notebook_ends_the_run(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from tests.helpers import TextReward
from toa_trl import TOASampler
async def cell():
    agents = [{"name": "a", "engine": "scripted", "latency_s": 0.2}]
    TOASampler(agents, TextReward(), budget=1000).sample(["One?"], sys.argv[1])
try:
    asyncio.get_event_loop_policy().new_event_loop().run_until_complete(cell())
except KeyboardInterrupt:
    print("ended in order")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not (tmp_path / "journal.sqlite-wal").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert "ended in order" in said, errors
    assert 0 < len(next(iter(Rollouts.load(tmp_path))).plays) < 1000


def test_a_reward_may_be_any_object_with_score_or_a_function() -> None:
    class Plain:
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            return [float(len(text)) for text in responses]

    assert sampler(reward_model=Plain()).identity["reward"].endswith("Plain")
    assert len(sampler(reward_model=Plain()).sample(PROMPTS).to_sft()) == len(PROMPTS)
    assert sampler(reward_model=length_reward).identity["reward"] == "length_reward"


def test_the_home_folder_in_entries_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "response": "one two"}\n')
    agent = {"name": "a", "engine": "recorded", "path": "~/a.jsonl"}
    sampler = TOASampler(
        [agent], {"kind": "length"}, "best_of_n", 1, {"agent": "a"}, progress=False
    )
    sampler.sample(["x"], output_dir="~/run")
    assert len(Rollouts.load("~/run").to_sft()) == 1
    assert (tmp_path / "run" / "journal.sqlite").is_file()


def test_an_empty_output_dir_is_no_name_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="output_dir: must not be empty"):
        sampler().sample(PROMPTS, output_dir="", export=False)
    assert list(tmp_path.iterdir()) == []
