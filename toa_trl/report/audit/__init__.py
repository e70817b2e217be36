"""May the data be trusted? What a run shares with evaluation sets, and what its search made of the reward model.

    contamination.py   rollouts/, sft/ and dpo/ against    evaluation_sets.py   13 words in a row, by their hashes
    reward.py          every play of a run                 best.py              the best play of each prompt
    correlation.py     reward and length, two rewards      language.py          which language a text is in
    words.py           all of it in plain sentences        text.py, blocks.py   what they share

`measure` fills audit.json in the run's folder, which the report and the data set card show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.report.audit.contamination import Contamination, find_contamination
from toa_trl.report.audit.evaluation_sets import Index
from toa_trl.report.audit.reward import RewardAudit, audit_reward
from toa_trl.report.audit.words import card_section
from toa_trl.utils.files import replace_text

FILE = "audit.json"

__all__ = [
    "FILE",
    "Audit",
    "Contamination",
    "Index",
    "RewardAudit",
    "audit_reward",
    "card_section",
    "find_contamination",
    "measure",
    "read_audit",
]


@dataclass(frozen=True)
class Audit:
    """Of one run's data as they are."""

    reward: RewardAudit
    contamination: Contamination | None = None  # None: no evaluation set was named

    def as_json(self) -> dict[str, Any]:
        """What audit.json holds."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        replace_text(
            path, json.dumps(self.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )


def measure(run_dir: Path, against: Sequence[str | Path] = ()) -> Audit:
    """Audit a run's rollouts/, sft/ and dpo/.

    Args:
        run_dir: a run's folder.
        against: evaluation sets, see `toa_trl.report.audit.evaluation_sets`; without any, overlaps are not looked for.

    Raises:
        ConfigError: there are no rollouts, or a file is no evaluation set.
    """
    # the evaluation sets first: a mistake in their names shall show before everything is read
    contamination = find_contamination(run_dir, Index(against)) if against else None
    return Audit(audit_reward(run_dir), contamination)


def read_audit(run_dir: Path) -> Audit:
    """What audit.json holds; without one, what a look at the rollouts finds.

    Raises:
        ConfigError: the file holds something else, or there are no rollouts.
    """
    path = run_dir / FILE
    if not path.is_file():
        return measure(run_dir)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found = value["contamination"]
        return Audit(
            RewardAudit.from_json(value["reward"]),
            None if found is None else Contamination.from_json(found),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not an audit ({error!r:.80}); delete it, or write it with python -m toa_trl audit"
        ) from error
