"""Train the better agent of the world with costs (bench_costs.py).

    python scripts/train_allrounder.py [--output runs/allrounder]

Five minutes on one core. The agent is a fork of the bundled base model, as the bundled agents are,
and at every operation as good as the specialist of that operation. It is as large as they are: a
model of four times the FLOPs learns the same in an hour. It is not part of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from toa_trl.demo.train import WEIGHTS, fit_agent, measure, save
from toa_trl.demo.world import Skill

ALLROUNDER = Skill(dict.fromkeys("+-*", 0.68))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/allrounder"))
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
    model = save(fit_agent(base, "allrounder", ALLROUNDER), output)
    for figure, score in measure(model).items():
        print(f"{figure:16}{score:7.3f}")


if __name__ == "__main__":
    main()
