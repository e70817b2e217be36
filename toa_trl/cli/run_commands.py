"""Commands on the folder of a run: they derive, show and share what it holds, without sampling."""

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import Parser
from toa_trl.data.preference import POLICIES
from toa_trl.data.recipes import choose_recipes
from toa_trl.errors import ConfigError
from toa_trl.hub.dataset_card import replace_audit
from toa_trl.hub.push import push_folder
from toa_trl.report.audit import FILE, card_section, is_audit, measure, read_audit
from toa_trl.report.audit.findings import describe_overlaps, warnings
from toa_trl.report.marker import is_report
from toa_trl.report.page import write_report
from toa_trl.rewards import make_reward
from toa_trl.rewards.calibration import calibrate as calibrate_reward
from toa_trl.rollouts import Rollouts, check_export
from toa_trl.sampling.journal import Recovered, recover
from toa_trl.sampling.merging import merge_runs
from toa_trl.sampling.status import print_status
from toa_trl.tasks.recorded import recorded_task
from toa_trl.types import Prompt
from toa_trl.utils.cards import is_card
from toa_trl.utils.escape import say
from toa_trl.utils.files import read_value
from toa_trl.utils.registry import load_object
from toa_trl.utils.targets import (
    check_complete,
    check_file,
    check_folder,
    check_has_journal,
    check_ours,
    exclusive,
)

DERIVED = "Write sft/, dpo/, rollouts/ and the card again, as in run.yaml unless overridden."


def data() -> None:
    """Derive the datasets of a run from its journal.

    Raises:
        ConfigError: the folder is not a run, or a value is out of range.
    """
    parser = _run_parser(DERIVED)
    add = parser.add_argument
    add("--output", type=Path, metavar="FOLDER", help="folder to write to (default: the run's)")
    add("--top_k", type=int, metavar="K", help="SFT rows per prompt (without run.yaml: 1)")
    add("--policy", choices=POLICIES, help="what the best response is paired with")
    add("--rejected_rank", type=_rank, metavar="RANK", help="a rank, or a fraction of N")
    add("--margin", type=float, help="minimum difference of rewards, with --policy margin")
    add("--keep_truncated", action=argparse.BooleanOptionalAction, help="keep truncated responses")
    add(
        "--decontaminate",
        nargs="*",
        metavar="FILE",
        help="drop what overlaps with these evaluation sets and those of run.yaml; without a file: "
        "drop nothing",
    )
    add(
        "--recipe",
        action="append",
        metavar="NAME[,NAME]",
        help="what makes the datasets: recipes of run.yaml, builders, or an entry "
        "'{builder: top_bottom, max_pairs: 8}'; repeatable",
    )
    add("--clean", metavar="FILTERS", help="filters, e.g. '{exact_duplicates: true}'; {}: none")
    add("--trust", action="store_true", help="run the code that run.yaml names")
    options = parser.parse_args()
    check_has_journal(options.run)
    output, rollouts = options.output or options.run, Rollouts.load(options.run)
    check_export(output, "--output" if options.output else "RUN")
    if (output / "journal.sqlite").exists() and not output.samefile(options.run):
        raise ConfigError(f"--output: {output} is the folder of another run; choose another folder")
    dropped = rollouts.save(output, **_save_arguments(options, rollouts.configuration))
    for name, reasons in dropped.items():
        for reason, count in reasons.most_common():
            say(f"{name}: {count} prompts give no row: {reason}")
    say(f"{output}: {', '.join(dropped)} are written")


def report() -> None:
    """Write the report of a run, a training or an evaluation."""
    parser = _run_parser("Write the report of a run again, of a training, or of results.json.")
    parser.add_argument("--results", type=Path, help="results.json of evaluate and compare")
    parser.add_argument("--output", type=Path, help="file to write (default: in the run's folder)")
    options = parser.parse_args()
    results = None
    if options.results:
        try:
            results = json.loads(options.results.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--results: {options.results} cannot be read: {error}") from error
    say(write_report(options.run, output=options.output, results=results))


def status() -> None:
    """Show the progress of a run, or of the stages of a pipeline."""
    parser = _run_parser("Show the progress of a run or pipeline, while it runs or afterwards.")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="repeat until the run ends")
    options = parser.parse_args()
    if any((options.run / name).is_file() for name in ("pipeline.json", "iteration.json")):
        load_object("status", "toa_trl.pipeline.status:print_status")(options.run, options.watch)
    else:
        print_status(options.run, options.watch)


def merge() -> None:
    """Join runs of one configuration over different prompts."""
    parser = Parser(
        description="Join runs of one configuration over different prompts into a new run."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder of the new run"
    )
    options = parser.parse_args()
    num_prompts, num_plays = merge_runs(options.runs, options.output)
    say(
        f"{options.output} has {num_prompts:,} prompts and {num_plays:,} plays; derive its "
        f"datasets with: toa-trl data {options.output}; to resume or extend it, synthesize with: "
        f"--prompts {options.output}/prompts.jsonl --output_dir {options.output}"
    )


def audit() -> None:
    """Look for signs of reward hacking, and for overlap with evaluation sets.

    Raises:
        ConfigError: the folder is not a run, or a file cannot be read or written.
    """
    parser = _run_parser("Look for signs of reward hacking, and for overlap with evaluation sets.")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="FILE",
        default=[],
        help="evaluation sets: JSONL, JSON or parquet",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, and nothing else (default: audit.json, report.html and README.md)",
    )
    options = parser.parse_args()
    run, output = options.run, options.output
    if output is not None:
        check_file(output, "--output", is_audit)
    else:
        check_complete(run)
        targets = {FILE: is_audit, "README.md": is_card, "report.html": is_report}
        check_folder(run, "RUN")
        check_ours({run / name: is_ours for name, is_ours in targets.items()})
    measured = measure(run, options.against)
    if not options.against and (run / FILE).is_file():  # an earlier finding is still true
        measured = replace(measured, contamination=read_audit(run).contamination)
    for line in (*warnings(measured), describe_overlaps(measured.contamination)):
        say(line)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        measured.write(output)
        say(f"{output} is written")
        return
    with exclusive(run):
        measured.write(run / FILE)
        if (run / "README.md").is_file():
            replace_audit(run / "README.md", card_section(measured))
    say(f"{run / FILE} is written; see {write_report(run)}")


def calibrate() -> None:
    """Print mean and standard deviation of a reward over responses of a run."""
    parser = _run_parser("Mean and standard deviation of a reward, for the kind weighted_sum.")
    parser.add_argument("--reward", required=True, help='its entry, e.g. "{kind: chrf}"')
    parser.add_argument(
        "--num_responses", type=int, default=1000, help="responses drawn (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the draw (default: 0)")
    parser.add_argument(
        "--trust", action="store_true", help="run the code of the task that run.yaml names"
    )
    options = parser.parse_args()
    entry = read_value("--reward", options.reward)
    rollouts = Rollouts.load(options.run)
    place = f"{options.run}/run.yaml"
    task = recorded_task(rollouts.configuration, rollouts.identity, options.trust, place)
    say(asyncio.run(_calibrate(rollouts, task.judged, entry, options.num_responses, options.seed)))


def recover_journal() -> None:
    """Save what is readable of a damaged journal."""
    options = _run_parser("Save what is readable of a damaged journal; then resume the run.")
    folder = options.parse_args().run
    say(_recovery_text(folder, recover(folder)))


def push() -> None:
    """Push the dataset of a run to the Hub."""
    parser = _run_parser("Push the dataset of a run to the Hub, or what is missing of it there.")
    parser.add_argument("repo_id", help="name on the Hub, e.g. me/my-data")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="visibility of a new dataset (default: hub_private_repo of run.yaml, or the owner's)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace any existing content")
    options = parser.parse_args()
    given = {"private": options.private, "overwrite": options.overwrite}
    say(push_folder(options.run, options.repo_id, **given))


def _run_parser(description: str) -> Parser:
    parser = Parser(description=description)
    parser.add_argument("run", type=Path, help="folder of the run")
    return parser


def _save_arguments(
    options: argparse.Namespace, configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `Rollouts.save`: those of run.yaml, overridden by the options."""

    def given(*names: str) -> dict[str, Any]:
        values = {name: getattr(options, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    sft = dict(configuration.get("sft") or {})
    pairs = dict(configuration.get("preference") or {})
    if options.policy not in (None, "margin"):
        pairs.pop("margin", None)  # valid with that policy only
    files = options.decontaminate
    if files != []:  # what was dropped because of the run's sets must not come back
        files = list(dict.fromkeys([*(configuration.get("decontaminate") or ()), *(files or ())]))
    return {
        "sft": sft | given("top_k", "keep_truncated"),
        "preference": pairs | given("policy", "rejected_rank", "margin", "keep_truncated"),
        "decontaminate": files,
        "recipes": None if options.recipe is None else _recipes(options.recipe, configuration),
        "clean": None if options.clean is None else _mapping("--clean", options.clean),
        "trust": options.trust,
    }


def _recipes(given: Sequence[str], configuration: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries that `--recipe` names or holds."""
    wanted: list[str | Mapping[str, Any]] = []
    for value in given:
        if value.lstrip().startswith("{"):
            wanted.append(_mapping("--recipe", value))
        else:
            wanted += [name.strip() for name in value.split(",")]
    return choose_recipes(wanted, configuration.get("recipes") or ())


def _mapping(option: str, text: str) -> Mapping[str, Any]:
    value = read_value(option, text)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{option}: must be a mapping, not {text!r}")
    return value


async def _calibrate(
    rollouts: Rollouts,
    judged: Callable[[Prompt], Prompt],
    entry: Any,
    num_responses: int,
    seed: int,
) -> str:
    model = make_reward(entry)
    try:
        await model.check()  # what a run does first, too
        mean, std = await calibrate_reward(rollouts, model, num_responses, seed, judged)
    finally:
        await model.aclose()
    return f"mean: {mean:.6g}, std: {std:.6g}"


def _recovery_text(run: Path, recovered: Recovered) -> str:
    saved = f"{recovered.num_prompts:,} prompts and {recovered.num_plays:,} plays"
    if recovered.damaged is None:
        return f"{run}/journal.sqlite is not damaged: {saved}; nothing was changed"
    lines = [
        f"recovered {saved}; {recovered.num_hurt:,} prompts are known to have lost plays; repeat "
        "the synthesize command to resume"
    ]
    if not recovered.identity:
        lines.append(
            "The configuration was not readable. The journal takes that of the next run, so make "
            "sure that it is the same."
        )
    return "\n".join([*lines, f"The damaged file is kept as {recovered.damaged}"])


def _rank(text: str) -> int | float:
    return float(text) if "." in text else int(text)
