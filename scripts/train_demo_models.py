"""Train the models of the bundled world again, and compare them with the shipped ones.

    python scripts/train_demo_models.py [--output runs/demo-models]

Ten to fifteen minutes on one core. Scores differ a little from machine to machine, as floats do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from toa_trl.demo.train import WEIGHTS, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo-models"), help="folder of the trained models"
    )
    output = parser.parse_args().output
    torch.set_num_threads(1)
    shipped = json.loads(
        (WEIGHTS / "scores.json").read_text(encoding="utf-8")
    )  # before: output may be that folder
    scores = train(output)
    print(f"\n{'':32}trained  shipped")
    for model, figures in scores.items():
        for figure, score in figures.items():
            print(
                f"{model + ' ' + figure:32}{score:7.3f}  "
                f"{shipped.get(model, {}).get(figure, float('nan')):7.3f}"
            )
    print(f"\nThe models are in {output}.")


if __name__ == "__main__":
    main()
