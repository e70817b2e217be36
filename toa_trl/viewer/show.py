"""The tree of a prompt on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from toa_trl.errors import ConfigError
from toa_trl.report.palette import PALETTE
from toa_trl.sampling.journal import open_journal
from toa_trl.types import Play, Rollout
from toa_trl.utils.escape import for_terminal
from toa_trl.utils.files import read_configuration
from toa_trl.utils.targets import check_has_journal
from toa_trl.viewer.folder import agents_of
from toa_trl.viewer.plays import find_prompts
from toa_trl.viewer.tree import read_rollout

WIDTH = 100  # columns, where the terminal has so many
MAX_INDENT = 12  # levels that are indented; a chain of refinements may be longer
PROMPT_CHARACTERS = 600


def show(
    run: Path, prompt_id: str, play: int | None = None, console: Console | None = None
) -> None:
    """Print the tree of a prompt, or one of its plays with the whole response.

    Args:
        run: folder of the run.
        prompt_id: id of the prompt.
        play: number of the play; None: the tree.
        console: console to print on; None: stdout, in at most `WIDTH` columns.

    Raises:
        ConfigError: the folder is not a run, or there is no such prompt or play.
        JournalError: the journal cannot be read.
    """
    check_has_journal(run)
    with open_journal(run) as journal:
        agents = agents_of(journal.identity, read_configuration(run))
        try:
            rollout = read_rollout(journal, prompt_id)
        except ConfigError as error:
            known = [repr(found) for _, found, _ in find_prompts(journal, "", limit=4)]
            shown = known if len(known) < 4 else [*known[:3], "..."]
            such = f"; its prompts are {', '.join(shown)}" if known else ""
            raise ConfigError(f"--prompt: {error}{such}") from error
    console = console or Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    colors = {agent: PALETTE[i % len(PALETTE)][0] for i, agent in enumerate(agents)}
    lines = _tree(rollout, colors) if play is None else _play(rollout, play, colors)
    for line in lines:
        console.print(line, highlight=False)


def _tree(rollout: Rollout, colors: dict[str, str]) -> Iterator[Text | Tree]:
    messages = rollout.prompt.messages
    asked = "\n".join(f"{message.role}: {message.text}" for message in messages)
    cut = "…" if len(asked) > PROMPT_CHARACTERS else ""
    yield Text(for_terminal(rollout.prompt.id), "bold")
    yield Text(for_terminal(asked[:PROMPT_CHARACTERS]) + cut)
    num_failed = len(rollout.plays) - len(rollout.scored)
    root = Tree(Text(f"{len(rollout.scored)} scored plays, {num_failed} failed"))
    ranks = rollout.ranks
    branches: dict[int, tuple[Tree, Tree, int]] = {}  # play -> itself, what holds it, its level
    waiting = list(rollout.plays)
    while waiting:
        later = []
        indices = {play.index for play in waiting}
        for play in waiting:
            parent = play.action.parent
            if parent in indices and parent not in branches:
                later.append(play)  # a play asked for again after a stop may precede its parent
                continue
            holder, level = root, 0
            if parent in branches:
                own, above, level = branches[parent]
                holder, level = (own, level + 1) if level < MAX_INDENT else (above, level)
            branch = holder.add(_label(play, ranks.get(play.index), colors))
            branches[play.index] = (branch, holder, level)
        waiting = later
    yield root


def _label(play: Play, rank: int | None, colors: dict[str, str]) -> Text:
    action, done = play.action, play.completion
    seen = f" of {', '.join(map(str, action.refs))}" if action.refs else ""
    label = Text(f"{play.index} ", no_wrap=True, overflow="ellipsis")
    label.append("● ", colors.get(action.agent, ""))
    kind = "fresh answer" if action.kind == "answer" and action.parent is not None else action.kind
    label.append(f"{for_terminal(action.agent)} {kind}{seen} ")
    if rank is None:
        label.append(f"failed: {_line(play.error or 'no reason recorded')}", "red")
        return label
    label.append(f"{play.reward:.4g}", "bold green" if rank == 1 else "bold")
    label.append(f" (rank {rank}){' cut short' if done and done.finish_reason == 'length' else ''}")
    label.append(f" {_line(done.text if done else '')}", "dim")
    return label


def _play(rollout: Rollout, index: int, colors: dict[str, str]) -> Iterator[Text]:
    found = [play for play in rollout.plays if play.index == index]
    if not found:
        raise ConfigError(f"--play: the prompt {rollout.prompt.id!r} has no play {index}")
    (play,) = found
    yield _label(play, rollout.ranks.get(index), colors)
    done = play.completion
    if done is not None and done.reasoning:
        yield Text(f"reasoning:\n{for_terminal(done.reasoning)}\n", "dim")
    yield Text(for_terminal(done.text if done is not None else play.error or ""))


def _line(text: str) -> str:
    return for_terminal(" ".join(text[:400].split()))
