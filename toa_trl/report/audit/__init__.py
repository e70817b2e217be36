"""Can the data be trusted? Overlap of a run with evaluation sets, and signs of reward hacking.

    contamination.py     overlap of prompts and chosen responses with evaluation sets
    evaluation_sets.py   index of 13 consecutive words of evaluation sets
    reward.py            one pass over every play of a run
    best.py              the best play of each prompt
    correlation.py       reward with length, and with a second reward
    findings.py          the audit in sentences
    text.py              words of a text, and hashes of consecutive words

`measure` audits a run; audit.json in the run's folder is shown by report and data set card.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from toa_trl.errors import ConfigError
from toa_trl.report.audit.contamination import Contamination, find_contamination
from toa_trl.report.audit.evaluation_sets import Index
from toa_trl.report.audit.findings import card_section
from toa_trl.report.audit.reward import RewardAudit, audit_reward
from toa_trl.utils.files import write_json
from toa_trl.utils.language import main_languages
from toa_trl.utils.targets import is_json, marked

FILE = "audit.json"
MAX_RESPONSES = 1_000  # from which the languages of a data set are detected

__all__ = [
    "FILE",
    "Audit",
    "Contamination",
    "Index",
    "RewardAudit",
    "audit_reward",
    "card_section",
    "find_contamination",
    "is_audit",
    "languages_of",
    "measure",
    "read_audit",
]


@dataclass(frozen=True)
class Audit:
    """The audit of a run's data."""

    reward: RewardAudit
    contamination: Contamination | None = None  # None: not checked

    def write(self, path: Path) -> None:
        """Write audit.json."""
        write_json(path, marked(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)


def is_audit(path: Path) -> bool:
    """Return whether a file is an audit that this package wrote."""
    return is_json(path, old={"reward", "contamination"})


def measure(run_dir: Path, against: Sequence[str | Path] = ()) -> Audit:
    """Audit a run's rollouts/, sft/ and dpo/.

    Args:
        run_dir: a run's folder.
        against: files of evaluation sets, see `toa_trl.report.audit.evaluation_sets`; without any,
            overlap is not checked.

    Raises:
        ConfigError: there are no rollouts, or a file is not an evaluation set.
    """
    # the evaluation sets first: report invalid names before everything is read
    contamination = find_contamination(run_dir, Index(against)) if against else None
    return Audit(audit_reward(run_dir), contamination)


def read_audit(run_dir: Path) -> Audit:
    """Return the contents of audit.json, or an audit of the rollouts if there is no such file.

    Raises:
        ConfigError: the file is not an audit, or there are no rollouts.
    """
    path = run_dir / FILE
    if not path.is_file():
        return measure(run_dir)
    try:
        return TypeAdapter(Audit).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}: {first['msg']}" if key else first["msg"]
        raise ConfigError(
            f"{path}: not an audit ({reason}); write it again with `toa-trl audit`"
        ) from error


def languages_of(sft: Path) -> list[str]:
    """Return the languages of the first responses in sft/, as far as they are certain."""
    texts: list[str] = []
    for file in sorted(sft.glob("*.parquet"))[:1]:
        batches = pq.ParquetFile(file).iter_batches(MAX_RESPONSES, columns=["completion"])
        for batch in islice(batches, 1):
            texts += [completion[-1]["content"] for completion in batch["completion"].to_pylist()]
    return main_languages(texts)
