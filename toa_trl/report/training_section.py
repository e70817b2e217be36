"""The section on a training: curves of loss, margin and held-out figures, and example responses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toa_trl.hub.lineage import FILE as LINEAGE
from toa_trl.hub.model_card import model_lineage
from toa_trl.report.figures import INK, MUTED, STYLE, empty_panel, inline_svg
from toa_trl.report.html import (
    DASH,
    Picture,
    Section,
    Table,
    finite,
    known_keys,
    listed,
    many,
    number,
    share,
    signed,
)
from toa_trl.report.training_log import HELD_OUT, read_training_log

Point = Mapping[str, Any]
TRAINED, HELD = "training", "held out"
# of each panel: its name, and keys of a point with a label and a colour; the first of "a|b" that is
PANELS: dict[str, Sequence[tuple[str, str, str]]] = {
    "loss": (("loss", TRAINED, MUTED), ("eval_loss", HELD, INK)),
    "reward margin": (
        ("rewards/margins|margin", TRAINED, MUTED),
        ("eval_rewards/margins|eval_margin", HELD, INK),
    ),
    "mean reward": (("reward", TRAINED, MUTED), (f"{HELD_OUT}reward|eval_reward", HELD, INK)),
    "accuracy": ((f"{HELD_OUT}accuracy", HELD, INK),),
    "verifier score": ((f"{HELD_OUT}verifier_score", HELD, INK),),
}
COLUMNS = {
    "loss": "loss",
    "eval_loss": "held-out loss",
    f"{HELD_OUT}reward": "mean reward",
    f"{HELD_OUT}accuracy": "accuracy",
    f"{HELD_OUT}verifier_score": "verifier score",
    f"{HELD_OUT}words": "words",
}
MAX_ROWS = 20
MAX_CHARS = 1_000  # of a response


def trainings_of(run_dir: Path, fingerprint: str | None) -> list[Path]:
    """Return the folders of models in or beside a run's folder that were trained on the run."""
    if not fingerprint:
        return []
    run_dir = run_dir.resolve()
    found = []
    paths = [*run_dir.glob(f"*/{LINEAGE}"), *run_dir.parent.glob(f"*/{LINEAGE}")]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path)):  # as trained
        data = _lineage_of(path.parent).get("data") or []
        if any(fingerprint == source.get("fingerprint") for source in data):
            found.append(path.parent)
    return found


def training_sections(folders: Sequence[Path]) -> list[Section]:
    """Return a section for each model that has a log of its training, by method.

    Raises:
        ConfigError: a log is not what this package writes.
    """
    logs = {folder: read_training_log(folder) for folder in folders}
    sections = [_section(folder, log) for folder, log in logs.items() if log.get("points")]
    for number_, section in enumerate(sections[1:], 2):
        section.id += f"-{number_}"
    return sections


def _section(folder: Path, log: Mapping[str, Any]) -> Section:
    lineage, points = _lineage_of(folder), log["points"]
    method = lineage.get("method") or "training"
    section = Section("training", f"Training: {folder.resolve().name}")
    panels = []
    for name, lines in PANELS.items():
        curves = [(label, shade, _curve(points, keys)) for keys, label, shade in lines]
        curves = [curve for curve in curves if curve[2]]
        if curves:
            id_ = f"{folder.name}-{name}".replace(" ", "-")
            panels.append(inline_svg(_draw(curves, name), f"{name} over the steps", id_))
    text = _opening(method, lineage, points) + _describe(points, log.get("setup") or {})
    section.blocks.append(Picture(panels, text) if panels else text)
    table = _table(points)
    section.blocks += [table] if table else []
    section.blocks += _examples(log.get("examples") or [])
    return section


def _lineage_of(folder: Path) -> Mapping[str, Any]:
    return model_lineage(str(folder.resolve()))


def _curve(points: Sequence[Point], keys: str) -> list[tuple[int, float]]:
    """Return (step, value) of the first key that any point has."""
    for key in keys.split("|"):
        curve = []
        for point in points:
            value = finite(point.get(key))
            if value is not None:
                curve.append((point["step"], value))
        if curve:
            return curve
    return []


@matplotlib.rc_context(STYLE)
def _draw(curves: Sequence[tuple[str, str, list[tuple[int, float]]]], ylabel: str) -> Figure:
    figure, axes = empty_panel()
    for label, shade, curve in curves:
        steps, values = zip(*curve, strict=True)
        marker = "o" if len(curve) <= 30 and shade == INK else ""
        axes.plot(steps, values, color=shade, lw=1.5, marker=marker, ms=3.5, label=label)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(curves) > 1:
        axes.legend(frameon=False, labelcolor="linecolor", handlelength=1.2)
    return figure


def _opening(method: str, lineage: Mapping[str, Any], points: Sequence[Point]) -> str:
    base = lineage.get("base_model") or "a model"
    names = [str(source.get("dataset")) for source in lineage.get("data") or []]
    steps = many(max(point["step"] for point in points), "step")
    return f"{method} of {base} on {listed(names) or 'unknown data'}: {steps}."


def _describe(points: Sequence[Point], setup: Mapping[str, Any]) -> str:
    """Describe how the loss and the held-out figures changed."""
    text = ""
    measured = [("loss", "training loss"), ("eval_loss", "held-out loss")]
    if _curve(points, "reward"):  # of GRPO, whose loss says nothing about the student
        measured = [("reward", "mean reward of the sampled completions")]
    for key, label in measured:
        curve = _curve(points, key)
        if len(curve) > 1:
            text += f" The {label} went from {number(curve[0][1])} to {number(curve[-1][1])}."
    reward = _curve(points, f"{HELD_OUT}reward")
    accuracy = _curve(points, f"{HELD_OUT}accuracy")
    if setup.get("num_prompts") and (reward or accuracy):
        text += f" {many(setup['num_prompts'], 'held-out prompt')} were answered at each evaluation"
        parts = []
        for label, curve in (("mean reward", reward), ("accuracy", accuracy)):
            if curve:
                (first, before), (last, after) = curve[0], curve[-1]
                change = f" ({signed(number(after - before))})" if len(curve) > 1 else ""
                parts.append(f"{label} {number(before)} at step {first}")
                if len(curve) > 1:
                    parts[-1] += f", {number(after)} at step {last}{change}"
        text += f": {'; '.join(parts)}."
    return text


def _table(points: Sequence[Point]) -> Table | None:
    """Return the figures of the evaluations, at most MAX_ROWS of them."""
    evaluated = [point for point in points if "eval_loss" in point or f"{HELD_OUT}words" in point]
    keys = known_keys(evaluated, COLUMNS)
    truncated = f"{HELD_OUT}truncated"
    is_cut = any(one.get(truncated) for one in evaluated)
    if not evaluated or keys == ["loss"]:
        return None
    every = -(-len(evaluated) // MAX_ROWS)
    shown = evaluated[::-every][::-1]
    cells = []
    for point in shown:
        values = [_figure(key, point.get(key)) for key in keys]
        cut = [share(point[truncated], 1) if truncated in point else DASH] if is_cut else []
        cells.append([f"{point['step']:,}", *values, *cut])
    header = ["step", *(COLUMNS[key] for key in keys), *(["cut short"] if is_cut else [])]
    left_out = f" One of {every} evaluations is shown." if every > 1 else ""
    return Table(header, cells, f"Figures of the evaluations during the training.{left_out}")


def _figure(key: str, value: Any) -> str:
    is_length = key.endswith("words") and finite(value) is not None
    return f"{value:,.1f}" if is_length else number(value)


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return the first and last responses to each example prompt, side by side."""
    steps = sorted({example["step"] for example in examples})
    if not steps:
        return []
    shown = list(dict.fromkeys([steps[0], steps[-1]]))
    by_prompt: dict[str, dict[int, Mapping[str, Any]]] = {}
    for example in examples:
        by_prompt.setdefault(str(example["prompt_id"]), {})[example["step"]] = example
    cells = []
    for responses in by_prompt.values():
        prompt = next(iter(responses.values()))["prompt"]
        cells.append([_text(prompt), *(_response(responses.get(step)) for step in shown)])
    header = ["prompt", *(f"response at step {step:,}" for step in shown)]
    caption = "Examples of responses to held-out prompts, with their rewards."
    return [Table(header, cells, caption, wrap=True)]


def _response(example: Mapping[str, Any] | None) -> Any:
    if example is None:
        return DASH
    judged = []
    if finite(example.get("reward")) is not None:
        judged.append(f"reward {number(example['reward'])}")
    if finite(example.get("score")) is not None:
        verdict = {0: "wrong", 1: "correct"}.get(example["score"])
        judged.append(verdict or f"verifier score {number(example['score'])}")
    return Markup('{}<span class="judged">{}</span>').format(
        _text(example["response"]), ", ".join(judged)
    )


def _text(text: str) -> Markup:
    cut = text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + " …"
    return Markup('<span class="quoted">{}</span>').format(cut)
