"""Train the large agent of the world with costs (bench_allocation.py --costs).

    python scripts/train_allrounder.py [--output runs/allrounder]

Twenty minutes on one core. The agent has four times the parameters of the bundled agents and is at
every operation as good as the specialist of that operation. It starts from the bundled base model,
twice as wide, so that its training is as short as theirs. It is not part of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from toa_trl.demo.train import WEIGHTS, fit_agent, measure, save
from toa_trl.demo.world import Skill

ALLROUNDER = Skill(dict.fromkeys("+-*", 0.68))


@torch.no_grad()
def widened(model: Any, noise: float = 0.05) -> LlamaForCausalLM:
    """Return a Llama model of twice the width that computes nearly the same.

    Every unit stands twice, and each half of a sum counts half (Net2WiderNet, arXiv 1511.05641).

    Args:
        model: with tied embeddings.
        noise: standard deviation of the weights' noise in proportion to theirs; without any, both
            copies of a unit would stay equal for ever.
    """
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    old = model.config.to_dict()
    wide = LlamaForCausalLM(LlamaConfig(**{**old, **{name: 2 * old[name] for name in sizes}}))
    targets = dict(wide.named_parameters())
    for name, weight in model.named_parameters():
        if "embed" in name:
            value = weight.repeat(1, 2)
        elif weight.ndim == 2:
            value = weight.repeat(2, 2) / 2
            value += noise * value.std() * torch.randn_like(value)
        else:
            value = weight.repeat(2)
        targets[name].copy_(value)
    wide.model.norm.weight /= 2  # each logit is a sum over twice as many units
    return wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/allrounder"))
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
    model = save(fit_agent(widened(base), "allrounder", ALLROUNDER), output)
    for figure, score in measure(model).items():
        print(f"{figure:16}{score:7.3f}")


if __name__ == "__main__":
    main()
