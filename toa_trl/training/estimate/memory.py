"""Memory of a training on each device. Pure arithmetic, from the shape of a model and its training.

What is counted, in bytes, and where the formulas are from:
- weights, gradients and optimizer states, and the share of them that ZeRO leaves on each device:
  ZeRO (arXiv 1910.02054), sections 3 and 5, with K = 12 bytes of float32 master weights and Adam
  moments per parameter.
- what a block keeps for its backward pass: as Korthikanti et al. (arXiv 2205.05198), section 4, but
  counted for the blocks of transformers' Llama, tensor by tensor (`_kept`), with an attention that
  keeps no matrix of attention weights (sdpa, flash).
- the language model's head: TRL 1.16 never holds tokens x vocabulary logits. It computes them in
  tiles of 4,096 tokens x 32,768 words (trl/kernels/chunked_logprob.py); the large part is the
  float32 gradient of the head.
- what DeepSpeed 0.19 and accelerate's FSDP2 gather and keep as buffers, at their default sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1024**3
TILE_TOKENS, TILE_WORDS = 4096, 32_768  # TRL's: TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE
# DeepSpeed's max_live_parameters, reduce_bucket_size and sub_group_size, in parameters
LIVE, BUCKET, SUB_GROUP = 10**9, 5 * 10**8, 10**9
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


def estimate(shape: Shape, training: Training, sharding: Sharding) -> Memory:
    """Return the peak of a training after its first step, when the optimizer has its states."""
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
    """Return what is allocated all the time, with the gradients; and the part on the host."""
    trained, frozen = training.num_trained, _frozen(shape, training)
    of_weights, of_gradients, of_optimizer = (
        sharding.share(of) for of in ("weights", "gradients", "optimizer")
    )
    if sharding.deepspeed and training.bf16:
        # bfloat16 weights and gradients, and a share of 4 + 8 bytes on each device
        weights, gradients = 2 * (frozen + trained) / of_weights, 2 * trained / of_gradients
        optimizer = 12 * trained / of_optimizer
    else:
        # Adam's moments have the type of the trained weights; FSDP2 raises that to float32, and so
        # does peft for its adapters
        raised = (sharding.kind == "fsdp2" and training.bf16) or training.lora_rank
        in_float32 = raised or sharding.deepspeed or not training.bf16
        each = FLOAT32 if in_float32 else training.weight_bytes
        weights = (training.weight_bytes * frozen + each * trained) / of_weights
        gradients, optimizer = each * trained / of_gradients, 2 * each * trained / of_optimizer
    reference = 0.0
    if training.has_reference:
        # spread as the weights are: TRL's prepare_deepspeed and prepare_fsdp
        each = 2 if sharding.deepspeed and training.bf16 else training.weight_bytes
        reference = each * shape.num_parameters / of_weights
    host = 0.0
    if sharding.offload_optimizer:
        # gradients become float32 there
        host, optimizer = host + optimizer + gradients * 2, 0.0
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
    """Return what is gathered for a pass, and the buffers for reducing gradients."""
    trained, parameters = training.num_trained, shape.num_parameters
    each = 2 if training.bf16 else FLOAT32
    if sharding.kind == "ddp":
        # buckets as large as the gradients, in addition (gradient_as_bucket_view is off)
        return float(FLOAT32 if training.lora_rank else training.weight_bytes) * trained
    if sharding.kind in ("zero1", "zero2"):
        return each * min(BUCKET, trained)
    if sharding.kind == "zero3":
        # gathered weights stay if they are needed again within LIVE parameters
        return each * (min(LIVE, parameters) + min(BUCKET, trained))
    if sharding.kind == "fsdp2":
        # a block, the next one, the head, which stays, and the gradients of a block
        head = shape.vocab_size * shape.hidden_size
        num_blocks = 2 if training.lora_rank else 3
        return each * (num_blocks * shape.block_parameters + head)
    return 0.0


def _step(training: Training, sharding: Sharding) -> float:
    """Return the size of DeepSpeed's float32 gradients of its share (ZeRO-3: of a sub-group).

    Adam itself is fused and needs nothing.
    """
    if not (sharding.deepspeed and training.bf16) or sharding.offload_optimizer:
        return 0.0
    share = training.num_trained / sharding.num_devices
    return FLOAT32 * (min(SUB_GROUP, share) if sharding.kind == "zero3" else share)


def _compute_bytes(training: Training) -> int:
    return 2 if training.bf16 else FLOAT32


def _residual_bytes(training: Training, sharding: Sharding) -> int:
    """Return the bytes of the residual stream; under autocast it keeps the type of the weights."""
    sharded = sharding.deepspeed or sharding.kind == "fsdp2"
    return 2 if training.bf16 and (sharded or training.weight_bytes == 2) else FLOAT32


def _casts(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the size of autocast's bfloat16 copies of the trained float32 weights."""
    if not training.bf16 or training.lora_rank or _residual_bytes(training, sharding) == 2:
        return 0.0
    return 2.0 * training.num_trained


def _kept_casts(casts: float, training: Training, shape: Shape) -> float:
    """Return what the backward pass needs of the copies: with checkpointing those of one block."""
    return (
        casts * shape.block_parameters / shape.num_parameters if training.checkpointing else casts
    )


def _kept(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the bytes per token that a block keeps for its backward pass.

    These are the inputs of operations that have a weight to train, or are not linear.
    """
    h, m, q, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
    each, residual = _compute_bytes(training), _residual_bytes(training, sharding)
    # query, key, value and output
    attention = each * (2 * q + (2 * q if training.repeats_keys else 2 * k))
    norms = 2 * h * FLOAT32  # their inputs, in float32 whatever the type of the stream
    if not training.lora_rank:
        norms += 2 * h * residual  # their outputs, for the norm's own weight
        # autocast casts the input of query, key, value, gate and up separately
        copies = 5 if residual > each else 2
        # gate, its silu, up, and their product
        return norms + attention + each * (copies * h + 4 * m)
    # a frozen linear layer keeps nothing, its adapter a copy of the input: cast, or with dropout
    if training.lora_dropout or each != FLOAT32:
        # without CUDA's kernel torch multiplies by a mask of the input's type
        mask = each if training.on_cpu else 1
        inputs = (5 * h + q + m) * (each + (mask if training.lora_dropout else 0))
    else:
        inputs = (2 * h + m) * each
    return norms + attention + inputs + each * (3 * m + 7 * training.lora_rank)


def _working(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the bytes per token of the gradients in a block: of gate, silu, up and the stream."""
    each = _compute_bytes(training)
    return 2 * shape.intermediate_size * each + shape.hidden_size * _residual_bytes(
        training, sharding
    )


def _head(shape: Shape, training: Training, sharding: Sharding) -> tuple[float, float, float]:
    """Return the bytes of the head's forward and backward pass, and of its gradient."""
    tokens, h = training.num_sequences * training.length, shape.hidden_size
    each, residual = _compute_bytes(training), _residual_bytes(training, sharding)
    # input and output of the last norm, and the rows that are scored
    hidden = tokens * h * (FLOAT32 + 2 * residual)
    if not training.has_head:
        return hidden, hidden, 0.0
    rows = min(tokens, TILE_TOKENS)
    if training.on_cpu:
        # without a kernel every step of the softmax needs a tile
        tile = float(rows * min(shape.vocab_size, TILE_WORDS) * FLOAT32)
        forward_tiles, backward_tiles = 4.25, 8.25
    else:
        tile, forward_tiles, backward_tiles = float(rows * TILE_WORDS * each), 1.0, 1.0
    words = shape.vocab_size * h
    gathered = words * each if sharding.kind == "zero3" else 0.0
    gradient = 0.0
    if not training.lora_rank:
        stored = 2 if residual == 2 else FLOAT32
        # float32 first, then also in the type of the weight
        gradient = words * (FLOAT32 + (stored if stored != FLOAT32 else 0))
    forward = hidden + forward_tiles * tile + gathered
    backward = hidden + tokens * h * FLOAT32 + backward_tiles * tile + gathered + gradient
    return forward, backward, gradient


def _embeddings(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the bytes of the embeddings' gradient while it is added to an existing one.

    That is the gradient of the head, or of an earlier pass.
    """
    if training.lora_rank or not (shape.tied or training.accumulates):
        return 0.0
    return float(shape.vocab_size * shape.hidden_size * _residual_bytes(training, sharding))
