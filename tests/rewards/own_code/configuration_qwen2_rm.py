"""The configuration class of Qwen's reward models, named after an architecture of transformers."""

from transformers import PretrainedConfig


class Qwen2RMConfig(PretrainedConfig):
    model_type = "qwen2"

    def __init__(self, rope_theta=10000.0, rope_scaling=None, **others):
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        super().__init__(**others)
