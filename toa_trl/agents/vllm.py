"""A vLLM engine in this process, without a server; agents with the same model share it."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary, finalize

from toa_trl.agents.base import Agent, SamplingEntry, chat_template
from toa_trl.agents.completions import SamplingOf, with_system, without_reasoning
from toa_trl.errors import AgentError, ConfigError
from toa_trl.models.adapters import check_adapter, vllm_arguments
from toa_trl.models.devices import check_gpus, only_gpus
from toa_trl.models.flops import known_flops
from toa_trl.models.loading import load_tokenizer
from toa_trl.models.sources import is_adapter
from toa_trl.types import Completion, Flops, Message, Sampling, as_dicts
from toa_trl.utils.config import Text

T = TypeVar("T")


class VLLMAgent(Agent):
    """Run a causal language model under vLLM.

    The same seed gives the same text, except where a batch changes the rounding of logits.

    Args:
        name: name of the agent.
        model: folder or Hub name of a model with a chat template; a folder with a LoRA adapter runs
            on the base that it names.
        system_prompt: system prompt that is put in front of every conversation.
        sampling: sampling parameters that differ from the run's, such as {temperature: 1.0}.
        dtype: name of a torch dtype, or "auto": half precision for a model saved in float32.
        device: GPU such as "cuda:1", or several such as "cuda:0,1", over which the model is divided
            (tensor_parallel_size); default: the first GPUs.
        keep_reasoning: keep the text in think tags in the response; otherwise it is stored apart.
        engine_args: arguments of vLLM's AsyncEngineArgs, such as {tensor_parallel_size: 4,
            gpu_memory_utilization: 0.8, max_model_len: 8192}. On a CPU vLLM 0.32 needs
            {enable_chunked_prefill: false}: it crashes on a request with a seed whose prompt is
            processed in two chunks.

    Raises:
        ConfigError: vLLM is not installed, an engine argument is unknown, the device does not
            exist, or the model, its adapter or its chat template cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        model: Text,
        system_prompt: str | None = None,
        sampling: SamplingEntry | None = None,
        dtype: str = "auto",
        device: str | None = None,
        keep_reasoning: bool = False,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._place = f"agent {name!r}"
        self._system_prompt = system_prompt
        self._sampling = SamplingOf(self._place, sampling)
        self._keep_reasoning = keep_reasoning
        key = (model, dtype, device, json.dumps(engine_args, sort_keys=True, default=repr))
        engine = _ENGINES.get(key)
        if engine is None:
            engine = _ENGINES[key] = _Engine(self._place, model, dtype, device, engine_args or {})
        self._engine = engine

    @property
    def compute(self) -> Flops | None:
        """See `Agent`."""
        return self._engine.flops

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`. Cancelled, it takes the request out of the engine.

        Raises:
            AgentError: the prompt leaves no room in the model's context, or the engine failed.
        """
        asked = with_system(messages, self._system_prompt)
        done = await _in_thread(self._engine.generate(asked, self._sampling(sampling), seed))
        return without_reasoning(self._place, done, self._keep_reasoning)

    async def aclose(self) -> None:
        """Shut the engine down, for every agent that shares it. The next call starts it again."""
        await _in_thread(self._engine.aclose())


def check_vllm(place: str, model: str, device: str | None) -> tuple[dict[str, Any], list[int]]:
    """Return the engine arguments of a model or an adapter, and the numbers of its GPUs.

    Raises:
        ConfigError: vLLM is not installed, cannot run the adapter, or a GPU does not exist.
    """
    if sys.modules.get("vllm") is None and find_spec("vllm") is None:
        raise ConfigError(
            f"{place}: vLLM cannot be imported (not installed); pip install 'toa_trl[vllm]'"
        )
    return vllm_arguments(place, model), check_gpus(place, device)


class _Engine:
    """The engine and the tokenizer. Its coroutines run in `_loop`."""

    def __init__(
        self, place: str, model: str, dtype: str, device: str | None, engine_args: Mapping[str, Any]
    ) -> None:
        arguments, self._gpus = check_vllm(place, model, device)
        check_adapter(place, model)
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{place}: vLLM cannot be imported ({error}); pip install 'toa_trl[vllm]'"
            ) from error
        self._place, self._adapter = place, model if is_adapter(model) else None
        split = {"tensor_parallel_size": len(self._gpus)} if len(self._gpus) > 1 else {}
        self._args = {**arguments, "dtype": dtype, **split, **engine_args}
        self._tokenizer = load_tokenizer(place, model)
        self._template = chat_template(place, self._tokenizer)
        self._llm: Any = None
        asyncio.run_coroutine_threadsafe(self._open(), _loop()).result()

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling, seed: int
    ) -> Completion:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        llm = await self._open()
        prompt = self._template.render(as_dicts(messages), add_generation_prompt=True)
        context = llm.model_config.max_model_len
        if len(prompt) >= context:
            raise AgentError(
                f"{self._place}: a prompt of {len(prompt)} tokens, the context holds {context}"
            )
        asked = {"type": "token", "prompt_token_ids": prompt}
        on_base, ends = {}, {}
        if self._adapter is not None:
            from vllm.lora.request import LoRARequest

            on_base = {"lora_request": LoRARequest("adapter", 1, self._adapter)}
            # it may have learned another end token than its base
            ends = {"stop_token_ids": [self._tokenizer.eos_token_id]}
        try:
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_tokens, context - len(prompt)),
                stop=list(sampling.stop),
                seed=seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
                **ends,
            )
            answering = llm.generate(asked, params, request_id=uuid4().hex, **on_base)
            (output,) = [done async for done in answering]
        except Exception as error:  # vLLM's have no base of their own
            if llm.errored and llm is self._llm:  # a dead engine: the next play starts another
                await self.aclose()
            raise AgentError(f"{self._place}: vLLM: {type(error).__name__}: {error}") from error
        (answer,) = output.outputs
        if answer.finish_reason not in ("stop", "length"):
            raise AgentError(f"{self._place}: vLLM ended the request with {answer.finish_reason!r}")
        return Completion(
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(prompt),
            completion_tokens=len(answer.token_ids),
            flops=self.flops(len(prompt) + len(answer.token_ids)) if self.flops else None,
        )

    async def aclose(self) -> None:
        if self._llm is not None:
            self._shutdown()
            self._llm = None

    async def _open(self) -> Any:
        if self._llm is None:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            try:  # it blocks the loop, so that nobody starts a second one meanwhile
                with only_gpus(self._gpus):  # the engine is a process of its own
                    self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._args))
            except Exception as error:  # of its arguments, of the weights, of its processes
                reason = " ".join(str(error).split())[:300]
                raise ConfigError(
                    f"{self._place}: vLLM cannot run {self._args['model']!r}: {reason}"
                ) from error
            self._shutdown = finalize(
                self, self._llm.shutdown, timeout=15.0
            )  # also where nobody calls aclose
            self.flops = known_flops(self._llm.model_config.hf_config)
        return self._llm


_ENGINES: WeakValueDictionary[tuple[str, str, str | None, str], _Engine] = WeakValueDictionary()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all engines: vLLM ties an engine to one loop, a run has its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vllm", daemon=True).start()
    return loop


async def _in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, _loop()))
