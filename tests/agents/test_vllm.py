"""The engine vllm with a stand-in for the library.

Tests/integration/test_vllm.py has the real one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import pytest

from tests.helpers import wait
from tests.models.test_adapters import save_adapter
from toa_trl.agents import make_agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Completion, Message, Sampling

ASKED = (Message("user", "Hi"),)
CONTEXT = 40


class FakeEngine:
    """What the agent uses of vLLM's AsyncLLM; `reply` is what it answers or raises."""

    started: ClassVar[list[FakeEngine]] = []

    def __init__(self, args: dict[str, Any]) -> None:
        self.args, self.errored, self.closed = args, False, False
        self.gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.reply: Any = ("Hello", "stop")
        self.params: list[Any] = []
        self.model_config = SimpleNamespace(max_model_len=CONTEXT, hf_config=SimpleNamespace())
        FakeEngine.started.append(self)

    @classmethod
    def from_engine_args(cls, args: Any) -> FakeEngine:
        if "nonsense" in args.given:
            raise TypeError("unexpected keyword argument 'nonsense'")
        return cls(args.given)

    async def generate(
        self, asked: Any, params: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        self.params.append(params)
        self.options = options
        if isinstance(self.reply, Exception):
            raise self.reply
        text, reason = self.reply
        answer = SimpleNamespace(text=text, finish_reason=reason, token_ids=[1, 2, 3])
        yield SimpleNamespace(outputs=[answer])

    def shutdown(self, timeout: float) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.started.clear()
    monkeypatch.setattr("toa_trl.agents.vllm._ENGINES", WeakValueDictionary())
    names = [
        "vllm",
        "vllm.sampling_params",
        "vllm.lora",
        "vllm.lora.request",
        "vllm.v1",
        "vllm.v1.engine",
        "vllm.v1.engine.async_llm",
    ]
    modules = {name: ModuleType(name) for name in names}
    vars(modules["vllm"]).update(
        SamplingParams=lambda **given: SimpleNamespace(**given),
        AsyncEngineArgs=lambda **given: SimpleNamespace(given=given),
    )
    vars(modules["vllm.sampling_params"])["RequestOutputKind"] = SimpleNamespace(FINAL_ONLY=2)
    vars(modules["vllm.lora.request"])["LoRARequest"] = lambda *given: given
    vars(modules["vllm.v1.engine.async_llm"])["AsyncLLM"] = FakeEngine
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        "toa_trl.agents.vllm.known_flops", lambda config: lambda tokens: 10.0 * tokens
    )


def agent(causal: Path, **changes: Any) -> Any:
    return make_agent({"name": "v", "engine": "vllm", "model": str(causal), **changes})


def answer(causal: Path, **changes: Any) -> Completion:
    """Ask an agent once and close it."""
    asked = agent(causal, **changes)
    try:
        done: Completion = wait(asked.generate(ASKED, sampling=Sampling(max_tokens=8), seed=7))
        return done
    finally:
        wait(asked.aclose())


def test_a_completion_has_the_text_and_its_cost(causal: Path) -> None:
    done = answer(causal)
    assert (done.text, done.finish_reason, done.completion_tokens) == ("Hello", "stop", 3)
    assert done.flops == 10.0 * (done.prompt_tokens + 3)


def test_sampling_of_the_run_and_of_the_entry_reaches_the_engine(causal: Path) -> None:
    answer(causal, sampling={"temperature": 0.1, "stop": "###"})
    (params,) = FakeEngine.started[0].params
    assert (params.temperature, params.stop, params.seed, params.max_tokens) == (0.1, ["###"], 7, 8)


def test_max_tokens_stay_within_the_context(causal: Path) -> None:
    asked = agent(causal)
    done = wait(asked.generate(ASKED, sampling=Sampling(max_tokens=999), seed=0))
    assert FakeEngine.started[0].params[0].max_tokens == CONTEXT - done.prompt_tokens
    with pytest.raises(AgentError, match=f"the context holds {CONTEXT}"):
        wait(asked.generate((Message("user", "x" * CONTEXT),), sampling=Sampling(), seed=0))
    wait(asked.aclose())


def test_agents_of_one_model_share_an_engine_that_starts_again_after_it_was_closed(
    causal: Path,
) -> None:
    one, two = agent(causal), agent(causal)
    assert len(FakeEngine.started) == 1
    wait(two.aclose())
    assert FakeEngine.started[0].closed
    wait(one.generate(ASKED, sampling=Sampling(), seed=0))
    assert len(FakeEngine.started) == 2
    agent(causal, engine_args={"max_num_seqs": 4})
    assert len(FakeEngine.started) == 3
    wait(one.aclose())


@pytest.mark.parametrize("reason", ["abort", None, "content_filter"])
def test_a_request_that_ended_otherwise_is_a_failure(causal: Path, reason: str | None) -> None:
    asked = agent(causal)
    FakeEngine.started[0].reply = ("Hel", reason)
    with pytest.raises(AgentError, match="ended the request with"):
        wait(asked.generate(ASKED, sampling=Sampling(), seed=0))
    wait(asked.aclose())


def test_a_dead_engine_is_replaced_for_the_next_play(causal: Path) -> None:
    asked = agent(causal)
    FakeEngine.started[0].reply, FakeEngine.started[0].errored = RuntimeError("dead"), True
    with pytest.raises(AgentError, match="vLLM: RuntimeError: dead"):
        wait(asked.generate(ASKED, sampling=Sampling(), seed=0))
    assert wait(asked.generate(ASKED, sampling=Sampling(), seed=0)).text == "Hello"
    assert len(FakeEngine.started) == 2
    wait(asked.aclose())


def test_an_engine_argument_that_vllm_refuses_is_an_error_of_the_configuration(
    causal: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"agent 'v': vLLM cannot run .*nonsense"):
        agent(causal, engine_args={"nonsense": 1})


def test_without_vllm_the_error_says_what_to_install(
    causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'toa_trl\[vllm\]'"):
        agent(causal)


def test_reasoning_is_kept_apart_unless_it_is_asked_for(causal: Path) -> None:
    asked = agent(causal)
    FakeEngine.started[0].reply = ("<think>hm</think>Yes", "stop")
    done = wait(asked.generate(ASKED, sampling=Sampling(), seed=0))
    assert (done.text, done.reasoning) == ("Yes", "hm")
    kept = agent(causal, keep_reasoning=True)
    done = wait(kept.generate(ASKED, sampling=Sampling(), seed=0))
    assert done.text == "<think>hm</think>Yes"
    wait(asked.aclose())


@pytest.mark.parametrize(
    ("device", "before", "seen", "split"),
    [
        ("cuda:1", None, "1", None),
        ("cuda:1,2", "4,5,7", "5,7", 2),
        ("cuda:0", "GPU-a,GPU-b", "GPU-a", None),
        (None, "4", "4", None),
        (None, None, None, None),
    ],
)
def test_an_engine_sees_the_gpus_of_its_device_and_no_other_process_does(
    device: str | None,
    before: str | None,
    seen: str | None,
    split: int | None,
    causal: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toa_trl.models.devices.check_device", lambda *_: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    answer(causal, device=device)
    (engine,) = FakeEngine.started
    assert (engine.gpus, engine.args.get("tensor_parallel_size")) == (seen, split)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:1,1", "gpu", "cuda:-1"])
def test_a_device_of_another_form_is_refused(device: str, causal: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent 'v': device must be a GPU such as cuda:1"):
        agent(causal, device=device)


def test_an_adapter_runs_on_its_base(causal: Path, tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "lora", causal, rank=12)
    answer(lora)
    (engine,) = FakeEngine.started
    assert engine.args["model"] == str(causal)
    assert (engine.args["enable_lora"], engine.args["max_lora_rank"]) == (True, 16)
    assert engine.options == {"lora_request": ("adapter", 1, str(lora))}
    assert engine.params[0].stop_token_ids == [1]  # the end token of the tokenizer
    answer(causal)
    assert FakeEngine.started[1].options == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"r": 1024}, "rank 1024"),
    ],
)
def test_an_adapter_that_vllm_cannot_run_is_refused(
    change: dict[str, Any], message: str, causal: Path, tmp_path: Path
) -> None:
    lora = save_adapter(tmp_path / "lora", causal, **change)
    with pytest.raises(ConfigError, match=rf"cannot run the adapter .*{message}.*merge-adapter"):
        agent(lora)
