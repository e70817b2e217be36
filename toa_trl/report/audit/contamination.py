"""Which prompts of a run, and which responses chosen for training, hold problems of an evaluation set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from toa_trl.report.audit.blocks import columns_of, questions_of, rollout_files
from toa_trl.report.audit.evaluation_sets import EvaluationSet, Index, question_text
from toa_trl.report.audit.text import joined

BATCH_ROWS = 4_096
CHOSEN = {
    "sft": "completion",
    "dpo": "chosen",
}  # data set -> the column of what a student learns to write


@dataclass(frozen=True)
class Overlap:
    """A prompt, or a response chosen for it, that shares words with a problem of an evaluation set."""

    prompt_id: str
    side: str  # "prompt" or "response"
    file: str  # the evaluation set
    problem_id: str
    num_words: int  # in a row, the longest there are
    words: str  # these


@dataclass(frozen=True)
class Contamination:
    """What a run shares with evaluation sets."""

    sets: tuple[EvaluationSet, ...]
    num_prompts: int  # looked at
    num_responses: int  # looked at: the different ones that sft/ teaches and dpo/ prefers
    overlaps: tuple[Overlap, ...]  # one per prompt, side and problem
    num_kept: int  # prompts with an overlap that have a row in sft/ or dpo/

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """The prompts with an overlap on either side, in the order of the run."""
        return tuple(dict.fromkeys(overlap.prompt_id for overlap in self.overlaps))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Contamination:
        """What `dataclasses.asdict` made of one."""
        sets = tuple(EvaluationSet(**each) for each in value["sets"])
        return cls(
            **{
                **value,
                "sets": sets,
                "overlaps": tuple(Overlap(**each) for each in value["overlaps"]),
            }
        )


def find_contamination(
    run_dir: Path, index: Index, rows: Mapping[str, Iterable[Mapping[str, Any]]] | None = None
) -> Contamination:
    """Compare the prompts in rollouts/, and the chosen responses in sft/ and dpo/, with evaluation sets.

    The evaluation sets are in memory, the run is streamed.

    Args:
        run_dir: a run's folder.
        index: of the evaluation sets.
        rows: of "sft" and "dpo", where these are yet to be written.

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
        for row in (
            rows[name]
            if rows
            else _rows(sorted((run_dir / name).glob("*.parquet")), ["prompt_id", column])
        ):
            trained.add(row["prompt_id"])
            text = "\n".join(message["content"] for message in row[column])
            if (key := hash((row["prompt_id"], text))) not in seen:
                seen.add(key)
                look(row["prompt_id"], "response", text)
    num_kept = len({overlap.prompt_id for overlap in found.values()} & trained)
    return Contamination(index.sets, num_prompts, len(seen), tuple(found.values()), num_kept)


def _prompts(files: Sequence[Path]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every prompt once, with what is asked."""
    last = None
    for file in files:
        with pq.ParquetFile(file) as parquet:
            names = [
                name
                for name in ("prompt_id", "prompt", "metadata")
                if name in parquet.schema_arrow.names
            ]
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=names):
                for row, prompt_id in enumerate(batch["prompt_id"].to_pylist()):
                    if prompt_id != last:
                        last = prompt_id
                        columns = columns_of(
                            batch["metadata"][row].as_py() if "metadata" in names else None
                        )
                        asked = question_text(prompt_id, batch["prompt"][row].as_py() or ())
                        yield prompt_id, questions_of(columns, asked)


def _rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
