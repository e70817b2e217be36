"""Run alpaca_eval on the files of one folder: a script for the environment of alpaca_eval.

`toa_trl.evaluation.alpaca` starts it by its path, so that nothing of toa_trl is imported here:

    .venv-alpaca/bin/python alpaca_process.py FOLDER OPTIONS

It reads model_outputs.json, reference_outputs.json and annotator/configs.yaml in the folder, keeps
the annotations in annotator/, and leaves leaderboard.csv and annotations.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, length_control: bool, max_instances: int | None) -> None:
    """Annotate what is not annotated yet, and write the figures.

    Args:
        folder: see above.
        length_control: also fit the length-controlled win rate; needs df_gamed.csv of the Hub.
        max_instances: number of instructions to judge; None for all.
    """
    import pandas
    from alpaca_eval import evaluate
    from alpaca_eval.annotators import PairwiseAnnotator
    from alpaca_eval.metrics import get_length_controlled_winrate, get_winrate

    class ResumableAnnotator(PairwiseAnnotator):  # type: ignore[misc]  # alpaca_eval is untyped
        """Keep a whole file of annotations whenever the process is killed; repeat failed ones."""

        df_annotations: Any

        def save(self, path: Any = None) -> None:
            fresh = f"{self.caching_path}.new"
            super().save(fresh)
            os.replace(fresh, self.caching_path)

        def load_(self, path: Any = None) -> None:
            super().load_(path)
            if self.df_annotations is not None:
                failed = self.df_annotations[self.annotation_key] == self.TMP_MISSING_ANNOTATION
                self.df_annotations = self.df_annotations[~failed]

    def metrics(annotations: list[dict[str, Any]]) -> dict[str, Any]:
        if all(pandas.isna(row["preference"]) for row in annotations):
            raise ValueError(
                "none of its annotations could be read; "
                "for a server without logprobs set logprobs: false"
            )
        if not length_control:
            return dict(get_winrate(annotations))
        try:
            return dict(get_length_controlled_winrate(annotations, save_weights_dir=None))
        except ValueError as error:  # such as: all pairs differ by the same length
            return {**get_winrate(annotations), "note": f"its model could not be fitted: {error}"}

    # lists, because pandas reads numbers that are texts in a file as numbers
    model, reference = (
        json.loads((folder / f"{part}_outputs.json").read_text(encoding="utf-8"))
        for part in ("model", "reference")
    )
    evaluate(
        model_outputs=model,
        reference_outputs=reference,
        annotators_config=folder / "annotator",
        output_path=folder,
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
        fn_metric=metrics,
        sort_by="win_rate",
        max_instances=max_instances,
        annotation_kwargs={"is_ordered": True},  # two rows may have the same instruction
        Annotator=ResumableAnnotator,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
