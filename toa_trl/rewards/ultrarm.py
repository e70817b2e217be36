"""UltraRM (arXiv 2310.01377): a Llama with a regression head, and a text format of its own."""

from __future__ import annotations

from toa_trl.errors import RewardError
from toa_trl.models.batching import ScoringQueue
from toa_trl.models.loading import load_model, load_tokenizer
from toa_trl.rewards.classifier import ClassifierReward
from toa_trl.rewards.scoring import PROBE, check_scoring
from toa_trl.types import Prompt
from toa_trl.utils.config import PositiveInt

SPEAKERS = {"user": "Human", "assistant": "Assistant"}


class UltraRMReward(ClassifierReward):
    r"""The score of openbmb/UltraRM-13b at the last token of "Human: ...\\n\\nAssistant: ...".

    From its model card: the class LlamaRewardModel with the weights `regression_head`, no chat
    template, and no token after the response. A system prompt stands before the user's message.

    Args:
        model: folder or Hub name.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; default: a GPU if there is one.
        max_batch_size: maximum number of responses in a batch, over all prompts in flight.
        max_batch_tokens: maximum number of tokens in a batch, padding included; a longer text is
            scored alone. Default: 32,768 on a GPU, 2,048 on a CPU.
        revision: branch, tag or commit of the Hub repository.

    Raises:
        ConfigError: the model cannot be loaded, or has no regression head.
    """

    def __init__(
        self,
        model: str = "openbmb/UltraRM-13b",
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: PositiveInt = 128,
        max_batch_tokens: PositiveInt | None = None,
        revision: str | None = None,
    ) -> None:
        place = "reward 'ultrarm'"
        self._model = load_model(
            place,
            "LlamaForSequenceClassification",
            model,
            dtype=dtype,
            device=device,
            revision=revision,
            head="regression_head",
        )
        self._config = self._model.config
        self._config.use_cache = False  # nothing is generated
        self._tokenizer = load_tokenizer(place, model, revision=revision, template=False)
        self._queue = ScoringQueue(self._run, self._model, max_batch_size, max_batch_tokens)
        check_scoring(place, model, lambda: self._run([self._ids(*PROBE)]))

    def _ids(self, prompt: Prompt, response: str) -> list[int]:
        turns, before = [], ""
        for message in prompt.messages:
            if message.role == "system":
                before += f"{message.content}\n\n"
                continue
            if message.role not in SPEAKERS:
                raise RewardError(f"the reward model: it has no place for role {message.role!r}")
            turns.append(f"{SPEAKERS[message.role]}: {before}{message.text}")
            before = ""
        text = "\n\n".join([*turns, f"Assistant: {response}"])
        return list(self._tokenizer(text)["input_ids"])
