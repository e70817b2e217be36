"""AlpacaEval 2 by the `alpaca_eval` package, with any OpenAI-compatible server as the annotator.

Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475. The package needs an old
setuptools and configures logging and scikit-learn when it is imported, so it runs in an environment
of its own, which scripts/alpaca_environment makes.
"""

import csv
import json
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator

from toa_trl.agents.completions import whole_text
from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation import alpaca_process
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.utils.config import Config, PositiveInt, Text
from toa_trl.utils.files import replace_text
from toa_trl.utils.targets import check_folder, check_ours

# in the folder of a model, beside annotator/configs.yaml
WRITTEN = ("model_outputs.json", "reference_outputs.json", "annotations.json", "leaderboard.csv")
HUB_DATASET = "tatsu-lab/alpaca_eval"
GAMED = "df_gamed.csv"  # lengths and difficulties that the length control is fitted with
# asks for "m" or "M" and nothing else
TEMPLATE = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
# where alpaca_eval is, without importing it
LOCATE = "from importlib.util import find_spec; print(find_spec('alpaca_eval').origin)"


def _http_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url


class Annotator(Config):
    """The model that compares two outputs."""

    model: Text
    """Name of the model on the server."""
    base_url: Annotated[str, AfterValidator(_http_url)]
    """URL of the server, such as "http://localhost:8000/v1"."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written."""
    logprobs: bool = True
    """Weigh by the verdict's probabilities, as AlpacaEval 2 does; false reads the text alone."""
    max_concurrency: PositiveInt = 16
    """Requests in flight."""

    @property
    def alpaca_eval_name(self) -> str:
        """Name of the annotator in alpaca_eval, which tells its cached annotations from others."""
        return f"{self.model} ({'logprobs' if self.logprobs else 'text'})"

    def alpaca_eval_config(self) -> dict[str, Any]:
        """Return the annotator as alpaca_eval configures it, without the template.

        With logprobs it is alpaca_eval's weighted_alpaca_eval_gpt4_turbo; else the same prompt, and
        the verdict is read from the text.
        """
        request: dict[str, Any] = {
            "model_name": self.model,
            "num_procs": self.max_concurrency,
            "requires_chatml": True,
            "client_kwargs": {"max_retries": 5},
        }
        if self.logprobs:
            request |= {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
            parser: dict[str, Any] = {
                "numerator_token": "m",
                "denominator_tokens": ["m", "M"],
                "is_binarize": False,
            }
        else:
            request |= {"max_tokens": 2048, "temperature": 0.0}  # room for reasoning
            verdict = r"\A(?:[\s\S]*</think>)?\W*{}\W*\Z"  # the whole answer, nothing is guessed
            parser = {"outputs_to_match": {1: verdict.format("m"), 2: verdict.format("M")}}
        return {
            "fn_completions": "openai_completions",
            "completions_kwargs": request,
            "completion_key": "completions_all" if self.logprobs else "completions",
            "fn_completion_parser": "logprob_parser" if self.logprobs else "regex_parser",
            "completion_parser_kwargs": parser,
            "batch_size": 1,
        }


class AlpacaEvalConfig(Config):
    """Win rates by AlpacaEval 2."""

    annotator: Annotator
    """The model that compares two outputs: {model, base_url, ...}."""
    datasets: list[str] | None = None
    """The part of AlpacaEval that each instruction belongs to."""
    length_control: str | None = None
    """Folder with df_gamed.csv; by default the Hub's cache on this machine is used."""
    max_instances: PositiveInt | None = None
    """Judge only this many instructions, drawn with alpaca_eval's own seed."""
    python: Text = ".venv-alpaca/bin/python"
    """Python of an environment with alpaca_eval; scripts/alpaca_environment makes the default."""


def run_alpaca_eval(
    name: str,
    instructions: Sequence[str],
    outputs: Sequence[str],
    baseline_name: str,
    baseline_outputs: Sequence[str],
    output_dir: str | Path,
    config: AlpacaEvalConfig,
) -> dict[str, Any]:
    """Return the win rate of a model's outputs against a baseline's.

    Called again with the same folder, it asks only for annotations that are missing or could not be
    read; annotations by another annotator or of other outputs are kept apart.

    Args:
        name: name of the model in the files.
        instructions: the prompts; a length-controlled rate needs AlpacaEval's 805, in its order.
        outputs: the model's, one for each instruction.
        baseline_name: name of the baseline. The leaderboard's is gpt4_1106_preview, for which the
            length control was made.
        baseline_outputs: the baseline's, one for each instruction.
        output_dir: folder for outputs, annotations and alpaca_eval.log.
        config: annotator and options.

    Returns:
        baseline, annotator (model), win_rate (share in [0, 1]; identical outputs and even odds
        count half), interval (95 % bootstrap), standard_error, length_controlled_win_rate and
        length_controlled_standard_error, or a note why they are missing, num_wins, num_ties,
        num_losses, num_failed (unreadable annotations, which count nowhere), mean_length and
        baseline_mean_length (characters).

    Raises:
        ConfigError: alpaca_eval is not installed, or instructions and outputs differ in number.
        RewardError: the annotator failed, or none of its annotations could be read.
    """
    counts = {len(outputs), len(baseline_outputs), len(config.datasets or instructions)}
    if not instructions or counts != {len(instructions)}:
        raise ConfigError(
            f"alpaca_eval: {len(instructions)} instructions, {len(outputs)} outputs of {name}, "
            f"{len(baseline_outputs)} of {baseline_name}; every instruction needs one of each"
        )
    annotator, folder = config.annotator, Path(output_dir).resolve()
    settings = annotator.alpaca_eval_config() | {"prompt_template": _template(config.python)}
    max_instances = config.max_instances
    if max_instances is not None and max_instances >= len(instructions):
        max_instances = None  # alpaca_eval would shuffle them all the same
    num_judged = max_instances or len(instructions)
    gamed, note = _find_length_control(config.length_control, num_judged)
    check_folder(folder, "output_dir")
    if not (folder / "annotator/configs.yaml").is_file():
        check_ours({folder / name: lambda path: False for name in WRITTEN})
    (folder / "annotator").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({annotator.alpaca_eval_name: settings}, allow_unicode=True)
    replace_text(folder / "annotator/configs.yaml", text)
    for part, generator, texts in (
        ("model", name, outputs),
        ("reference", baseline_name, baseline_outputs),
    ):
        rows = _rows(instructions, texts, generator, config.datasets)
        replace_text(folder / f"{part}_outputs.json", json.dumps(rows, indent=2))
    _run(folder, config, gamed, max_instances)
    return _read_results(folder, annotator, baseline_name, note)


def _template(python: str) -> str:
    """Return the path of the annotator's prompt in the environment of alpaca_eval.

    Raises:
        ConfigError: there is no such environment, or it lacks alpaca_eval.
    """
    remedy = "scripts/alpaca_environment makes .venv-alpaca with it"
    try:
        done = subprocess.run(
            [python, "-I", "-c", LOCATE], capture_output=True, text=True, check=True
        )
    except OSError as error:
        raise ConfigError(
            f"alpaca_eval.python: {python!r} cannot be started ({error.strerror}); {remedy}"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"alpaca_eval.python: alpaca_eval is not installed for {python!r}; {remedy}"
        ) from error
    return str(Path(done.stdout.strip()).parent / TEMPLATE)


def _find_length_control(folder: str | None, num_instructions: int) -> tuple[Path | None, str]:
    """Return the file that length control needs, or None and why there is no length control.

    Raises:
        ConfigError: the file is not in the folder that was named.
    """
    if folder is not None:
        path = Path(folder).resolve() / GAMED
        if not path.is_file():
            raise ConfigError(
                f"alpaca_eval.length_control: no {GAMED} in {folder}; it is a file of the Hub's "
                f"data set {HUB_DATASET}"
            )
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(HUB_DATASET, GAMED, repo_type="dataset")
        if not isinstance(cached, str):
            fetch = f"hf download --repo-type dataset {HUB_DATASET} {GAMED}"
            return None, f"{GAMED} was not found; fetch it by: {fetch}"
        path = Path(cached)
    with path.open(encoding="utf-8", newline="") as file:
        num_known = len({row["index"] for row in csv.DictReader(file)})
    if num_known != num_instructions:
        return None, (
            f"it is made for AlpacaEval's {num_known} instructions in their order, "
            f"these are {num_instructions}"
        )
    return path, ""


def _rows(
    instructions: Sequence[str],
    texts: Sequence[str],
    generator: str,
    datasets: Sequence[str] | None,
) -> list[dict[str, str]]:
    rows = []
    for number, (instruction, text) in enumerate(zip(instructions, texts, strict=True)):
        row = {"instruction": _plain(instruction), "output": _plain(text), "generator": generator}
        if datasets is not None:
            row["dataset"] = datasets[number]
        rows.append(row)
    return rows


def _plain(text: str) -> str:
    """Return the text without surrogates and the marks at which alpaca_eval would cut it."""
    return whole_text(text).replace("<|im_", "<| im_")


def _run(
    folder: Path, config: AlpacaEvalConfig, gamed: Path | None, max_instances: int | None
) -> None:
    """Run `alpaca_process` in the environment of alpaca_eval.

    Raises:
        RewardError: it failed.
    """
    annotator = config.annotator
    environment = {
        **os.environ,
        "OPENAI_API_BASE": annotator.base_url,
        "OPENAI_API_KEYS": os.environ.get(annotator.api_key_env) or "none",
        "OPENAI_CLIENT_CONFIG_PATH": "",  # a user's own would override these two
        "HF_HUB_OFFLINE": "1",  # all it needs is on this machine
    }
    if gamed is not None:  # a cache of the Hub that holds this file alone
        cache = folder / "hub"
        repository = cache / f"datasets--{HUB_DATASET.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs/main").write_text("local")
        (repository / "snapshots/local").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(gamed, repository / "snapshots/local" / GAMED)
        environment["HF_HUB_CACHE"] = str(cache)
    options = {"length_control": gamed is not None, "max_instances": max_instances}
    log, figures = folder / "alpaca_eval.log", folder / "annotations.json"
    figures.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [config.python, alpaca_process.__file__, str(folder), json.dumps(options)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        )
    if done.returncode or not figures.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no output")
        raise RewardError(
            f"alpaca_eval: the annotator {annotator.model} at {annotator.base_url}: {reason}; "
            f"the annotations so far are kept, and the same call resumes; details are in {log}"
        )


def _read_results(
    folder: Path, annotator: Annotator, baseline_name: str, note: str
) -> dict[str, Any]:
    """Return the figures that alpaca_eval has left, see `run_alpaca_eval`."""
    rows = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    # alpaca_eval's 2 is a win of the second output, which is the model's
    shares = [row["preference"] - 1 for row in rows if row["preference"] is not None]
    with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        (figures,) = csv.DictReader(file)
    error = float(figures["standard_error"] or "nan")
    result: dict[str, Any] = {
        "baseline": baseline_name,
        "annotator": annotator.model,
        "interval": bootstrap(shares),
        "win_rate": float(figures["win_rate"]) / 100,
        "standard_error": None if math.isnan(error) else error / 100,
    }
    if "length_controlled_winrate" in figures:
        result["length_controlled_win_rate"] = float(figures["length_controlled_winrate"]) / 100
        result["length_controlled_standard_error"] = float(figures["lc_standard_error"]) / 100
    else:
        result["note"] = f"no length-controlled win rate: {figures.get('note') or note}"
    return result | {
        "num_wins": int(figures["n_wins"]),
        "num_ties": int(figures["n_draws"]),
        "num_losses": int(figures["n_wins_base"]),
        "num_failed": len(rows) - len(shares),
        "mean_length": mean(len(row["output_2"]) for row in rows),
        "baseline_mean_length": mean(len(row["output_1"]) for row in rows),
    }
