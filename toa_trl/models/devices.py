"""GPUs: which exist, which a process may see, and how their memory is given back.

Torch is imported when it is needed.
"""

import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from toa_trl.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def num_accelerators() -> int:
    """Return the number of GPUs, or other accelerators, that this process can see."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def check_device(place: str, device: str | None) -> None:
    """Check that a device such as "cuda:1" exists.

    Args:
        place: what the error messages begin with.
        device: name for torch; None and "auto" leave the choice to the loader.

    Raises:
        ConfigError: torch does not know the name, or there is no such device.
    """
    if device in (None, "auto", "cpu"):
        return
    import torch

    try:
        wanted = torch.device(str(device))
    except RuntimeError as error:
        raise ConfigError(
            f"{place}: device {device!r} is not known; for example cpu, cuda or cuda:1"
        ) from error
    accelerator = torch.accelerator.current_accelerator() if num_accelerators() else None
    kind = accelerator.type if accelerator else "cpu"
    existing = [f"{kind}:{number}" for number in range(num_accelerators())]
    if wanted.type != kind or (wanted.index or 0) >= max(len(existing), 1):
        raise ConfigError(
            f"{place}: device {device!r} does not exist; this process sees "
            f"{', '.join(existing) or 'no GPU'}"
        )


def check_gpus(place: str, device: str | None) -> list[int]:
    """Return the numbers of the GPUs in "cuda:1", or "cuda:0,1" for several.

    Returns:
        Nothing for None and "cpu".

    Raises:
        ConfigError: the name has another form, or there is no such GPU.
    """
    if device in (None, "cpu"):
        return []
    found = re.fullmatch(r"cuda:(\d+(?:,\d+)*)", str(device))
    numbers = [int(number) for number in found[1].split(",")] if found else []
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"{place}: device must be a GPU such as cuda:1, or different ones such as cuda:0,1, "
            f"not {device!r}"
        )
    for number in numbers:
        check_device(place, f"cuda:{number}")
    return numbers


@contextmanager
def only_gpus(numbers: list[int]) -> Iterator[None]:
    """Let processes that start meanwhile see only these GPUs; without numbers, all as before."""
    before = os.environ.get(VISIBLE)
    if numbers:
        seen = before.split(",") if before else []
        os.environ[VISIBLE] = ",".join(seen[n] if seen else str(n) for n in numbers)
    try:
        yield
    finally:
        if numbers and before is None:
            del os.environ[VISIBLE]
        elif numbers:
            os.environ[VISIBLE] = str(before)


def free_memory() -> None:
    """Give back the memory of models that nothing refers to any more, on GPUs too."""
    gc.collect()  # a model and its queue refer to one another
    if torch := sys.modules.get("torch"):  # only where models ran in this process
        torch.cuda.empty_cache()
