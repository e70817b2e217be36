"""Reward models with one number per text: sequence classifiers, and models with their own head."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.batching import (
    ScoringQueue,
    padded,
    spare_token,
    without_gradients,
    without_padding,
)
from toa_trl.models.loading import load_model, load_tokenizer, trained_padding
from toa_trl.models.sources import read_config
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.scoring import (
    PROBE,
    STEP_BY_STEP,
    chat_template,
    check_scoring,
    trusted_class,
)
from toa_trl.types import Prompt, Score, as_dicts
from toa_trl.utils.compat import restore_removed_names
from toa_trl.utils.config import PositiveInt

SYSTEM_PROMPTS = {"Qwen2ForRewardModel": STEP_BY_STEP}  # architecture -> where the prompt has none


class ClassifierReward(DetailedReward):
    """The raw score of [prompt messages + response] in the model's chat template, no sigmoid.

    A sequence classifier with one label (Skywork-Reward, everything that TRL's RewardTrainer
    saves, adapters too), is read at the last token that is not the padding token of its training,
    as transformers reads it. Models with their own code, from their model cards and code:
    - ArmoRM-Llama3-8B-v0.1: the score is `output.score`, 19 objectives weighted by a gating
      network that reads the header of the last assistant turn;
    - InternLM2-reward: the encoded text, then the token `config.reward_token_id`; `output[0]`;
    - Qwen2.5-Math-RM: a system prompt; `output[0]`.

    Args:
        model: folder or Hub name; with a chat template.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; "auto": layer by layer over all GPUs, for a model that one does not
            hold; default: a GPU if there is one.
        max_batch_size: maximum number of responses in a batch, over all prompts in flight.
        max_batch_tokens: maximum number of tokens in a batch, padding included; a longer text is
            scored alone. Default: 32,768 on a GPU, 2,048 on a CPU.
        trust_remote_code: run the code in the model's repository.
        revision: branch, tag or commit of the Hub repository, code included.

    Raises:
        ConfigError: the model or its chat template cannot be loaded, its code is not trusted or
            does not run, or it has more than one label.
    """

    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: PositiveInt = 128,
        max_batch_tokens: PositiveInt | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        place = "reward 'classifier'"
        config = read_config(place, model, revision)
        own_class = trusted_class(place, model, config, trust_remote_code)
        if own_class is not None:
            restore_removed_names()
        code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        auto_class = own_class or "AutoModelForSequenceClassification"
        self._model = load_model(place, auto_class, model, dtype=dtype, device=device, **code)
        self._config = self._model.config.get_text_config()
        if own_class is None and self._model.config.num_labels != 1:
            raise ConfigError(
                f"{place}: {model!r} has {self._model.config.num_labels} labels; "
                "a reward model has one (num_labels=1)"
            )
        # Nothing is generated, and older model code does not know the cache of transformers 5.
        self._config.use_cache = False
        self._tokenizer = load_tokenizer(place, model, **code)
        # Heads with their own code are read as that code says.
        self._trained_pad = (
            trained_padding(place, model, self._tokenizer, **code) if own_class is None else None
        )
        system = SYSTEM_PROMPTS.get((config.get("architectures") or [""])[0])
        self._template = chat_template(self._tokenizer, system)
        self._reward_token: int | None = getattr(self._config, "reward_token_id", None)
        self._queue = ScoringQueue(self._run, self._model, max_batch_size, max_batch_tokens)
        check_scoring(place, model, lambda: self._run([self._ids(*PROBE)]))

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        return await self._queue.scores([self._ids(prompt, response) for response in responses])

    def _ids(self, prompt: Prompt, response: str) -> list[int]:
        messages = as_dicts(prompt.messages)
        if self._reward_token is None:
            return without_padding(self._template.render(messages, response), self._trained_pad)
        text = self._template.render(messages, response, tokenize=False)
        return [*self._tokenizer.encode(text), self._reward_token]

    @without_gradients
    def _run(self, texts: list[list[int]]) -> list[float]:
        # Heads find the end of a text by the padding token: its first occurrence (ArmoRM, Qwen) or
        # the last other token (transformers). So it must occur in no text, else nothing is padded.
        pad = spare_token(texts, self._config.vocab_size)
        if pad is None and len(texts) > 1:
            return list(chain.from_iterable(self._run([text]) for text in texts))
        self._config.pad_token_id = pad
        ids, mask = padded(texts, pad or 0, self._model.device)
        output = self._model(input_ids=ids, attention_mask=mask)
        scores = getattr(output, "score", None)
        values = (output[0] if scores is None else scores).float().reshape(len(texts), -1)
        if values.shape[1] != 1:
            raise RewardError(
                f"the model must give one number per text, not {values.shape[1]}; "
                "for step scores use kind: process"
            )
        return list(values[:, 0].tolist())
