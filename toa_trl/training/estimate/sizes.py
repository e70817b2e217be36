"""What the memory of a training is computed from: sizes of a model, a training and its devices."""

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1024**3
FLOAT32 = 4


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind. Sizes in elements."""

    num_parameters: int  # tied ones once
    block_parameters: int  # of one block
    num_layers: int
    hidden_size: int
    intermediate_size: int  # of a mixture of experts, of those that work on a token
    query_size: int  # heads x their size
    key_size: int  # key-value heads x their size
    vocab_size: int
    tied: bool = False  # the head's weight is that of the embeddings
    linear_parameters: int = 0  # of the linear layers of all blocks: what is quantized
    largest_linear: int = 0  # of the largest of them


@dataclass(frozen=True)
class Generation:
    """What a device does to sample the completions of reinforcement learning."""

    num_sequences: int  # of all passes until the next ones are sampled
    length: int  # tokens of each: prompt and completion
    in_vllm: bool = False  # in this process; else transformers samples
    vllm_share: float = 0.3  # of a GPU's memory, which vLLM reserves
    vllm_devices: int = 1  # over which its weights are spread
    vllm_sleeps: bool = False  # vLLM gives that back while the model is trained


@dataclass(frozen=True)
class Training:
    """What a device does in a forward and backward pass."""

    num_sequences: int  # of pairs both
    length: int  # tokens of each, padding included
    num_trained: int  # parameters that are trained: the model's, or the adapter's
    lora_rank: int = 0  # 0: no adapter
    lora_dropout: bool = False
    weight_bytes: int = 4  # of the weights as they are loaded: float32 4, bfloat16 2
    quantized_bytes: float = 0.0  # of the weights of linear layers; 0: they are not quantized
    adapter_bytes: int = 4  # of the adapter's weights
    bf16: bool = True  # computes in bfloat16
    checkpointing: bool = True  # keeps each block's input alone, and computes the rest again
    accumulates: bool = False  # gradients of earlier passes are there while the next one runs
    has_reference: bool = False  # a second, frozen model
    has_head: bool = True  # words are predicted; a reward model's head is nothing
    whole_logits: float = 0.0  # copies of tokens x vocabulary in the loss; 0: it is made of tiles
    prompt_length: int = 0  # of the length, where completions are sampled; else 0
    generation: Generation | None = None  # None: nothing is sampled on the device
    reward_bytes: float = 0.0  # of reward models on the device
    device_bytes: float | None = None  # of the memory of the device; None: not known
    # sdpa with a mask of padding repeats keys and values for every query head
    repeats_keys: bool = False
    on_cpu: bool = False


@dataclass(frozen=True)
class Sharding:
    """How the states are spread over devices."""

    kind: str = "none"  # none, ddp, zero1, zero2, zero3, fsdp2
    num_devices: int = 1
    offload_optimizer: bool = False  # to the host's memory
    offload_weights: bool = False

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed spreads them."""
        return self.kind.startswith("zero")

    def share(self, of: str) -> int:
        """Return over how many devices the weights, gradients or optimizer states are divided."""
        first = {"optimizer": "zero1", "gradients": "zero2", "weights": "zero3"}[of]
        sharded = self.kind == "fsdp2" or (self.deepspeed and self.kind >= first)
        return self.num_devices if sharded else 1


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at its peak, and of the host for each device."""

    parts: Mapping[str, float]
    peak: str  # when it is
    host: float = 0.0  # what is offloaded

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())


def compute_bytes(training: Training) -> int:
    """Return the bytes of a number in the computing type."""
    return 2 if training.bf16 else FLOAT32


def residual_bytes(training: Training, sharding: Sharding) -> int:
    """Return the bytes of the residual stream; under autocast it keeps the type of the weights."""
    sharded = sharding.deepspeed or sharding.kind == "fsdp2"
    return 2 if training.bf16 and (sharded or training.weight_bytes == 2) else FLOAT32
