"""The report of a run: one HTML file that opens offline.

`write_report` reads a run's folder and writes the page; `comparison_figure` draws the paper's
figure.

    rollout_tables.py   rollouts in tables of whole prompts, for report and audit
    rollouts.py         totals of all plays        figures.py         matplotlib -> <svg>
    trees.py            trees of some prompts      sections.py        sections about the run
    training.py         sft/ and dpo/              outcome.py         ... about its results
    html.py             elements of the page       evaluation.py      ... about evaluations
    glossary.py         what its terms mean
    training_log.py     the log beside a model     training_section.py   ... about trainings
    budget.py           an adaptive allocation     audit_section.py   ... about the audit
                                                   budget_section.py  ... about the allocation
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from toa_trl.errors import ConfigError
from toa_trl.hub.model_card import model_lineage
from toa_trl.report import evaluation, figures, outcome, sections, trees
from toa_trl.report.audit import read_audit
from toa_trl.report.audit_section import audit_section
from toa_trl.report.budget import read_budget
from toa_trl.report.budget_section import budget_section
from toa_trl.report.figures import comparison_figure
from toa_trl.report.glossary import explain
from toa_trl.report.html import Section, decimals, many
from toa_trl.report.marker import is_report
from toa_trl.report.rollout_tables import named_agents, rollout_files
from toa_trl.report.rollouts import summarize
from toa_trl.report.training import read_pairs, read_sft
from toa_trl.report.training_log import FILE as TRAINING_LOG
from toa_trl.report.training_section import training_sections, trainings_of
from toa_trl.utils.files import read_configuration, replace_text
from toa_trl.utils.stage import stage
from toa_trl.utils.targets import check_file, exclusive

__all__ = ["comparison_figure", "write_report"]

HERE = Path(__file__).parent


def write_report(
    run_dir: Path, *, output: Path | None = None, results: Mapping[str, Any] | None = None
) -> Path:
    """Write the report of a run, of a training, or of an evaluation, and return its path.

    Args:
        run_dir: a run's folder with rollouts/, and run.yaml, sft/ and dpo/ if it has them; or a
            model's folder with the log of its training, or a folder with results.json.
        output: file to write or replace; by default report.html in the folder. Of a training
            _report.html, which the Trainer does not push, as prompts may be private.
        results: {"student": ..., "searches": ...}; by default results.json in the run's folder or
            its parent.

    Raises:
        ConfigError: there are no rollouts, log or results, a file is invalid, or the output cannot
            be written or is not a report.
    """
    run_dir = Path(run_dir)
    is_run = any((run_dir / "rollouts").glob("*.parquet"))
    is_training = not is_run and (run_dir / TRAINING_LOG).is_file()
    name = "_report.html" if is_training else "report.html"
    target = run_dir / name if output is None else Path(output)
    check_file(target, "--output", is_report)
    with stage(f"writing {target}"):
        if is_training:
            page = _page(_training(run_dir))
        elif not is_run and (results or (run_dir / "results.json").is_file()):
            page = _page(_results(run_dir, _read_results(run_dir) if results is None else results))
        else:
            page = _page(_run(run_dir, _read_results(run_dir) if results is None else results))
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(run_dir) if output is None and is_run else nullcontext():
        check_file(target, "--output", is_report)
        # responses may contain unpaired surrogates
        replace_text(target, page.encode(errors="replace").decode())
    return target


def _training(folder: Path) -> dict[str, Any]:
    """Return what the page of a training alone shows."""
    sections = training_sections([folder])
    if not sections:
        raise ConfigError(f"{folder / TRAINING_LOG}: the log has no step yet; train first")
    name, lineage = folder.resolve().name, model_lineage(str(folder.resolve()))
    base = lineage.get("base_model") or "a model"
    heading = f"{name}: {lineage.get('method') or 'training'} of {base}"
    content = {"subject": "training", "title": name, "heading": heading, "opening": ""}
    return {**content, "sections": sections}


def _results(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page of an evaluation or a comparison alone shows."""
    parts = [
        *([outcome.student(results)] if results.get("student") else ()),
        *([outcome.searches(results)] if results.get("searches") else ()),
        *evaluation.sections(results),
    ]
    if not parts:
        raise ConfigError(f"{folder}: the results have no part that a report shows")
    name, students = folder.resolve().name, results.get("student") or {}
    searches = {row["name"] for row in results.get("searches") or ()}
    made = [f"{many(len(students), 'model')} evaluated"] if students else []
    made += [f"{len(searches)} searches compared"] if searches else []
    return {
        "subject": "evaluation" if students else "comparison",
        "title": name,
        "heading": f"{name}: {', '.join(made) or 'results'}",
        "opening": outcome.opening(results).strip(),
        "sections": parts,
    }


def _run(run_dir: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page of a run shows."""
    files = rollout_files(run_dir)
    run = read_configuration(run_dir)
    summary = summarize(files, named_agents(run))
    agents = {name: i for i, name in enumerate(summary.tallies)}
    chosen = trees.choose_prompts(summary.prompt_ids)
    share = len(chosen) / max(len(summary.prompt_ids), 1)
    shown, limit = trees.read_trees(files, chosen, round(summary.total("plays") * share))
    budget = read_budget(run_dir, files, run)
    parts = [
        sections.what_ran(run, summary, agents),
        sections.reward_distribution(summary, agents),
        sections.winners(summary, agents),
        sections.best_against_plays(summary),
        *([budget_section(budget, summary.curve.mean)] if budget else ()),
        Section("tree", "The tree of a prompt"),
        outcome.training_data(read_sft(run_dir), *read_pairs(run_dir, files), agents),
        audit_section(read_audit(run_dir)),
        *training_sections(trainings_of(run_dir, run.get("fingerprint"))),
        outcome.student(results),
        outcome.searches(results),
        *evaluation.sections(results),
    ]
    here = {tree["id"]: number for number, tree in enumerate(shown)}
    prompts = []
    for prompt_id, text in trees.read_prompts(files, summary.prompt_ids):
        prompts.append([_label(prompt_id, text), text, here.get(prompt_id)])
    viewer = {"agents": list(agents), "decimals": decimals(summary.select()), "prompts": prompts}
    name, plays = run_dir.resolve().name, many(summary.total("plays"), "play")
    search = f"{run['search']}, " if run.get("search") else ""
    return {
        "subject": "run",
        "title": name,
        "heading": f"{name}: {search}{plays} on {many(len(summary.prompt_ids), 'prompt')}",
        "opening": sections.opening(summary) + outcome.opening(results),
        "sections": parts,
        "num_prompts": len(summary.prompt_ids),
        "trees": [(_tree_label(tree), Markup(trees.as_json(tree))) for tree in shown],
        "viewer": Markup(trees.as_json(viewer)),
        "limit": limit,
    }


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(blocks_of=outcome.blocks_of, colors=figures.PALETTE, zip=zip)
    return environment


def _page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    environment = _environment()
    script = environment.get_template("tree.js.html.j2").render()
    nothing: dict[str, Any] = {"num_prompts": 0, "trees": [], "viewer": "", "limit": 0}
    return environment.get_template("report.html.j2").render(
        **{**nothing, **content},
        terms=explain(content["opening"], content["sections"]),
        script=Markup(script),
        # the page may run this script only, whatever a response contains
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read_results(run_dir: Path) -> Mapping[str, Any]:
    for path in (run_dir / "results.json", run_dir.resolve().parent / "results.json"):
        if path.is_file():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ConfigError(
                    f"{path}: not a JSON object: {error}; write it again, for example with "
                    "`toa-trl evaluate`"
                ) from error
    return {}


def _tree_label(tree: Mapping[str, Any]) -> str:
    return _label(tree["id"], tree["messages"][-1][1] if tree["messages"] else "")


def _label(prompt_id: str, text: str) -> str:
    """Return one line that identifies a prompt."""
    return " ".join(f"{prompt_id}: {text[:200]}".split())[:90]
