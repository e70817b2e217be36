"""Memory of a training on each device. Pure arithmetic, from the shape of a model and its training.

What is counted, in bytes, and where the formulas are from:
- weights, gradients and optimizer states, and the share of them that ZeRO leaves on each device:
  ZeRO (arXiv 1910.02054), sections 3 and 5, with K = 12 bytes of float32 master weights and Adam
  moments per parameter.
- what a block keeps for its backward pass: as Korthikanti et al. (arXiv 2205.05198), section 4, but
  counted for the blocks of transformers' Llama, tensor by tensor (`_kept`), with an attention that
  keeps no matrix of attention weights (sdpa, flash).
- the language model's head, and what GRPO and RLOO sample: head.py and generation.py.
- weights in 4 or 8 bits, and what their layers keep: plan.py and `_kept`.
- what DeepSpeed 0.19 and accelerate's FSDP2 gather and keep as buffers, at their default sizes.
"""

from toa_trl.training.estimate.generation import generation_bytes
from toa_trl.training.estimate.head import embeddings_bytes, head_bytes
from toa_trl.training.estimate.sizes import (
    FLOAT32,
    Memory,
    Shape,
    Sharding,
    Training,
    compute_bytes,
    residual_bytes,
)

# DeepSpeed's max_live_parameters, reduce_bucket_size and sub_group_size, in parameters
LIVE, BUCKET, SUB_GROUP = 10**9, 5 * 10**8, 10**9


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
        blocks = shape.num_layers * tokens * shape.hidden_size * residual_bytes(training, sharding)
    else:
        blocks = shape.num_layers * block
    head_forward, head_backward, head_gradient = head_bytes(shape, training, sharding)
    working = tokens * _working(shape, training, sharding)
    casts = _casts(shape, training, sharding)
    # a quantized layer is a matrix of the computing type while it works
    dequantized = compute_bytes(training) * shape.largest_linear if training.quantized_bytes else 0
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
            "dequantized": dequantized,
            "casts": _kept_casts(casts, training, shape),
        },
        "the first block's backward pass": {
            "gradients": gradients,
            "activations": block + working,
            "dequantized": dequantized,
            "casts": casts * shape.block_parameters / shape.num_parameters,
        },
        "the embeddings' backward pass": {
            "gradients": gradients,
            "embeddings": embeddings_bytes(shape, training, sharding),
        },
        "the optimizer's step": {"gradients": gradients, "step": _step(training, sharding)},
    }
    if training.generation is not None:
        sampling = generation_bytes(shape, training, sharding, training.generation)
        if training.generation.in_vllm and not training.generation.vllm_sleeps:
            kept["vLLM"] = sampling.pop("vLLM")
        idle = before if sharding.kind == "zero3" else 0.0
        moments["the sampling of completions"] = {
            "gradients": idle,
            "dequantized": dequantized,
            **sampling,
        }
    peak, parts = max(moments.items(), key=lambda moment: sum(moment[1].values()))
    return Memory({name: size for name, size in (kept | parts).items() if size}, peak, host)


def states(shape: Shape, training: Training, sharding: Sharding) -> tuple[dict[str, float], float]:
    """Return what is allocated all the time, with the gradients; and the part on the host."""
    trained = training.num_trained
    # the base of an adapter stays whole
    frozen = shape.num_parameters - (0 if training.lora_rank else trained)
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
        raised = sharding.kind == "fsdp2" and training.bf16
        in_float32 = raised or sharding.deepspeed or not training.bf16
        each = FLOAT32 if in_float32 else training.weight_bytes
        if training.lora_rank:
            each = training.adapter_bytes
        weights = (training.weight_bytes * frozen + each * trained) / of_weights
        gradients, optimizer = each * trained / of_gradients, 2 * each * trained / of_optimizer
    if training.quantized_bytes:
        is_16_bit = sharding.deepspeed and training.bf16
        whole = 2 if is_16_bit else training.weight_bytes
        weights -= (whole - training.quantized_bytes) * shape.linear_parameters / of_weights
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
        "reward model": training.reward_bytes,
        "gradients": gradients,
    }
    return kept | {"buffers": _buffers(shape, training, sharding)}, host


def _buffers(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return what is gathered for a pass, and the buffers for reducing gradients."""
    trained, parameters = training.num_trained, shape.num_parameters
    each = 2 if training.bf16 else FLOAT32
    if sharding.kind == "ddp":
        # buckets as large as the gradients, in addition (gradient_as_bucket_view is off)
        bucket = training.adapter_bytes if training.lora_rank else training.weight_bytes
        return float(bucket * trained)
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


def _casts(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the size of autocast's bfloat16 copies of the trained float32 weights."""
    if not training.bf16 or training.lora_rank or residual_bytes(training, sharding) == 2:
        return 0.0
    return 2.0 * training.num_trained


def _kept_casts(casts: float, training: Training, shape: Shape) -> float:
    """Return what the backward pass needs of the copies: with checkpointing those of one block."""
    share = shape.block_parameters / shape.num_parameters if training.checkpointing else 1.0
    return casts * share


def _kept(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the bytes per token that a block keeps for its backward pass.

    These are the inputs of operations that have a weight to train, or are not linear.
    """
    h, m, q, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
    each, residual = compute_bytes(training), residual_bytes(training, sharding)
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
    if training.quantized_bytes >= 1:
        # bitsandbytes' MatMul8bitLt keeps its input; its MatMul4Bit does not
        inputs += (2 * h + m) * each
    return norms + attention + inputs + each * (3 * m + 7 * training.lora_rank)


def _working(shape: Shape, training: Training, sharding: Sharding) -> float:
    """Return the bytes per token of the gradients in a block: of gate, silu, up and the stream."""
    each, residual = compute_bytes(training), residual_bytes(training, sharding)
    return 2 * shape.intermediate_size * each + shape.hidden_size * residual
