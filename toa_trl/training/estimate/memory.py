"""How much memory a training needs on each device: arithmetic alone, from the shape of a model and how it is trained.

What is counted, in bytes, and where it is from:
- weights, gradients and optimizer states, and what ZeRO leaves of them on each device: ZeRO (arXiv 1910.02054), section 3
  and 5; there with K = 12 bytes of float32 master weights and Adam moments per parameter.
- what a block keeps for its backward pass: as Korthikanti et al. (arXiv 2205.05198), section 4, but counted for the blocks of
  transformers' Llama, tensor by tensor (`_kept`), with an attention that keeps no matrix of attention weights (sdpa, flash).
- the language model's head: TRL 1.16 never holds tokens x vocabulary logits. It goes through them in tiles of 4,096 tokens x
  32,768 words (trl/kernels/chunked_logprob.py), and what is large instead is the float32 gradient of the head.
- what DeepSpeed 0.19 and accelerate's FSDP2 gather and keep as buffers, at their default sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1024**3
TILE_TOKENS, TILE_WORDS = 4096, 32_768  # TRL's: TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE
LIVE, BUCKET, SUB_GROUP = (
    10**9,
    5 * 10**8,
    10**9,
)  # DeepSpeed's, in parameters: max_live_parameters, reduce_bucket_size, ...
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


@dataclass(frozen=True)
class Training:
    """What a device does in a forward and backward pass."""

    num_sequences: int  # of pairs both
    length: int  # tokens of each, padding included
    num_trained: int  # parameters that are trained: the model's, or the adapter's
    lora_rank: int = 0  # 0: no adapter
    lora_dropout: bool = False
    weight_bytes: int = 4  # of the weights as they are loaded: float32 4, bfloat16 2
    bf16: bool = True  # computes in bfloat16
    checkpointing: bool = True  # keeps each block's input alone, and computes the rest again
    accumulates: bool = False  # gradients of earlier passes are there while the next one runs
    has_reference: bool = False  # a second, frozen model
    has_head: bool = True  # words are predicted; a reward model's head is nothing
    repeats_keys: bool = (
        False  # sdpa with a mask of padding repeats keys and values for every query head
    )
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
        return self.kind.startswith("zero")

    def share(self, of: str) -> int:
        """Over how many devices the weights, gradients or optimizer states are divided."""
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
        return sum(self.parts.values())


def estimate(shape: Shape, training: Training, sharding: Sharding) -> Memory:
    """The peak of a training that is under way, so that the optimizer has its states."""
    kept, host = states(shape, training, sharding)
    gradients = kept.pop("gradients")
    # what earlier passes left when one begins; ZeRO-3 has a buffer for it all the time
    before = gradients if training.accumulates or sharding.kind == "zero3" else 0.0
    tokens = training.num_sequences * training.length
    block = tokens * _kept(shape, training, sharding)
    blocks: float
    if training.checkpointing:
        blocks = shape.num_layers * tokens * shape.hidden_size * _residual_bytes(training, sharding)
    else:
        blocks = shape.num_layers * block
    head_forward, head_backward, head_gradient = _head(shape, training, sharding)
    working = tokens * _working(shape, training, sharding)
    casts = _casts(shape, training, sharding)
    again = block if training.checkpointing else 0.0  # the block that is computed again
    moments: dict[str, dict[str, float]] = {
        "the head's forward pass": {
            "gradients": before,
            "activations": blocks,
            "head": head_forward,
            "casts": casts,
        },
        "the head's backward pass": {
            "gradients": before,
            "activations": blocks,
            "head": head_backward,
            "casts": _kept_casts(casts, training, shape),
        },
        "the last block's backward pass": {
            "gradients": max(before, head_gradient),
            "activations": blocks + again + working,
            "casts": _kept_casts(casts, training, shape),
        },
        "the first block's backward pass": {
            "gradients": gradients,
            "activations": block + working,
            "casts": casts * shape.block_parameters / shape.num_parameters,
        },
        "the embeddings' backward pass": {
            "gradients": gradients,
            "embeddings": _embeddings(shape, training, sharding),
        },
        "the optimizer's step": {"gradients": gradients, "step": _step(training, sharding)},
    }
    peak, parts = max(moments.items(), key=lambda moment: sum(moment[1].values()))
    return Memory({name: size for name, size in (kept | parts).items() if size}, peak, host)


def states(shape: Shape, training: Training, sharding: Sharding) -> tuple[dict[str, float], float]:
    """What is there all the time, and gradients; and what of it is on the host."""
    trained, frozen = training.num_trained, _frozen(shape, training)
    of_weights, of_gradients, of_optimizer = (
        sharding.share(of) for of in ("weights", "gradients", "optimizer")
    )
    if (
        sharding.deepspeed and training.bf16
    ):  # bf16 weights and gradients, and per device a share of 4 + 8 bytes
        weights, gradients = 2 * (frozen + trained) / of_weights, 2 * trained / of_gradients
        optimizer = 12 * trained / of_optimizer
    else:  # Adam's moments are of the type of what is trained; FSDP2 raises that to float32, and peft its adapters
        raised = sharding.kind == "fsdp2" and training.bf16
        each = (
            FLOAT32 if raised or training.lora_rank or not training.bf16 else training.weight_bytes
        )
        each = FLOAT32 if sharding.deepspeed else each
        weights = (training.weight_bytes * frozen + each * trained) / of_weights
        gradients, optimizer = each * trained / of_gradients, 2 * each * trained / of_optimizer
    reference = 0.0
    if (
        training.has_reference
    ):  # as many devices share it as share the weights: TRL's prepare_deepspeed, prepare_fsdp
        each = 2 if sharding.deepspeed and training.bf16 else training.weight_bytes
        reference = each * shape.num_parameters / of_weights
    host = 0.0
    if sharding.offload_optimizer:
        host, optimizer = (
            host + optimizer + gradients * 2,
            0.0,
        )  # gradients are turned to float32 there
    if sharding.offload_weights:
        host, weights = host + weights, 0.0
    kept = {
        "weights": weights,
        "optimizer": optimizer,
        "reference": reference,
        "gradients": gradients,
    }
    return kept | {"buffers": _buffers(shape, training, sharding)}, host


def _frozen(shape: Shape, training: Training) -> int:
    return (
        shape.num_parameters if training.lora_rank else shape.num_parameters - training.num_trained
    )


def _buffers(shape: Shape, training: Training, sharding: Sharding) -> float:
    """What is gathered for a pass, and the buffers that gradients are reduced through."""
    trained, parameters = training.num_trained, shape.num_parameters
    each = 2 if training.bf16 else FLOAT32
    if (
        sharding.kind == "ddp"
    ):  # buckets as large as the gradients, beside them (gradient_as_bucket_view is off)
        return float(FLOAT32 if training.lora_rank else training.weight_bytes) * trained
    if sharding.kind in ("zero1", "zero2"):
        return each * min(BUCKET, trained)
    if (
        sharding.kind == "zero3"
    ):  # gathered weights stay while they are needed again within as many parameters
        return each * (min(LIVE, parameters) + min(BUCKET, trained))
    if (
        sharding.kind == "fsdp2"
    ):  # a block, the next one, the head that stays, and a block's gradients
        words = shape.vocab_size * shape.hidden_size
        return each * (
            2 * shape.block_parameters
            + words
            + (0 if training.lora_rank else shape.block_parameters)
        )
    return 0.0


def _step(training: Training, sharding: Sharding) -> float:
    """Beside all states: DeepSpeed's float32 gradients, of its share (ZeRO-3: of a sub-group). Adam itself is fused."""
    if not (sharding.deepspeed and training.bf16) or sharding.offload_optimizer:
        return 0.0
    share = training.num_trained / sharding.num_devices
    return FLOAT32 * (min(SUB_GROUP, share) if sharding.kind == "zero3" else share)


def _compute_bytes(training: Training) -> int:
    return 2 if training.bf16 else FLOAT32


def _residual_bytes(training: Training, sharding: Sharding) -> int:
    """Of the stream between blocks: under autocast it keeps the type of the weights."""
    sharded = sharding.deepspeed or sharding.kind == "fsdp2"
    return 2 if training.bf16 and (sharded or training.weight_bytes == 2) else FLOAT32


def _casts(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Autocast's bfloat16 copies of float32 weights that are trained, kept to the end of a forward pass."""
    if not training.bf16 or training.lora_rank or _residual_bytes(training, sharding) == 2:
        return 0.0
    return 2.0 * training.num_trained


def _kept_casts(casts: float, training: Training, shape: Shape) -> float:
    """Those that the backward pass needs: all of them, or with checkpointing one block's."""
    return (
        casts * shape.block_parameters / shape.num_parameters if training.checkpointing else casts
    )


def _kept(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Bytes per token that a block keeps for its backward pass: inputs of what has a weight to train, or is not linear."""
    h, m, q, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
    each, residual = _compute_bytes(training), _residual_bytes(training, sharding)
    attention = each * (
        2 * q + (2 * q if training.repeats_keys else 2 * k)
    )  # query, key, value, and what comes out
    norms = 2 * h * FLOAT32  # their inputs, in float32 whatever the stream's type
    if not training.lora_rank:
        norms += 2 * h * residual  # normalised, for the norm's own weight
        copies = (
            5 if residual > each else 2
        )  # autocast casts the input of query, key, value, gate and up one by one
        return (
            norms + attention + each * (copies * h + 4 * m)
        )  # gate, its silu, up, and their product
    # a frozen linear layer keeps nothing, its adapter its own copy of the input: of another type, or dropped out
    if training.lora_dropout or each != FLOAT32:
        mask = (
            each if training.on_cpu else 1
        )  # without CUDA's kernel torch multiplies by a mask of the input's type
        inputs = (5 * h + q + m) * (each + (mask if training.lora_dropout else 0))
    else:
        inputs = (2 * h + m) * each
    return norms + attention + inputs + each * (3 * m + 7 * training.lora_rank)


def _working(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Bytes per token of the gradients within a block: of gate, silu and up at once, and of the stream."""
    each = _compute_bytes(training)
    return 2 * shape.intermediate_size * each + shape.hidden_size * _residual_bytes(
        training, sharding
    )


def _head(shape: Shape, training: Training, sharding: Sharding) -> tuple[float, float, float]:
    """Bytes of the head's forward and backward pass, and of its gradient."""
    tokens, h = training.num_sequences * training.length, shape.hidden_size
    each, residual = _compute_bytes(training), _residual_bytes(training, sharding)
    hidden = (
        tokens * h * (FLOAT32 + 2 * residual)
    )  # the last norm's input and output, and the rows that are scored
    if not training.has_head:
        return hidden, hidden, 0.0
    rows = min(tokens, TILE_TOKENS)
    if training.on_cpu:  # no kernel: torch makes every step of the softmax a tile of its own
        tile, forward_tiles, backward_tiles = (
            float(rows * min(shape.vocab_size, TILE_WORDS) * FLOAT32),
            4.25,
            8.25,
        )
    else:
        tile, forward_tiles, backward_tiles = float(rows * TILE_WORDS * each), 1.0, 1.0
    words = shape.vocab_size * h
    gathered = words * each if sharding.kind == "zero3" else 0.0
    gradient = 0.0
    if not training.lora_rank:
        stored = 2 if residual == 2 else FLOAT32
        gradient = words * (
            FLOAT32 + (stored if stored != FLOAT32 else 0)
        )  # float32 first, then in the weight's type
    forward = hidden + forward_tiles * tile + gathered
    backward = hidden + tokens * h * FLOAT32 + backward_tiles * tile + gathered + gradient
    return forward, backward, gradient


def _embeddings(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Bytes of the embeddings' gradient while it is added to one that is there: the head's, or that of an earlier pass."""
    if training.lora_rank or not (shape.tied or training.accumulates):
        return 0.0
    return float(shape.vocab_size * shape.hidden_size * _residual_bytes(training, sharding))
