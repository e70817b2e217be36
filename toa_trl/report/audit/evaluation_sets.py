"""Index of evaluation sets: sorted hashes of all 13 consecutive words of their problems.

What counts as an overlap, after appendix C of the GPT-3 paper (arXiv 2005.14165), where N lies
between 8 and 13 words:

- 13 consecutive words of a problem's text, in lower case and without punctuation (a Chinese or
  Japanese character is a word);
- of a shorter text with at least 8 words: the whole text, contained in the other one;
- of a question with fewer words: the whole question, equal to the whole prompt.

The texts are the question (columns `QUESTIONS`; of messages all but the system's) and its solution
or answer (columns `ANSWERS`) if that has 13 words, because short answers occur in many texts.
Consecutive words that many problems of a set share are its instructions, and are ignored.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toa_trl.errors import ConfigError
from toa_trl.report.audit.text import Hashes, hashes, windows, words_of
from toa_trl.types import as_messages
from toa_trl.utils.files import file_format, read_json

LENGTH = 13  # consecutive words
SHORTEST = 8  # GPT-3's smallest N: fewer words agree by chance
QUESTIONS = ("prompt", "source", "question", "problem", "instruction")
ANSWERS = ("answer", "solution", "reference")
# GPT-3 ignored n-grams in more than 10 documents; the share keeps passages with many questions
COMMON, COMMON_SHARE = 10, 0.01
# occurrences per text that are compared: two texts of 2,000 times "ha" have 4 million pairs
REPEATS = 32


@dataclass(frozen=True)
class EvaluationSet:
    """One file of problems."""

    file: str  # as given
    num_problems: int
    num_ngrams: int  # distinct, searched for
    num_common: int  # distinct, ignored because many problems share them


@dataclass(frozen=True)
class Source:
    """A text of a problem."""

    file: int  # index in the list of files
    problem: int  # number over all files
    id: str  # of the problem
    text: str  # its words, separated by spaces


@dataclass(frozen=True)
class Match:
    """Words of a text that occur in a problem."""

    source: Source
    words: tuple[str, ...]


class Index:
    """All texts of the evaluation sets; held in memory."""

    def __init__(self, files: Sequence[str | Path]) -> None:
        """Read the evaluation sets.

        Args:
            files: JSONL, a JSON array, or parquet. Columns: a question (see above), optionally id
                and answers, and any others.

        Raises:
            ConfigError: a file cannot be read, or a row has no question.
        """
        if not isinstance(files, list | tuple) or not all(
            isinstance(file, str | Path) for file in files
        ):
            raise ConfigError(f"evaluation sets: must be a list of files, not {files!r}")
        self._sources: list[Source] = []
        self._whole: dict[str, list[int]] = {}  # questions of few words -> their sources
        # length -> (hashes of a source, its number)
        parts: dict[int, list[tuple[Hashes, int]]] = {}
        num_problems = [0] * len(files)
        for number, file in enumerate(files):
            for id, question, texts in _problems(Path(file).expanduser()):
                for text in texts:
                    source = Source(number, sum(num_problems), id, " ".join(text))
                    if len(text) >= SHORTEST:
                        length = min(len(text), LENGTH)
                        entry = (windows(hashes(text), length), len(self._sources))
                        parts.setdefault(length, []).append(entry)
                    elif text and text is question:
                        self._whole.setdefault(source.text, []).append(len(self._sources))
                    self._sources.append(source)
                num_problems[number] += 1
        self._tables: dict[int, _Table] = {}
        num_ngrams, num_common = np.zeros((2, len(files)), int)
        for length, entries in parts.items():
            table = self._tables[length] = _Table(entries, self._sources, num_problems)
            num_ngrams, num_common = num_ngrams + table.num_ngrams, num_common + table.num_common
        columns = (map(str, files), num_problems, num_ngrams.tolist(), num_common.tolist())
        self.sets = tuple(EvaluationSet(*row) for row in zip(*columns, strict=True))

    def search(self, text: str, *, prompt: bool) -> Iterator[Match]:
        """Yield the most consecutive words that each text of a problem shares with a text.

        Args:
            text: a text of a run.
            prompt: whether it is a whole prompt, which may equal a question of few words.
        """
        some = words_of(text)
        for number in self._whole.get(" ".join(some), ()) if prompt else ():
            yield Match(self._sources[number], tuple(some))
        own, theirs = hashes(some), dict[int, list[str]]()
        for length, table in self._tables.items():
            # source -> (position in the source, position in the text)
            shared: dict[int, list[tuple[int, int]]] = {}
            for here, number, there in table.find(windows(own, length)):
                if number not in theirs:
                    theirs[number] = self._sources[number].text.split()
                # compare the words, because hashes can collide
                if theirs[number][there : there + length] == some[here : here + length]:
                    shared.setdefault(number, []).append((there, here))
            for number, places in shared.items():
                start, stop = _longest(places, length)
                yield Match(self._sources[number], tuple(some[start:stop]))


class _Table:
    """All `length` consecutive words: sorted hashes, with the position of each."""

    def __init__(
        self,
        parts: Sequence[tuple[Hashes, int]],
        sources: Sequence[Source],
        num_problems: list[int],
    ) -> None:
        keys = np.concatenate([part for part, _ in parts])
        numbers = np.repeat([number for _, number in parts], [len(part) for part, _ in parts])
        places = np.concatenate([np.arange(len(part)) for part, _ in parts])
        problems = np.array([source.problem for source in sources])[numbers]
        files = np.array([source.file for source in sources])[numbers]
        # the problems of a file are consecutive, so this sorts by file as well
        order = np.lexsort((problems, keys))
        keys, numbers, places, problems, files = (
            of[order] for of in (keys, numbers, places, problems, files)
        )
        starts = _changes(keys, files)  # of the entries of one file with one hash
        group = np.cumsum(starts) - 1
        shared_by = np.bincount(group, weights=_changes(keys, problems))
        limits = np.maximum(COMMON, COMMON_SHARE * np.array(num_problems))
        common = shared_by > limits[files[starts]]
        self.num_ngrams = np.bincount(files[starts][~common], minlength=len(num_problems))
        self.num_common = np.bincount(files[starts][common], minlength=len(num_problems))
        again = _changes(keys, numbers)
        nth = np.arange(len(keys)) - np.flatnonzero(again)[np.cumsum(again) - 1]
        kept = ~common[group] & (nth < REPEATS)
        self._keys, self._numbers, self._places = keys[kept], numbers[kept], places[kept]

    def find(self, own: Hashes) -> Iterator[tuple[int, int, int]]:
        """Yield (position in the text, source, position in the source) for equal hashes."""
        low = np.searchsorted(self._keys, own, "left")
        high = np.searchsorted(self._keys, own, "right")
        times = Counter[int]()
        for here in np.flatnonzero(high > low).tolist():
            times[low[here]] += 1
            if times[low[here]] > REPEATS:
                continue
            for at in range(low[here], high[here]):
                yield here, int(self._numbers[at]), int(self._places[at])


def _changes(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a row differs from the previous one in any column."""
    changed = np.ones(len(columns[0]), bool)
    changed[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return changed


def _longest(places: Sequence[tuple[int, int]], length: int) -> tuple[int, int]:
    """Return start and end in the text of the most consecutive words that both share."""
    known, best = set(places), (0, 0)
    for there, here in places:
        if (there - 1, here - 1) not in known:
            num = 0
            while (there + num, here + num) in known:
                num += 1
            best = max(best, (here, here + num + length - 1), key=lambda span: span[1] - span[0])
    return best


def _problems(file: Path) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield (id, words of the question, words of every text that counts) of each problem."""
    num = 0
    for num, (place, row) in enumerate(_rows(file), 1):
        row = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(row, Mapping):
            raise ConfigError(f"{place}: must be an object with a question, not {row!r:.80}")
        column = next((name for name in QUESTIONS if row.get(name)), None)
        if column is None:
            columns = ", ".join(map(str, row)) or "none"
            raise ConfigError(
                f"{place}: needs one of the columns {', '.join(QUESTIONS)}; columns: {columns}"
            )
        question = words_of(question_text(place, row[column]))
        answers = [words_of(row[name]) for name in ANSWERS if isinstance(row.get(name), str)]
        id = row.get("id")
        texts = [question, *(answer for answer in answers if len(answer) >= LENGTH)]
        yield str(num - 1 if id is None else id), question, texts
    if not num:
        raise ConfigError(f"evaluation set: {file} is empty")


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if file_format(path) not in (".jsonl", ".json", ".parquet") or not path.is_file():
        raise ConfigError(
            f"evaluation set: {path} is not an existing .jsonl, .json or .parquet file; for a "
            "folder or a data set on the Hub, name the file with the problems"
        )
    if file_format(path) != ".parquet":
        yield from read_json(path)
        return
    try:
        with pq.ParquetFile(path) as parquet:
            names = {"id", *QUESTIONS, *ANSWERS} & {*parquet.schema_arrow.names}
            start = 0
            for batch in parquet.iter_batches(columns=[*names]):
                for number, row in enumerate(batch.to_pylist(), start):
                    yield f"{path}, row {number}", row
                start += len(batch)
    except pa.ArrowInvalid as error:
        raise ConfigError(
            f"evaluation set: {path} is not parquet: {str(error).splitlines()[0]}"
        ) from error


def question_text(place: str, question: Any) -> str:
    """Return a prompt as one text, without system messages.

    Raises:
        ConfigError: it is neither a text nor messages.
    """
    try:
        return "\n".join(m.content for m in as_messages(question) if m.role != "system")
    except TypeError as error:
        raise ConfigError(
            f"{place}: the question must be a text or a list of messages: {error}"
        ) from error
