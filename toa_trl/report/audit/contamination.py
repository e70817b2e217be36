"""Prompts of a run, and responses chosen for training, that contain problems of evaluation sets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from toa_trl.report.audit.evaluation_sets import EvaluationSet, Index, question_text
from toa_trl.report.audit.text import joined
from toa_trl.report.rollout_tables import (
    columns_of,
    messages_of,
    questions_of,
    read_batches,
    rollout_files,
)

# data set -> column that a student learns from
CHOSEN = {"sft": "completion", "dpo": "chosen", "kto": "completion", "groups": "completions"}


@dataclass(frozen=True)
class Overlap:
    """A prompt, or a response chosen for it, that shares words with an evaluation problem."""

    prompt_id: str
    side: str  # "prompt" or "response"
    file: str  # the evaluation set
    problem_id: str
    num_words: int  # the most consecutive words in common
    words: str  # these words


@dataclass(frozen=True)
class Contamination:
    """The overlap of a run with evaluation sets."""

    sets: tuple[EvaluationSet, ...]
    num_prompts: int  # compared
    num_responses: int  # compared: distinct completions, and chosen responses of dpo/
    overlaps: tuple[Overlap, ...]  # one per prompt, side and problem
    num_kept: int  # prompts with an overlap that have a row in a data set

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Ids of the prompts with an overlap on either side, in the order of the run."""
        return tuple(dict.fromkeys(overlap.prompt_id for overlap in self.overlaps))


def find_contamination(
    run_dir: Path, index: Index, rows: Mapping[str, Iterable[Mapping[str, Any]]] | None = None
) -> Contamination:
    """Compare the prompts and chosen responses of a run with evaluation sets.

    The evaluation sets are held in memory, the run is streamed.

    Args:
        run_dir: a run's folder.
        index: the evaluation sets.
        rows: rows of the data sets, if these are not written yet.

    Raises:
        ConfigError: there are no rollouts.
    """
    prompts = rollout_files(run_dir)
    found: dict[tuple[str, str, int], Overlap] = {}
    num_prompts, seen, trained = 0, set[int](), set[str]()

    def look(prompt_id: str, side: str, text: str) -> None:
        for match in index.search(text, prompt=side == "prompt"):
            key, file = (prompt_id, side, match.source.problem), index.sets[match.source.file].file
            if key not in found or found[key].num_words < len(match.words):
                found[key] = Overlap(
                    prompt_id, side, file, match.source.id, len(match.words), joined(match.words)
                )

    for prompt_id, texts in _prompts(prompts):
        num_prompts += 1
        for text in texts:
            look(prompt_id, "prompt", text)
    for name, column in CHOSEN.items():
        files = sorted((run_dir / name).glob("*.parquet"))
        for row in rows.get(name, ()) if rows else _rows(files, column):
            trained.add(row["prompt_id"])
            messages = chain(*row[column]) if name == "groups" else row[column]
            text = "\n".join(message["content"] for message in messages)
            key = hash((row["prompt_id"], text))
            if key not in seen:
                seen.add(key)
                look(row["prompt_id"], "response", text)
    num_kept = len({overlap.prompt_id for overlap in found.values()} & trained)
    return Contamination(index.sets, num_prompts, len(seen), tuple(found.values()), num_kept)


def _prompts(files: Sequence[Path]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every prompt id once, with the texts that the prompt asks about."""
    last = None
    for batch in read_batches(files, ["prompt_id", "prompt", "metadata"]):
        for number, prompt_id in enumerate(batch["prompt_id"].to_pylist()):
            if prompt_id != last:
                last = prompt_id
                (row,) = batch.slice(number, 1).to_pylist()
                asked = question_text(prompt_id, messages_of(row["prompt"]))
                yield prompt_id, questions_of(columns_of(row.get("metadata")), asked)


def _rows(files: Sequence[Path], column: str) -> Iterator[dict[str, Any]]:
    for batch in read_batches(files, ["prompt_id", column]):
        yield from batch.to_pylist()
