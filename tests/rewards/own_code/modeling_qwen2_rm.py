"""The interfaces of Qwen2.5-Math-RM and Qwen2.5-Math-PRM."""

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput

from .configuration_qwen2_rm import Qwen2RMConfig
from .decoder import Decoder, OldPreTrainedModel


class _Qwen2(OldPreTrainedModel):
    config_class = Qwen2RMConfig
    num_outputs = 1

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        hidden = config.hidden_size
        self.score = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, self.num_outputs)
        )
        self.post_init()

    def logits_of(self, input_ids, attention_mask, use_cache):
        if self.config.pad_token_id is None and len(input_ids) != 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        return self.score(self.model(input_ids, attention_mask, use_cache))


class Qwen2ForRewardModel(_Qwen2):
    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        logits = self.logits_of(input_ids, attention_mask, use_cache)
        ends = -1
        if (
            self.config.pad_token_id is not None
        ):  # the token before the first padding token, wherever that is
            ends = (
                torch.eq(input_ids, self.config.pad_token_id).int().argmax(-1) - 1
            ) % input_ids.shape[-1]
        return SequenceClassifierOutputWithPast(logits=logits[torch.arange(len(input_ids)), ends])


class Qwen2ForProcessRewardModel(_Qwen2):
    num_outputs = 2

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        return TokenClassifierOutput(logits=self.logits_of(input_ids, attention_mask, use_cache))
