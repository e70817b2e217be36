"""python -m toa_trl: what can be done with a run's folder once it is there, without sampling again."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import structure, user_errors
from toa_trl.data.preference import POLICIES
from toa_trl.errors import ConfigError
from toa_trl.hub.dataset_card import replace_audit
from toa_trl.hub.push import push_folder
from toa_trl.report.audit import FILE, card_section, measure, read_audit
from toa_trl.report.audit.findings import describe_overlaps, warnings
from toa_trl.report.page import write_report
from toa_trl.rewards import make_reward
from toa_trl.rewards.calibration import calibrate
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Recovered, recover
from toa_trl.sampling.status import print_status
from toa_trl.tasks import TASKS, make_task
from toa_trl.types import Prompt


def main(arguments: list[str] | None = None) -> None:
    """Run one command.

    Raises:
        ConfigError: the folder is no run, or a value is out of range.
    """
    parser = argparse.ArgumentParser(prog="python -m toa_trl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    data = commands.add_parser(
        "data",
        help="derive sft/, dpo/, rollouts/ and the card again from a run's journal, as its run.yaml has it, but for:",
    )
    data.add_argument("run", type=Path, help="the run's folder")
    data.add_argument("--output", type=Path, help="folder to write to (default: the run's)")
    data.add_argument("--top_k", type=int, help="SFT rows per prompt (without run.yaml: 1)")
    data.add_argument(
        "--policy",
        choices=POLICIES,
        help="what the best response is paired with (without run.yaml: rank)",
    )
    data.add_argument(
        "--rejected_rank", type=_rank, help="a rank, or a fraction of N (without run.yaml: 30)"
    )
    data.add_argument(
        "--margin", type=float, help="least difference of rewards, with --policy margin"
    )
    data.add_argument(
        "--keep_truncated",
        action=argparse.BooleanOptionalAction,
        help="take truncated responses, too",
    )
    data.add_argument(
        "--decontaminate",
        nargs="*",
        metavar="FILE",
        help="leave out what overlaps with these evaluation sets, beside those of run.yaml; without a file: with none",
    )

    check = commands.add_parser(
        "audit", help="look for signs of a hacked reward, and for overlap with evaluation sets"
    )
    check.add_argument("run", type=Path, help="the run's folder")
    check.add_argument(
        "--against",
        nargs="+",
        metavar="FILE",
        default=[],
        help="evaluation sets, JSONL, JSON or parquet",
    )
    check.add_argument(
        "--output",
        type=Path,
        help="file to write, and nothing else (default: audit.json, report.html and README.md of the run)",
    )

    scale = commands.add_parser(
        "calibrate", help="mean and std of a reward over a run's responses, for a weighted_sum"
    )
    scale.add_argument("run", type=Path, help="the run's folder")
    scale.add_argument("--reward", required=True, help='its entry, e.g. "{kind: chrf}"')
    scale.add_argument(
        "--num_responses", type=int, default=1000, help="drawn at random (default: 1000)"
    )
    scale.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")

    report = commands.add_parser("report", help="write report.html again")
    report.add_argument("run", type=Path, help="the run's folder")
    report.add_argument("--results", type=Path, help="results.json of evaluate.py and compare.py")
    report.add_argument(
        "--output", type=Path, help="file to write (default: report.html in the run's folder)"
    )

    recovery = commands.add_parser(
        "recover", help="save what is readable of a damaged journal; the run then goes on"
    )
    recovery.add_argument("run", type=Path, help="the run's folder")

    look = commands.add_parser("status", help="how far a run is, while it goes on or after")
    look.add_argument("run", type=Path, help="the run's folder")
    look.add_argument(
        "--watch", type=float, metavar="SECONDS", help="look again until the run ends"
    )

    push = commands.add_parser(
        "push", help="push the data set of a run to the Hub, or what is missing of it"
    )
    push.add_argument("run", type=Path, help="the run's folder, or one that `data --output` wrote")
    push.add_argument("repo_id", help="name on the Hub, e.g. me/my-data")
    push.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="of a new data set (default: hub_private_repo of run.yaml, or else as the owner has it on the Hub)",
    )
    push.add_argument(
        "--overwrite", action="store_true", help="replace all that is there, whatever it is"
    )

    options = parser.parse_args(arguments)
    if options.command == "status":
        print_status(options.run, options.watch)
        return
    if options.command == "recover":
        print(_told(options.run, recover(options.run)))
        return
    if options.command == "push":
        print(
            push_folder(
                options.run, options.repo_id, private=options.private, overwrite=options.overwrite
            )
        )
        return
    if options.command == "audit":
        _audit(options.run, options.against, options.output)
        return
    if options.command == "calibrate":
        print(
            asyncio.run(
                _calibrate(options.run, options.reward, options.num_responses, options.seed)
            )
        )
        return
    if options.command == "report":
        results = (
            json.loads(options.results.read_text(encoding="utf-8")) if options.results else None
        )
        print(write_report(options.run, output=options.output, results=results))
        return
    if not (options.run / "journal.sqlite").is_file():
        raise ConfigError(f"{options.run} has no journal.sqlite; name the folder of a run")
    output, rollouts = options.output or options.run, Rollouts.load(options.run)
    dropped = rollouts.save(output, **_derived_as(options, rollouts.configuration))
    for name, reasons in dropped.items():
        for reason, count in reasons.most_common():
            print(f"{name}: {count} prompts give no row: {reason}")
    print(f"{output}/sft and {output}/dpo are written")


def _derived_as(options: argparse.Namespace, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What `Rollouts.save` takes: as in run.yaml, and over it the options that were given."""

    def named(*names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(options, name)) is not None}

    sft, pairs = (dict(configuration.get(key) or {}) for key in ("sft", "preference"))
    if options.policy not in (None, "margin"):
        pairs.pop("margin", None)  # it goes with that policy alone
    files = options.decontaminate
    if (
        files != []
    ):  # with one set more the others stay: what was left out for them shall not come back
        files = list(dict.fromkeys([*(configuration.get("decontaminate") or ()), *(files or ())]))
    return {
        "sft": sft | named("top_k", "keep_truncated"),
        "preference": pairs | named("policy", "rejected_rank", "margin", "keep_truncated"),
        "decontaminate": files,
    }


def _audit(run: Path, against: list[str], output: Path | None) -> None:
    audit = measure(run, against)
    if not against and (run / FILE).is_file():  # what was found before is still true
        audit = replace(audit, contamination=read_audit(run).contamination)
    for said in (*warnings(audit), describe_overlaps(audit.contamination)):
        print(said)
    if output is not None:
        try:
            audit.write(output)
        except OSError as error:
            raise ConfigError(f"--output: {output} cannot be written: {error.strerror}") from error
        print(f"{output} is written")
        return
    audit.write(run / FILE)
    if (run / "README.md").is_file():
        replace_audit(run / "README.md", card_section(audit))
    print(f"{run / FILE} is written; look at {write_report(run)}")


async def _calibrate(run: Path, reward: str, num_responses: int, seed: int) -> str:
    rollouts = Rollouts.load(run)
    judged = _judged(rollouts)
    model = make_reward(structure("reward", reward))
    try:
        mean, std = await calibrate(rollouts, model, num_responses, seed, judged)
    finally:
        await model.aclose()
    return f"mean: {mean:.6g}, std: {std:.6g}"


def _judged(rollouts: Rollouts) -> Callable[[Prompt], Prompt]:
    """The prompt as the run's reward model saw it."""
    entry = rollouts.configuration.get("task")
    if entry is None:  # not finished: the journal knows a built-in task by its name
        entry = rollouts.identity.get("task", "alignment")
        entry = entry.get("name") if isinstance(entry, Mapping) else entry
        if entry not in TASKS.targets:
            return lambda prompt: prompt
    return make_task(entry).judged


def _told(run: Path, found: Recovered) -> str:
    saved = f"{found.num_prompts:,} prompts and {found.num_plays:,} plays"
    if found.damaged is None:
        return f"{run}/journal.sqlite is not damaged: {saved}; nothing was changed"
    lines = [
        f"{saved} are saved; {found.num_hurt:,} prompts are known to have lost plays. The same synthesize command goes on"
    ]
    if not found.identity:
        lines.append(
            "The configuration was not readable: the next run's is taken for it, so make sure it is the same"
        )
    return "\n".join([*lines, f"The damaged file is kept as {found.damaged}"])


def _rank(text: str) -> int | float:
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    with user_errors():
        main()
