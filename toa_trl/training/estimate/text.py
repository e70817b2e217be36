"""The lines that `toa-trl estimate` prints."""

from collections.abc import Iterator
from dataclasses import replace

from toa_trl.training.estimate.fit import largest_batch, remedies
from toa_trl.training.estimate.sizes import GIB, Memory, Shape, Sharding, Training

USABLE = 0.9  # of a GPU's memory: CUDA's context, NCCL's buffers and fragmentation need the rest
KINDS = {"none": "", "ddp": ", DDP", "fsdp2": ", FSDP2"}


def readable(count: float) -> str:
    """Return a number in millions or billions, or a small one as it is."""
    if count < 1e5:
        return f"{count:,.0f}"
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def devices(sharding: Sharding, on_cpu: bool) -> str:
    """Return number and kind of the devices, such as "8 GPUs, ZeRO-3 with offload"."""
    text = KINDS.get(sharding.kind, f", ZeRO-{sharding.kind[-1]}")
    if sharding.offload_optimizer or sharding.offload_weights:
        text += " with offload"
    device, plural = ("CPU process", "es") if on_cpu else ("GPU", "s")
    number = sharding.num_devices
    return f"{number} {device}{'' if number == 1 else plural}{text}"


def memory_lines(memory: Memory, gpu_memory: float | None) -> Iterator[str]:
    """Yield a table of the parts of the memory, and whether their sum fits.

    Args:
        memory: at the peak.
        gpu_memory: GiB of each GPU; None: unknown.
    """
    unit, name = (GIB, "GiB") if memory.total >= GIB else (2**20, "MiB")
    yield f"| {name} on each | |"
    yield "| --- | ---: |"
    for part, size in memory.parts.items():
        yield f"| {part} | {size / unit:,.2f} |"
    yield f"| **at the peak, {memory.peak}** | **{memory.total / unit:,.2f}** |"
    if memory.host:
        yield f"| of the host's memory, for each | {memory.host / unit:,.2f} |"
    if gpu_memory is not None:
        fits = "Fits" if memory.total <= USABLE * gpu_memory * GIB else "Does not fit"
        yield f"\n{fits} {gpu_memory:g} GiB, of which {USABLE:.0%} are assumed to be usable."


def batch_lines(
    shape: Shape,
    plan: Training,
    sharding: Sharding,
    gpu_memory: float,
    global_batch: int,
    per_row: int,
) -> Iterator[str]:
    """Yield the largest batch that fits and keeps the global one, or changes that make one fit.

    Args:
        shape: of the model.
        plan: of the training.
        sharding: of its states.
        gpu_memory: GiB of each GPU.
        global_batch: rows of a step.
        per_row: sequences of a row.
    """
    available = USABLE * gpu_memory * GIB
    share, rest = divmod(global_batch, sharding.num_devices)
    if rest:
        yield (
            f"The global batch of {global_batch} cannot be divided among {sharding.num_devices} "
            "devices; change one of them."
        )
        return
    batch = largest_batch(shape, plan, sharding, available, share, per_row)
    if batch:
        yield (
            f"With a global batch of {global_batch} the largest that fits: "
            f"--per_device_train_batch_size {batch} --gradient_accumulation_steps {share // batch}"
        )
        return
    yield "Not even one row at a time fits. Each of these changes alone makes it fit:"
    smallest = replace(plan, num_sequences=per_row, accumulates=share > 1)
    helpful = [
        f"- {change}: {size / GIB:,.1f} GiB"
        for change, size in remedies(shape, smallest, sharding)
        if size <= available
    ]
    yield from helpful or ["- none that is known: use more or larger GPUs, or a smaller model"]
