"""The interface of InternLM2-reward: a score at the reward token, which must be the last token."""

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .configuration_internlm2 import InternLM2Config
from .decoder import Decoder, OldPreTrainedModel


class InternLM2ForRewardModel(OldPreTrainedModel):
    config_class = InternLM2Config

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.reward_token_id = config.reward_token_id
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        ends = (
            attention_mask.shape[1] - 1 - attention_mask.long().fliplr().argmax(dim=1, keepdim=True)
        )
        assert bool((input_ids.gather(1, ends) == self.reward_token_id).all()), (
            "the last token must be the reward token"
        )
        values = self.v_head(self.model(input_ids, attention_mask, use_cache)).squeeze(-1)
        return SequenceClassifierOutputWithPast(logits=values.gather(1, ends).squeeze(1))

    @torch.no_grad()
    def get_score(self, tokenizer, conversation):
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=False
        )
        ids = torch.tensor([[*tokenizer.encode(text), self.reward_token_id]])
        return self(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0].item()
