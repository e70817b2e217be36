"""Write the selected responses of a run as alpaca_eval and Arena-Hard read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import toa_trl
from toa_trl.cli.arguments import Parser
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.types import Prompt, Rollout
from toa_trl.utils.config import PositiveInt, validate
from toa_trl.utils.escape import say
from toa_trl.utils.files import write_json, write_json_lines
from toa_trl.utils.targets import check_file, check_has_journal


def alpaca_eval_rows(selected: list[tuple[Prompt, str]], name: str) -> list[dict[str, Any]]:
    """Return the rows of model_outputs.json of alpaca_eval.

    Args:
        selected: prompts with their responses.
        name: name of the system.
    """
    rows = []
    for prompt, response in selected:
        row = {"instruction": prompt.messages[-1].content, "output": response, "generator": name}
        if "dataset" in prompt.metadata:
            row["dataset"] = prompt.metadata["dataset"]
        rows.append({**row, "toa_trl": toa_trl.__version__})
    return rows


def arena_hard_rows(selected: list[tuple[Prompt, str]], name: str) -> list[dict[str, Any]]:
    """Return the lines of model_answer/<name>.jsonl of Arena-Hard-Auto v0.1.

    Args:
        selected: prompts with their responses; question_id is the column of that name, or the id.
        name: name of the system.
    """
    rows = []
    for prompt, response in selected:
        question_id = str(prompt.metadata.get("question_id", prompt.id))
        turn = {"content": response, "token_len": len(response.split())}
        rows.append(
            {
                "question_id": question_id,
                "answer_id": f"{name}-{question_id}",
                "model_id": name,
                "choices": [{"index": 0, "turns": [turn]}],
                "tstamp": 0.0,
                "toa_trl": toa_trl.__version__,
            }
        )
    return rows


FORMATS: dict[str, Callable[[list[tuple[Prompt, str]], str], list[dict[str, Any]]]] = {
    "alpaca_eval": alpaca_eval_rows,
    "arena_hard": arena_hard_rows,
}


def main() -> None:
    """Convert the selected responses of a run.

    Raises:
        ConfigError: the folder is not a run, a prompt has no response, or the file is not ours.
    """
    parser = Parser(description=f"{__doc__} The best response of each prompt is selected.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--name", help="name of the system (default: that of the run's folder)")
    parser.add_argument(
        "--num_plays",
        type=int,
        metavar="N",
        help="select among the first N scored plays (default: all)",
    )
    options = parser.parse_args()
    validate(PositiveInt | None, options.num_plays, "--num_plays")
    check_has_journal(options.run)
    check_file(options.output, "--output", is_converted)
    selected = select(Rollouts.load(options.run), options.num_plays)
    name = options.name or options.run.resolve().name
    rows = FORMATS[options.to](selected, name)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.to == "alpaca_eval":
        write_json(options.output, rows, indent=1, ensure_ascii=False)
    else:
        write_json_lines(options.output, rows)
    say(f"{options.output} is written: {len(rows)} responses of {name}")


def select(rollouts: Iterable[Rollout], num_plays: int | None) -> list[tuple[Prompt, str]]:
    """Return each prompt with its best response.

    Args:
        rollouts: of the run.
        num_plays: only the first so many scored plays; None: all.

    Raises:
        ConfigError: a prompt has no scored play.
    """
    selected, without = [], []
    for rollout in rollouts:
        response = _best(rollout.first(num_plays))
        if response is None:
            without.append(rollout.prompt.id)
        else:
            selected.append((rollout.prompt, response))
    if without or not selected:
        raise ConfigError(
            f"{len(without)} prompts have no scored play, as {without[0]!r}: a benchmark needs a "
            "response to each; repeat the synthesize command to retry them"
            if without
            else "the run has no prompts yet"
        )
    return selected


def is_converted(path: Path) -> bool:
    """Return whether this command wrote a file."""
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        row = json.loads(first + rest)[0] if first == "[" else json.loads(first)
    except (OSError, ValueError, LookupError):
        return False
    return isinstance(row, dict) and "toa_trl" in row


def _best(rollout: Rollout) -> str | None:
    for play in rollout.ranked:
        if play.completion is not None:
            return play.completion.text
    return None
