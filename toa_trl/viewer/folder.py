"""The runs and evaluations below a folder: a damaged run is listed with its fault."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, ToaError
from toa_trl.report.rollout_tables import named_agents
from toa_trl.sampling.budget import is_adaptive
from toa_trl.sampling.journal import open_journal
from toa_trl.sampling.status import is_written
from toa_trl.utils.files import read_configuration
from toa_trl.utils.targets import PARTS, is_run_file
from toa_trl.viewer.outputs import FILE as SIDE_BY_SIDE

JOURNAL = "journal.sqlite"
MAX_DEPTH = 5  # of folders below the one that is viewed
MAX_RUNS = 2_000


class Folder:
    """A folder with runs, or the folder of one run.

    Raises:
        ConfigError: it is not a folder, or has no run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise ConfigError(f"{root}: not a folder; name a folder with runs, or that of a run")
        if next(self._found(), None) is None:
            raise ConfigError(
                f"{root}: no run in this folder or below it (a run has a {JOURNAL}); name a "
                "folder with runs"
            )

    def names(self) -> tuple[list[str], list[str]]:
        """Return the names of the runs and of the evaluations, at most `MAX_RUNS` of both.

        A name is a path relative to the folder; "." is the folder itself.
        """
        found = list(islice(self._found(), MAX_RUNS))
        runs = sorted(name for name, is_run in found if is_run)
        return runs, sorted(name for name, is_run in found if not is_run)

    def path(self, name: str) -> Path:
        """Return the folder of a run.

        Raises:
            ConfigError: there is no such run.
        """
        return self._checked("run", name, self.names()[0])

    def evaluation(self, name: str) -> Path:
        """Return the folder of an evaluation's responses.

        Raises:
            ConfigError: there is no such evaluation.
        """
        return self._checked("evaluation", name, self.names()[1])

    def _checked(self, what: str, name: str, names: Sequence[str]) -> Path:
        # never a path that leaves the folder, whatever a request asks for
        if name not in names:
            raise ConfigError(f"there is no {what} {name!r} in {self.root}")
        return self.root / name

    def _found(self) -> Iterator[tuple[str, bool]]:
        """Yield (name, whether it is a run, not an evaluation)."""
        for path, folders, files in os.walk(self.root):
            here = Path(path)
            name = here.relative_to(self.root).as_posix()
            is_run = JOURNAL in files
            hidden = [folder for folder in folders if folder.startswith(".")]
            without = {*hidden, *(PARTS if is_run else ())}
            is_deep = len(Path(name).parts) >= MAX_DEPTH
            begun = "run.yaml" in files and "shards" not in folders
            folders[:] = [] if is_deep else sorted({*folders} - without)
            if is_run or (begun and is_run_file(here / "run.yaml")):
                yield name, True
            if SIDE_BY_SIDE in files:
                yield name, False


def describe(path: Path) -> dict[str, Any]:
    """Return what a run is, without reading its plays.

    Returns:
        {state: "running" | "finished" | "stopped" | "starting" | "damaged", fault, search, budget,
        adaptive, num_prompts, agents, started, finished, pairs}; what is not known is missing.
    """
    about: dict[str, Any] = {"state": "damaged", "pairs": (path / "dpo").is_dir()}
    try:
        configuration = read_configuration(path)
        about |= {key: configuration.get(key) for key in ("started", "finished")}
        if not (path / JOURNAL).is_file():
            return {**about, "fault": f"{JOURNAL} is missing"}
        running = is_written(path / JOURNAL)
        with open_journal(path) as journal:
            identity, num_prompts = journal.identity, journal.num_prompts()
            completed = journal.completed
        about["agents"] = agents_of(identity, configuration)
        about["num_prompts"] = num_prompts
        if not identity:
            return {**about, "state": "starting" if running else "stopped"}
        about |= {"search": str(identity.get("search")), "budget": identity.get("budget")}
        about["adaptive"] = is_adaptive(identity)
        if not running and not completed and configuration.get("finished"):
            completed = True  # by a version that did not record it in the journal
    except (ToaError, OSError) as error:
        starting = "has not begun" in str(error)
        return {**about, **({"state": "starting"} if starting else {"fault": str(error)})}
    state = "running" if running else "finished" if completed else "stopped"
    return {**about, "state": state}


def agents_of(identity: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[str]:
    """Return the agents in the order of the report, which decides their colours."""
    names = [*named_agents(configuration), *map(str, identity.get("agents", {}))]
    return list(dict.fromkeys(names))
