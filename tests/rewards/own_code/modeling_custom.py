"""The interface of ArmoRM-Llama3-8B-v0.1: weighted objectives.

A gating network that reads the assistant's header gives the weights.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING
from transformers.utils import ModelOutput, add_start_docstrings_to_model_forward

token_pattern = [1, 4]  # "<|end|><|assistant|>" of the small tokenizer


def find_token_for_gating(ids):
    for at in range(len(ids) - len(token_pattern), -1, -1):
        if ids[at : at + len(token_pattern)] == token_pattern:
            return at
    raise ValueError("Token pattern not found in the list.")


@dataclass
class CustomOutput(ModelOutput):
    rewards: torch.FloatTensor | None = None
    score: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class LlamaForRewardModelWithGating(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.post_init()
        self.reward_transform_matrix = nn.Parameter(
            torch.zeros(config.num_objectives, config.num_objectives)
        )
        self.gating = nn.Linear(config.hidden_size, config.num_objectives)

    @add_start_docstrings_to_model_forward(LLAMA_INPUTS_DOCSTRING)
    def forward(self, input_ids=None, attention_mask=None, use_cache=None, return_dict=None):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        hidden = self.model(
            input_ids, attention_mask=attention_mask, use_cache=use_cache, return_dict=return_dict
        ).last_hidden_state
        if self.config.pad_token_id is None and len(input_ids) != 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        ends = -1
        if (
            self.config.pad_token_id is not None
        ):  # the token before the first padding token, wherever that is
            ends = (
                torch.eq(input_ids, self.config.pad_token_id).int().argmax(-1) - 1
            ) % input_ids.shape[-1]
        rows = torch.arange(len(input_ids))
        rewards = self.regression_layer(hidden[rows, ends])
        header = [find_token_for_gating(ids.tolist()) for ids in input_ids]
        gates = self.gating(hidden[rows, header]).softmax(dim=1)
        score = (gates * (rewards @ self.reward_transform_matrix)).sum(dim=1)
        return CustomOutput(rewards=rewards, score=score, logits=rewards)
