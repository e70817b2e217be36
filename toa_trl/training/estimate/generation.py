"""Memory of sampling completions for GRPO and RLOO on the devices of the training. Pure arithmetic.

TRL 1.16 (trl/trainer/grpo_trainer.py, rloo_trainer.py) samples per_device_train_batch_size x
steps_per_generation completions at once, before the passes that learn from them:
- with transformers, in the trained model. Keys and values of all layers stay: 2 x layers x key size
  for each token (Pope et al., arXiv 2211.05102, section 3.3); transformers' DynamicCache makes a
  longer copy of a layer for every token. ZeRO-3 gathers all weights (ds3_gather_for_generation).
- with vLLM in the process (vllm_mode colocate), in a second copy of the model; vLLM reserves
  vllm_gpu_memory_utilization of the GPU for weights and cache, also while the model is trained,
  unless vllm_enable_sleep_mode is on.
- with a vLLM server on other devices: nothing here.
"""

from toa_trl.training.estimate.sizes import (
    FLOAT32,
    Generation,
    Shape,
    Sharding,
    Training,
    compute_bytes,
    residual_bytes,
)

NUM_LOGITS = 4  # float32 copies of the last token's logits: as returned, processed, softmax, sorted


def cache_bytes(shape: Shape, num_sequences: int, length: int, each: int) -> float:
    """Return the size of keys and values of sequences in all layers."""
    return 2.0 * shape.num_layers * shape.key_size * num_sequences * length * each


def vllm_bytes(shape: Shape, training: Training, generation: Generation) -> float:
    """Return what vLLM reserves: at least bfloat16 weights, and the cache of all sequences."""
    cache = cache_bytes(shape, generation.num_sequences, generation.length, 2)
    needed = (2.0 * shape.num_parameters + cache) / generation.vllm_devices
    return max(needed, generation.vllm_share * (training.device_bytes or 0.0))


def generation_bytes(
    shape: Shape, training: Training, sharding: Sharding, generation: Generation
) -> dict[str, float]:
    """Return the parts that are allocated while completions are sampled."""
    if generation.in_vllm:
        return {"vLLM": vllm_bytes(shape, training, generation)}
    each, residual = compute_bytes(training), residual_bytes(training, sharding)
    number, h, m = generation.num_sequences, shape.hidden_size, shape.intermediate_size
    # rotary embeddings of a float32 stream make keys and values float32
    cache = cache_bytes(shape, number, generation.length, residual)
    # a longer copy of a layer's keys or values, and both repeated for every query head
    of_layer = 2.0 * number * generation.length * shape.query_size * residual
    of_layer += cache / shape.num_layers / 2
    prompt = float(number * training.prompt_length * (3 * m * each + 4 * h * residual))
    logits = float(NUM_LOGITS * number * shape.vocab_size * FLOAT32)
    parts = {"cache": cache, "activations": max(of_layer + logits, prompt)}
    if sharding.kind == "zero3":
        parts["gathered"] = float(each * shape.num_parameters)
    return parts
