"""Join the journals of runs that have one configuration and different prompts."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from toa_trl.data.prompts import is_prompts_file, write_prompts
from toa_trl.data.review import FILE as REVIEW
from toa_trl.data.review import joined_review, write_review
from toa_trl.errors import ConfigError
from toa_trl.sampling.identity import (
    differences,
    digest_of_values,
    identity_of_run,
    warn_of_unknown_contents,
)
from toa_trl.sampling.journal import Journal, copy_journals, locked, remove_journal
from toa_trl.sampling.run_file import FILE, finish_run_file, start_run_file
from toa_trl.sampling.status import is_written
from toa_trl.types import Prompt, as_dicts
from toa_trl.utils.files import fresh_path, read_yaml
from toa_trl.utils.targets import check_ours, check_run_folder, is_json_lines

OF_ONE_RUN = (
    *("fingerprint", "versions", "started", "resumed", "extended", "finished"),
    *("num_prompts", "skip_prompts", "output_dir", "runner", "num_shards"),
)
"""Keys of run.yaml that a merged run does not take from the first run."""
PROMPTS_FILE = "prompts.jsonl"  # of a merged run, whose prompts are in no single file else


def merge_runs(run_dirs: Sequence[Path], output: Path) -> tuple[int, int]:
    """Write a run with the prompts and plays of several runs, in their order.

    It resumes and grows as any other run, with its prompts.jsonl, to which rows may be appended.
    Marks of human reviews are joined.

    The runs stay as they are. Interrupted, nothing of the new run exists, and it can be repeated.

    Args:
        run_dirs: folders of the runs, at least two.
        output: folder of the new run.

    Returns:
        The number of prompts and of plays.

    Raises:
        ConfigError: a folder is not a run, a run is being written, the configurations differ, a
            prompt is in two runs, marks of reviews contradict each other, or the output holds a
            run already.
        JournalError: a journal cannot be read or written.
    """
    journals = [run_dir / "journal.sqlite" for run_dir in run_dirs]
    target = output / "journal.sqlite"
    if len({path.resolve() for path in journals}) < max(2, len(journals)):
        raise ConfigError("merge: name at least two different runs")
    if target.exists():
        raise ConfigError(f"--output: {output} holds a run already; choose another folder")
    check_run_folder(output)
    check_ours({output / PROMPTS_FILE: is_prompts_file})
    identity, prompts = _joined(journals)
    review = joined_review(run_dirs)
    check_ours({output / REVIEW: is_json_lines})
    output.mkdir(parents=True, exist_ok=True)
    lock, fresh = locked(target), fresh_path(target)
    try:
        remove_journal(fresh)  # left by a merge that was killed
        with closing(Journal(fresh, create=True, lock=False)) as merged:
            merged.begin(identity_of_run(identity, prompts), prompts)
            num_plays = copy_journals(journals, merged)
            whole = merged.identity
        write_prompts(output / PROMPTS_FILE, prompts)
        _write_run_file(run_dirs, output, whole)
        write_review(output, review)
        os.replace(fresh, target)
    finally:
        remove_journal(fresh)
        lock.release()
    return len(prompts), num_plays


def _joined(journals: Sequence[Path]) -> tuple[dict[str, Any], list[Prompt]]:
    """Return the common identity without the prompts, and all prompts."""
    first: dict[str, Any] = {}
    prompts: dict[str, Prompt] = {}
    places: dict[str, tuple[str, Path]] = {}  # digest of a prompt -> its id and journal
    contents: dict[str, Any] = {}
    for path in journals:
        with closing(Journal(path, lock=False)) as journal:
            identity = {k: v for k, v in journal.identity.items() if k != "prompts"}
            if is_written(path):
                raise ConfigError(f"{path}: a process is writing this run; wait for it, or stop it")
            if not identity:
                raise ConfigError(f"{path}: the run has not begun yet")
            first = first or identity
            changed = differences(first, identity)
            if changed:
                raise ConfigError(
                    f"{path} has another configuration than {journals[0]}: {'; '.join(changed)}"
                )
            warn_of_unknown_contents(path, first, identity)
            contents = {**identity.get("contents", {}), **contents}
            for prompt in journal.prompts():
                key = digest_of_values(as_dicts(prompt.messages), dict(prompt.metadata))
                other = places.get(key) or places.get(prompt.id)
                if other is not None and other[1] != path:
                    raise ConfigError(
                        f"{path}: the prompt {prompt.id!r} is also in {other[1]}, as {other[0]!r}; "
                        "runs can be merged if their prompts and ids are different"
                    )
                prompts[prompt.id] = prompt
                places[key] = places[prompt.id] = (prompt.id, path)
    return {**first, "contents": contents} if contents else first, list(prompts.values())


def _write_run_file(run_dirs: Sequence[Path], output: Path, identity: Mapping[str, Any]) -> None:
    files = [run_dir / FILE for run_dir in run_dirs]
    recorded = [read_yaml(file) if file.is_file() else {} for file in files]
    sources = [str(content["prompts"]) for content in recorded if content.get("prompts")]
    configuration = {key: value for key, value in recorded[0].items() if key not in OF_ONE_RUN}
    if sources:
        configuration["prompts"] = ", ".join(dict.fromkeys(sources))
    configuration["merged"] = [str(run_dir) for run_dir in run_dirs]
    start_run_file(output, configuration, identity)
    finish_run_file(output, identity)
