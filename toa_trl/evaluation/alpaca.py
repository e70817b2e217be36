"""AlpacaEval 2 by the `alpaca_eval` package, with any OpenAI-compatible server as the annotator.

Dubois et al. 2024, "Length-Controlled AlpacaEval". The package runs in a process of its own: it changes the root logger
and scikit-learn's configuration, and reads its servers and keys from the environment when it is imported.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import yaml

from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.utils.files import replace_text
from toa_trl.utils.registry import check_whole, construct

HUB_DATASET = "tatsu-lab/alpaca_eval"
GAMED = "df_gamed.csv"  # alpaca_eval 0.6.6 takes the difficulties of the instructions from it, too
TEMPLATE = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"  # asks for "m" or "M" and nothing else


@dataclass(frozen=True)
class Annotator:
    """The keys of an annotator's entry."""

    model: str  # as the server calls it
    base_url: str  # e.g. "http://localhost:8000/v1"
    api_key_env: str = (
        "OPENAI_API_KEY"  # environment variable that holds the key; the key itself is never written
    )
    logprobs: bool = True  # weigh by the probabilities of the verdict, as AlpacaEval 2 does; False reads the text alone
    max_concurrency: int = 16  # requests in flight

    def config(self) -> dict[str, Any]:
        """alpaca_eval's configuration: its weighted_alpaca_eval_gpt4_turbo, or the same prompt with the text read."""
        if self.logprobs:
            asked: dict[str, Any] = {
                "max_tokens": 1,
                "temperature": 1.0,
                "logprobs": True,
                "top_logprobs": 5,
            }
            parser = "logprob_parser"
            read: dict[str, Any] = {
                "numerator_token": "m",
                "denominator_tokens": ["m", "M"],
                "is_binarize": False,
            }
        else:  # room for what a reasoning model thinks; a verdict inside a longer text is not guessed
            asked, parser = {"max_tokens": 2048, "temperature": 0.0}, "regex_parser"
            verdict = r"\A(?:[\s\S]*</think>)?\W*{}\W*\Z"
            read = {"outputs_to_match": {1: verdict.format("m"), 2: verdict.format("M")}}
        server = {
            "model_name": self.model,
            "num_procs": self.max_concurrency,
            "requires_chatml": True,
        }
        return {
            "prompt_template": str(_package() / TEMPLATE),
            "fn_completions": "openai_completions",
            "completions_kwargs": {**server, **asked, "client_kwargs": {"max_retries": 5}},
            "completion_key": "completions_all" if self.logprobs else "completions",
            "fn_completion_parser": parser,
            "completion_parser_kwargs": read,
            "batch_size": 1,
        }


def run_alpaca_eval(
    name: str,
    instructions: Sequence[str],
    outputs: Sequence[str],
    baseline_name: str,
    baseline_outputs: Sequence[str],
    output_dir: str | Path,
    *,
    annotator: Mapping[str, Any],
    datasets: Sequence[str] | None = None,
    length_control: str | Path | None = None,
    max_instances: int | None = None,
) -> dict[str, Any]:
    """The win rate of a model's outputs against a baseline's.

    Called again with the same folder, it asks only for the annotations that are missing or could not be read; another
    annotator, or other outputs, are told apart there.

    Args:
        name: of the model, as the files in the folder call it.
        instructions: the prompts. For a length-controlled figure all 805 of AlpacaEval, in its order.
        outputs: of the model, one for each instruction.
        baseline_name: of the baseline; the leaderboard's is gpt4_1106_preview, and its length control was made for it.
        baseline_outputs: one for each instruction.
        output_dir: for the outputs, the annotator's configuration, the annotations, and alpaca_eval.log.
        annotator: the keys of `Annotator`.
        datasets: which part of AlpacaEval each instruction is from, where it is known.
        length_control: folder with df_gamed.csv; without it the Hub's cache on this machine is looked at.
        max_instances: judge only so many, drawn with alpaca_eval's own seed.

    Returns:
        baseline, annotator (model), win_rate (share in [0, 1], identical outputs and even odds half), interval (95 %
        bootstrap), standard_error, length_controlled_win_rate with length_controlled_standard_error or a note why they
        are missing, num_wins, num_ties, num_losses, num_failed (annotations that could not be read; they count nowhere),
        mean_length and baseline_mean_length (characters).

    Raises:
        ConfigError: alpaca_eval is not installed, an unknown key, no instruction, or not one output for each.
        RewardError: the annotator failed, or none of its annotations could be read.
    """
    judge = construct("annotator", Annotator, params=annotator)
    check_whole("annotator: max_concurrency", judge.max_concurrency, 1)
    if not str(judge.base_url).startswith(("http://", "https://")):
        raise ConfigError(
            f"annotator: base_url must begin with http:// or https://, not {judge.base_url!r}"
        )
    lengths = {
        len(each)
        for each in (instructions, outputs, baseline_outputs, *([datasets] if datasets else []))
    }
    if lengths != {len(instructions) or 1}:
        raise ConfigError(
            f"alpaca_eval: {len(instructions)} instructions, {len(outputs)} outputs of {name}, "
            f"{len(baseline_outputs)} of {baseline_name}; one of each is needed for every instruction"
        )
    if max_instances is not None:
        check_whole("alpaca_eval: max_instances", max_instances, 1)
    folder = Path(output_dir).resolve()
    (folder / "annotator").mkdir(parents=True, exist_ok=True)
    # the name tells cached annotations apart
    style = "logprobs" if judge.logprobs else "text"
    config = yaml.safe_dump({f"{judge.model} ({style})": judge.config()}, allow_unicode=True)
    replace_text(folder / "annotator/configs.yaml", config)
    for file, generator, texts in (
        ("model", name, outputs),
        ("reference", baseline_name, baseline_outputs),
    ):
        rows = [
            {"instruction": _plain(instruction), "output": _plain(text), "generator": generator}
            for instruction, text in zip(instructions, texts, strict=True)
        ]
        for row, dataset in zip(rows, datasets or [], strict=False):
            row["dataset"] = dataset
        replace_text(folder / f"{file}_outputs.json", json.dumps(rows, indent=2))
    if max_instances is not None and max_instances >= len(instructions):
        max_instances = None  # alpaca_eval would shuffle them all the same
    measured = _run(folder, judge, max_instances=max_instances, gamed=_gamed(length_control))
    preferences = [each for each in measured.pop("preferences") if each is not None]
    return {
        "baseline": baseline_name,
        "annotator": judge.model,
        "interval": bootstrap(preferences),
        **measured,
    }


def _package() -> Path:
    """Where alpaca_eval is; importing it takes a second, and has effects."""
    found = find_spec("alpaca_eval")
    if found is None or found.origin is None:
        raise ConfigError("alpaca_eval is not installed; pip install 'toa_trl[eval]'")
    return Path(found.origin).parent


def _plain(text: str) -> str:
    """Without surrogates, which no request can carry, and without the marks at which alpaca_eval would cut the text."""
    return text.encode(errors="replace").decode().replace("<|im_", "<| im_")


def _gamed(folder: str | Path | None) -> str | None:
    """The file that length control needs.

    Raises:
        ConfigError: it is not in the folder that was named.
    """
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(HUB_DATASET, GAMED, repo_type="dataset")
        return cached if isinstance(cached, str) else None
    path = Path(folder).resolve() / GAMED
    if not path.is_file():
        raise ConfigError(
            f"alpaca_eval: no {GAMED} in {folder}; it is a file of the Hub's data set {HUB_DATASET}"
        )
    return str(path)


def _run(folder: Path, judge: Annotator, **options: Any) -> dict[str, Any]:
    """Run `_evaluate` in a process of its own."""
    environment = {
        **os.environ,
        "OPENAI_API_BASE": judge.base_url,
        "OPENAI_API_KEYS": os.environ.get(judge.api_key_env) or "none",
        "OPENAI_CLIENT_CONFIG_PATH": "",  # one of the user's would go before these two
        "HF_HUB_OFFLINE": "1",  # what it needs is here
    }
    log, metrics = folder / "alpaca_eval.log", folder / "metrics.json"
    metrics.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, json.dumps({"folder": str(folder), **options})]
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        )
    measured = (
        json.loads(metrics.read_text(encoding="utf-8"))
        if metrics.is_file()
        else {"error": "it was ended"}
    )
    if "error" in measured:
        raise RewardError(
            f"alpaca_eval: the annotator {judge.model} at {judge.base_url}: {measured['error']}; "
            f"the annotations so far are kept, and the same call goes on; the whole story is in {log}"
        )
    return cast(dict[str, Any], measured)


def _evaluate(folder: str, max_instances: int | None, gamed: str | None) -> dict[str, Any]:
    """What the process does, from the files in the folder."""
    if (
        find_spec("pkg_resources") is None
    ):  # alpaca_eval 0.6.6 asks it for versions; setuptools 82 is without it
        from packaging.version import parse

        sys.modules["pkg_resources"] = cast(
            ModuleType,
            SimpleNamespace(
                parse_version=parse,
                get_distribution=lambda name: SimpleNamespace(version=metadata.version(name)),
            ),
        )
    import pandas
    from alpaca_eval import evaluate
    from alpaca_eval.annotators import PairwiseAnnotator
    from alpaca_eval.metrics import get_winrate, glm_winrate

    class Cached(PairwiseAnnotator):  # type: ignore[misc]  # alpaca_eval is untyped here
        df_annotations: Any

        def save(self, path: Any = None) -> None:
            super().save(f"{self.caching_path}.new")
            os.replace(
                f"{self.caching_path}.new", self.caching_path
            )  # killed at any moment, there is a whole file

        def load_(self, path: Any = None) -> None:
            super().load_(path)
            if self.df_annotations is not None:  # those that could not be read are asked for again
                failed = self.df_annotations[self.annotation_key] == self.TMP_MISSING_ANNOTATION
                self.df_annotations = self.df_annotations[~failed]

    def measure(annotations: list[dict[str, Any]]) -> dict[str, Any]:
        if all(pandas.isna(row["preference"]) for row in annotations):
            raise ValueError(
                "none of its annotations could be read; where it gives no logprobs, logprobs: false is needed"
            )
        if gamed is None:
            why = f"{GAMED} was not found; fetch it by: hf download --repo-type dataset {HUB_DATASET} {GAMED}"
        elif (whole := pandas.read_csv(gamed)["index"].nunique()) != len(annotations):
            why = f"it is made for AlpacaEval's {whole} instructions in their order, these are {len(annotations)}"
        else:
            glm_winrate.hf_hub_download = lambda **_: gamed
            try:
                return dict(
                    glm_winrate.get_length_controlled_winrate(annotations, save_weights_dir=None)
                )
            except ValueError as error:  # e.g. all pairs differ by the same length
                why = f"its model could not be fitted: {error}"
        return {**get_winrate(annotations), "note": f"no length-controlled win rate: {why}"}

    rows = {
        part: json.loads(Path(folder, f"{part}_outputs.json").read_text())
        for part in ("model", "reference")
    }
    board, annotations = evaluate(
        model_outputs=rows["model"],
        reference_outputs=rows["reference"],
        annotators_config=Path(folder, "annotator"),
        output_path=folder,  # leaderboard.csv and annotations.json
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
        fn_metric=measure,
        sort_by="win_rate",
        max_instances=max_instances,
        annotation_kwargs={"is_ordered": True},  # two rows may have the same instruction
        Annotator=Cached,
    )
    found = board.iloc[0].to_dict()
    table = pandas.DataFrame(annotations)
    preferences = [float(each) - 1 for each in table["preference"].astype(float)]  # 1 is a win
    controlled = found.get("length_controlled_winrate")
    return {
        "win_rate": found["win_rate"] / 100,
        "standard_error": found["standard_error"] / 100,
        **(
            {"note": found["note"]}
            if controlled is None
            else {
                "length_controlled_win_rate": controlled / 100,
                "length_controlled_standard_error": found["lc_standard_error"] / 100,
            }
        ),
        "num_wins": int(found["n_wins"]),
        "num_ties": int(found["n_draws"]),
        "num_losses": int(found["n_wins_base"]),
        "num_failed": len(table) - int(found["n_total"]),
        "mean_length": table["output_2"].str.len().mean(),
        "baseline_mean_length": table["output_1"].str.len().mean(),
        "preferences": [None if each != each else each for each in preferences],
    }


def _main(folder: str, **options: Any) -> None:
    try:
        result = _evaluate(folder, **options)
    except Exception as error:
        logging.exception("alpaca_eval failed")
        result = {"error": f"{type(error).__name__}: {error}"}
    replace_text(Path(folder, "metrics.json"), json.dumps(result))


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
