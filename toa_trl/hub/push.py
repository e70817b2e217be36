"""Pushing a run's data set to the Hub in one commit: card, picture, data, lineage and audit.

The journal is not uploaded, nor is run.yaml, which contains addresses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from toa_trl.errors import ConfigError, ToaError
from toa_trl.hub.card_edits import card_to_push
from toa_trl.hub.dataset_card import PARTS, named_on_hub
from toa_trl.hub.lineage import FILE as LINEAGE
from toa_trl.utils.files import read_configuration, read_object
from toa_trl.utils.stage import stage
from toa_trl.utils.targets import check_complete

if TYPE_CHECKING:
    from huggingface_hub import HfApi

OPTIONAL = ("kto", "groups")  # made by recipes
FILES = ("README.md", LINEAGE, "audit.json", "rewards.png")
HUB_FILE = ".gitattributes"  # created and kept by the Hub
UNTOUCHED = "nothing was changed there; try again"
ATTEMPTS = 3  # at a commit, if others commit to the same repository


@dataclass(frozen=True)
class Repository:
    """The state of a repository."""

    sha: str
    private: bool
    files: tuple[str, ...]
    lineage: dict[str, Any] | None  # None: there is no lineage.json


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    overwrite: bool = False,
) -> str:
    """Push what `Rollouts.save` wrote. Idempotent: safe to repeat after an interruption.

    If the repository has these contents already, there is no further commit. What was edited by
    hand in its card stays: see `toa_trl.hub.card_edits`.

    Args:
        folder: folder of a run, or one that `toa-trl data --output` wrote.
        repo_id: "name" or "owner/name".
        private: visibility of a new data set; None: hub_private_repo in the run's run.yaml, or the
            owner's default on the Hub.
        token: token with write access; by default HF_TOKEN, or that of `hf auth login`.
        overwrite: replace all contents of the repository; otherwise only an earlier push of the
            same run is replaced.

    Returns:
        The address of the data set's page.

    Raises:
        ConfigError: the folder has no data, the token lacks a permission, or the name is in use.
        ToaError: the Hub does not respond, or responds with an error.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    lineage = _check_folder(folder)
    if private is None:
        private = read_configuration(folder).get("hub_private_repo")
    api, name = identify(repo_id, token)
    paths = [folder / file for file in FILES if (folder / file).is_file()]
    for part in PARTS:
        paths += sorted((folder / part).glob("*.parquet"))
    local = {path.relative_to(folder).as_posix(): path for path in paths}
    data_folders = tuple(f"{part}/" for part in PARTS)
    for attempt in range(ATTEMPTS):
        with hub_errors(name):
            repository = _look_up(api, name)
            if repository is None:
                api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
                repository = _look_up(api, name)
            assert repository is not None
            _check_replaceable(name, repository, private, overwrite, lineage)
            stale = []
            for path in repository.files:
                ours = overwrite or path.startswith(data_folders)
                if ours and path not in local and path != HUB_FILE:
                    stale.append(CommitOperationDelete(path))
            # One commit, so that users load the earlier run or all of this one: push_to_hub makes a
            # commit per configuration, and upload_folder several for a large folder. A commit takes
            # 25,000 files, here of 200,000 rows each; contents are uploaded before it by hash, so
            # that an interrupted push continues with what is missing.
            card = _card_there(api, name, repository)
            operations = []
            for path, file in local.items():
                operations.append(CommitOperationAdd(path, _public(file, name, card)))
            try:
                with stage(f"pushing {len(operations)} files to {name}"):
                    api.create_commit(
                        name,
                        [*stale, *operations],
                        commit_message=f"toa_trl: run {lineage.get('fingerprint')}",
                        repo_type="dataset",
                        parent_commit=repository.sha,
                    )
                break
            except HfHubHTTPError as error:
                if error.response.status_code not in (409, 412) or attempt == ATTEMPTS - 1:
                    raise
    return f"{api.endpoint}/datasets/{name}"


def _card_there(api: HfApi, name: str, repository: Repository) -> str | None:
    """Return the card on the Hub, if there is one."""
    if "README.md" not in repository.files:
        return None
    path = api.hf_hub_download(name, "README.md", repo_type="dataset", revision=repository.sha)
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _public(path: Path, repo_id: str, card: str | None) -> str | bytes:
    """Return a file as it is pushed.

    The card has the data set's name and what was edited by hand in that on the Hub, and audit.json
    no paths and texts of evaluation sets.
    """
    if path.name == "README.md":
        named = named_on_hub(path.read_text(encoding="utf-8"), repo_id)
        return card_to_push(named, card).encode()
    if path.name != "audit.json":
        return str(path)
    audit = json.loads(path.read_text(encoding="utf-8"), object_hook=_redacted)
    return (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode()


def _redacted(part: dict[str, Any]) -> dict[str, Any]:
    if isinstance(part.get("file"), str):
        part = {**part, "file": Path(part["file"]).name}
    return {**part, "words": ""} if "words" in part else part


def check_push(repo_id: str, private: bool | None = None) -> None:
    """Check what can be known of a push before there is data; nothing is changed.

    Raises:
        ConfigError: see `push_folder`.
        ToaError: see `push_folder`.
    """
    api, name = identify(repo_id, None)
    with hub_errors(name, UNTOUCHED):
        repository = _look_up(api, name)
    if repository is not None:
        _check_replaceable(name, repository, private, False, None)


def _check_folder(folder: Path) -> dict[str, Any]:
    """Return the lineage of a folder, once it is certain that the folder is complete."""
    check_complete(folder)
    again = "`toa-trl data RUN` derives it from the journal again"
    if not (folder / LINEAGE).is_file() or not (folder / "README.md").is_file():
        raise ConfigError(
            f"{folder} has no {LINEAGE} or no README.md; name the folder of a run: {again}"
        )
    for part in PARTS:
        if part in OPTIONAL and not (folder / part).exists():
            continue
        if not any(pq.read_metadata(file).num_rows for file in (folder / part).glob("*.parquet")):
            raise ConfigError(
                f"{folder}/{part} has no rows, which load_dataset refuses; README.md lists the "
                f"reasons, and {again} with other options"
            )
    try:
        lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        return dict(lineage)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder}/{LINEAGE} cannot be read: {error}; {again}") from error


def identify(repo_id: str, token: str | None) -> tuple[HfApi, str]:
    """Return (client, "owner/name"), once it is certain that the token may write for this owner.

    Args:
        repo_id: "name" or "owner/name".
        token: by default HF_TOKEN, or that of `hf auth login`.

    Raises:
        ConfigError: there is no token, or it lacks the permission.
        ToaError: the Hub does not respond.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    api = HfApi(token=token)
    with hub_errors(repo_id, UNTOUCHED):
        validate_repo_id(repo_id)
        me = api.whoami()
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(
            f"{repo_id}: the token of {me['name']} may only read; create one with write access in "
            "the Hub's settings, and run `hf auth login` or set HF_TOKEN"
        )
    owners = [me["name"], *(org["name"] for org in me.get("orgs", ()))]
    name = repo_id if "/" in repo_id else f"{me['name']}/{repo_id}"
    if name.split("/")[0] not in owners:
        raise ConfigError(
            f"{name}: {name.split('/')[0]!r} is neither {me['name']} nor an organisation of the "
            f"token ({', '.join(owners[1:]) or 'it has none'}); choose another owner or token"
        )
    return api, name


def _look_up(api: HfApi, name: str) -> Repository | None:
    """Return the state of a repository, or None if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.dataset_info(name)
    except RepositoryNotFoundError:
        return None
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    lineage = None
    if LINEAGE in files:
        path = api.hf_hub_download(name, LINEAGE, repo_type="dataset", revision=info.sha)
        lineage = read_object(Path(path))  # empty if another program wrote it
    return Repository(str(info.sha), bool(info.private), files, lineage)


def _check_replaceable(
    name: str,
    repository: Repository,
    private: bool | None,
    overwrite: bool,
    lineage: dict[str, Any] | None,
) -> None:
    """Check that a repository may be replaced by this run, or by any run if `lineage` is None.

    Raises:
        ConfigError: it is public although `private` is set, or it has other contents.
    """
    if private and not repository.private:
        raise ConfigError(
            f"{name} is public; make it private on its page on the Hub, or choose another name"
        )
    others = [path for path in repository.files if path != HUB_FILE]
    if overwrite or not others:
        return
    remedy = "choose another name, or replace it with `toa-trl push RUN NAME --overwrite`"
    if repository.lineage is None:
        listed = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ConfigError(
            f"{name} exists and is not a run of toa_trl (it contains {listed}); {remedy}"
        )
    if lineage is None:
        return
    theirs, ours = repository.lineage.get("fingerprint"), lineage.get("fingerprint")
    if theirs != ours:
        raise ConfigError(
            f"{name} contains another run: fingerprint {theirs}, this one {ours}; {remedy}"
        )


@contextmanager
def hub_errors(
    name: str,
    again: str = "the repository is consistent, and `toa-trl push RUN NAME` continues the upload",
) -> Iterator[None]:
    """Turn errors of the Hub into one line with a remedy.

    Args:
        name: name of the repository.
        again: remedy if the Hub does not respond, or responds with an error.

    Raises:
        ConfigError: there is no token, it lacks a permission, or the name is invalid.
        ToaError: the Hub does not respond, or responds with an error.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    connection = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)
    login = "run `hf auth login` with a token that has write access, or set HF_TOKEN"
    try:
        yield
    except (ConfigError, ToaError):
        raise
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"{name}: there is no token for the Hub; {login}") from error
    except HFValidationError as error:
        raise ConfigError(f"{name!r} is not a valid name on the Hub: {_line(error)}") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError(
            f"{name}: HF_HUB_OFFLINE is set, so the Hub cannot be reached; unset it"
        ) from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, error.server_message or _line(error)
        if status == 401:
            raise ConfigError(f"{name}: the Hub rejects the token; {login}") from error
        if status in (402, 403):
            raise ConfigError(f"{name}: the Hub refuses ({status}: {reason}); {login}") from error
        raise ToaError(f"{name}: the Hub responded {status} ({reason}); {again}") from error
    except ValueError as error:
        # of the card, and of the Hub's storage
        if not str(error).startswith(("Invalid metadata", "LFS batch API")):
            raise
        raise ConfigError(f"{name}: {_line(error)}") from error
    except Exception as error:
        # an upload raises RuntimeError from a connection error
        if not isinstance(error, connection) and not isinstance(error.__cause__, connection):
            raise
        reason = _line(error.__cause__ or error)
        raise ToaError(f"{name}: the connection to the Hub failed ({reason}); {again}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
