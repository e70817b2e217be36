"""Memory of the language model's head, and of the embeddings. Pure arithmetic.

TRL 1.16 holds no tokens x vocabulary logits in SFT, DPO, KTO, GRPO and RLOO: it computes them in
tiles of 4,096 tokens x 32,768 words (trl/kernels/chunked_logprob.py); the large part is the float32
gradient of the head. ORPO and CPO (SimPO) of trl.experimental take the logits of the model's
forward pass, of chosen and rejected responses in one batch (`concatenated_forward`), and so hold
them whole. How many copies there are at most, counted in their `get_batch_logps`:
- the backward pass of the sum over the vocabulary has the gradient of every row, and the same
  stacked: 2 copies, while the logits themselves are freed row by row.
- ORPO's cross entropy on the chosen half keeps its own softmax: half a copy more.
"""

from toa_trl.training.estimate.sizes import (
    FLOAT32,
    Shape,
    Sharding,
    Training,
    compute_bytes,
    residual_bytes,
)

TILE_TOKENS, TILE_WORDS = 4096, 32_768  # TRL's: TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE
WHOLE_LOGITS = {"simpo": 2.0, "orpo": 2.5}  # copies at the peak


def head_bytes(shape: Shape, training: Training, sharding: Sharding) -> tuple[float, float, float]:
    """Return the bytes of the head's forward and backward pass, and of its gradient."""
    tokens, h = training.num_sequences * training.length, shape.hidden_size
    each, residual = compute_bytes(training), residual_bytes(training, sharding)
    # input and output of the last norm, and the rows that are scored
    hidden = tokens * h * (FLOAT32 + 2 * residual)
    if not training.has_head:
        return hidden, hidden, 0.0
    rows = min(tokens, TILE_TOKENS)
    if training.whole_logits:
        # accelerate's autocast returns the logits in float32, DeepSpeed and plain bfloat16 as they
        # are computed
        own = each if sharding.deepspeed or not training.bf16 else FLOAT32
        tile = float(tokens * shape.vocab_size)
        forward_tiles = own * max(1.0, training.whole_logits - 0.5) + (each if own != each else 0)
        backward_tiles = own * training.whole_logits
    elif training.on_cpu:
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


def embeddings_bytes(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the bytes of the embeddings' gradient while it is added to an existing one.

    That is the gradient of the head, or of an earlier pass.
    """
    if training.lora_rank or not (shape.tied or training.accumulates):
        return 0.0
    return float(shape.vocab_size * shape.hidden_size * residual_bytes(training, sharding))
