"""What `Rollouts.save` writes into a folder, and whether it may be written there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toa_trl.data.tables import FORMATS, is_table
from toa_trl.errors import ConfigError
from toa_trl.hub import lineage
from toa_trl.report import audit
from toa_trl.report.marker import is_report
from toa_trl.sampling.journal import open_journal
from toa_trl.utils.cards import is_card
from toa_trl.utils.targets import (
    check_folder,
    check_not_in_run,
    check_ours,
    check_run_folder,
    is_data_lineage,
)


def export_targets() -> dict[str, Callable[[Path], bool]]:
    """Return what `Rollouts.save` writes into a folder, and what recognizes each of it."""
    from toa_trl.report import picture  # matplotlib

    return {
        **dict.fromkeys(("rollouts", *FORMATS), is_table),
        picture.FILE: picture.is_picture,
        audit.FILE: audit.is_audit,
        lineage.FILE: is_data_lineage,
        "README.md": is_card,
    }


def check_export(folder: Path, place: str = "output_dir") -> None:
    """Check that `Rollouts.save` may write into a folder; nothing is changed.

    Args:
        folder: folder of the run, or another one.
        place: key or option, for the message.

    Raises:
        ConfigError: it cannot be written, is a part of a run, or holds something of the same name
            that this package did not write.
    """
    check_folder(folder, place)
    check_not_in_run(folder, place, parts_only=True)
    check_ours({folder / name: is_ours for name, is_ours in export_targets().items()})


def check_run_target(folder: Path) -> None:
    """Check that a run with its data sets and report may be written into a folder.

    Raises:
        ConfigError: see `check_export` and `toa_trl.utils.targets.check_run_folder`.
    """
    check_run_folder(folder)
    check_export(folder)
    check_ours({folder / "report.html": is_report})


def is_complete(run_dir: str | Path) -> bool:
    """Return whether a run's journal records that all of it is done, data sets and report too."""
    try:
        with open_journal(run_dir) as journal:
            return journal.completed
    except ConfigError:  # the run has not begun yet
        return False
