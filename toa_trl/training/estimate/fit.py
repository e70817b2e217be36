"""What fits a device's memory: the largest batch, or changes that make one fit. Pure arithmetic."""

from collections.abc import Iterator
from dataclasses import replace

from toa_trl.training.estimate.memory import estimate
from toa_trl.training.estimate.sizes import Shape, Sharding, Training


def largest_batch(
    shape: Shape, plan: Training, sharding: Sharding, room: float, share: int, per_row: int
) -> int:
    """Return the largest batch that fits and divides a step; 0 if not even one row fits.

    Args:
        shape: of the model.
        plan: of the training.
        sharding: of its states.
        room: bytes that are available.
        share: rows of one device in a step, over all its passes.
        per_row: sequences of a row; two for pairs.
    """
    for batch in range(share, 0, -1):
        if share % batch == 0:
            tried = replace(plan, num_sequences=batch * per_row, accumulates=batch < share)
            if estimate(shape, tried, sharding).total <= room:
                return batch
    return 0


def remedies(shape: Shape, plan: Training, sharding: Sharding) -> Iterator[tuple[str, float]]:
    """Yield changes of the options, each with the bytes at the peak that it leads to."""

    def size(*, spread: Sharding = sharding, **changes: object) -> float:
        return estimate(shape, replace(plan, **changes), spread).total  # type: ignore[arg-type]

    if not plan.checkpointing:
        yield "--gradient_checkpointing True", size(checkpointing=True)
    if plan.has_reference and not plan.prompt_length:
        yield "--precompute_ref_log_probs True", size(has_reference=False)
    option = "max_completion_length" if plan.prompt_length else "max_length"
    for part in (2, 4):
        limit = (plan.length - plan.prompt_length) // part
        length, sampled = plan.prompt_length + limit, plan.generation
        if sampled is not None:
            sampled = replace(sampled, length=length)
        yield f"--{option} {limit}", size(length=length, generation=sampled)
    if plan.generation is not None and plan.generation.in_vllm:
        yield (
            "--vllm_enable_sleep_mode True",
            size(generation=replace(plan.generation, vllm_sleeps=True)),
        )
    if plan.quantized_bytes:
        return  # it is not spread, and has an adapter
    if sharding.num_devices > 1 and sharding.kind != "zero3":
        yield "accelerate_configs/zero3.yaml", size(spread=replace(sharding, kind="zero3"))
    if not sharding.offload_weights:
        offload = Sharding("zero3", sharding.num_devices, True, True)
        yield "accelerate_configs/zero3_offload.yaml", size(spread=offload)
    if not plan.lora_rank:
        h, m, q, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
        adapter = 16 * shape.num_layers * (3 * (h + m) + 2 * (h + q) + 2 * (h + k))
        yield (
            "--use_peft True --lora_r 16 --lora_target_modules all-linear --dtype bfloat16",
            size(
                num_trained=adapter,
                lora_rank=16,
                weight_bytes=2,
                has_reference=False,
                checkpointing=True,
            ),
        )
