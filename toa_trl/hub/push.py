"""A run's data set on the Hub: its card and picture, sft/, dpo/, rollouts/, lineage.json and audit.json, in one commit.

The journal stays at home, and so does run.yaml: it knows addresses.
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
from toa_trl.hub.dataset_card import name_on_hub
from toa_trl.hub.lineage import FILE as LINEAGE
from toa_trl.utils.files import read_yaml

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FOLDERS = ("sft", "dpo", "rollouts")
FILES = ("README.md", LINEAGE, "audit.json", "rewards.png")
OF_THE_HUB = ".gitattributes"  # a new repository has it, and the Hub keeps it
UNTOUCHED = "nothing was changed there; try again"
ATTEMPTS = 3  # at a commit, while others commit to the same repository


@dataclass(frozen=True)
class Found:
    """What a repository holds."""

    sha: str
    private: bool
    files: tuple[str, ...]
    lineage: dict[str, Any] | None  # None: it has no lineage.json


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    overwrite: bool = False,
) -> str:
    """Push what `Rollouts.save` wrote. Broken off and repeated it ends in the same state, and where that is there already,
    there is no further commit.

    Args:
        folder: of a run, or one that `python -m toa_trl data --output` wrote.
        repo_id: "name" or "owner/name".
        private: of a new data set; None: as the run's run.yaml has it (hub_private_repo), or else the owner on the Hub.
        token: with the right to write; default: HF_TOKEN, or that of `hf auth login`.
        overwrite: replace all that is there, whatever it is; without it, only an earlier push of the same run is.

    Returns:
        The address of the data set's page.

    Raises:
        ConfigError: the folder has no data, the token may not do it, or something else has the name.
        ToaError: the Hub does not answer, or not as it should.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    lineage = _check_folder(folder)
    if private is None and (folder / "run.yaml").is_file():
        private = read_yaml(folder / "run.yaml").get("hub_private_repo")
    api, name = identify(repo_id, token)
    name_on_hub(folder / "README.md", name)
    paths = [folder / file for file in FILES if (folder / file).is_file()]
    paths += sorted(path for part in FOLDERS for path in (folder / part).glob("*.parquet"))
    ours = {path.relative_to(folder).as_posix(): path for path in paths}
    for attempt in range(ATTEMPTS):
        with hub_errors(name):
            found = _look(api, name)
            if found is None:
                api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
                found = _look(api, name)
            assert found is not None
            _check_same(name, found, private, overwrite, lineage)
            stale = [
                CommitOperationDelete(path)
                for path in found.files
                if path not in ours
                and path != OF_THE_HUB
                and (overwrite or path.startswith(tuple(f"{p}/" for p in FOLDERS)))
            ]
            # One commit: whoever loads it sees the run of before or all of this one. Dataset.push_to_hub makes one for each
            # configuration, and upload_folder several of a large folder. A commit takes 25,000 files, here of 200,000 rows
            # each; their content is sent before it, by its hash, so that a broken push goes on with what is missing.
            operations = [CommitOperationAdd(path, _public(file)) for path, file in ours.items()]
            try:
                api.create_commit(
                    name,
                    [*stale, *operations],
                    commit_message=f"toa_trl: run {lineage.get('fingerprint')}",
                    repo_type="dataset",
                    parent_commit=found.sha,
                )
                break
            except HfHubHTTPError as error:
                if error.response.status_code not in (409, 412) or attempt == ATTEMPTS - 1:
                    raise
    return f"{api.endpoint}/datasets/{name}"


def _public(path: Path) -> str | bytes:
    """A file as it is pushed: audit.json without the paths of evaluation sets on this machine, and without their texts."""
    if path.name != "audit.json":
        return str(path)
    audit = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_places_and_texts)
    return (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode()


def _without_places_and_texts(part: dict[str, Any]) -> dict[str, Any]:
    part = {**part, "file": Path(part["file"]).name} if isinstance(part.get("file"), str) else part
    return {**part, "words": ""} if "words" in part else part


def check_push(repo_id: str, private: bool | None = None, token: str | None = None) -> None:
    """What can be known of a push before there is anything to push; it changes nothing.

    Raises:
        ConfigError, ToaError: as of `push_folder`.
    """
    api, name = identify(repo_id, token)
    with hub_errors(name, UNTOUCHED):
        found = _look(api, name)
    if found is not None:
        _check_same(name, found, private, False, None)


def _check_folder(folder: Path) -> dict[str, Any]:
    """The folder's lineage."""
    again = "`python -m toa_trl data RUN` derives it from the journal again"
    if not (folder / LINEAGE).is_file() or not (folder / "README.md").is_file():
        raise ConfigError(
            f"{folder} has no {LINEAGE} or no README.md; name the folder of a run: {again}"
        )
    for part in FOLDERS:
        if not any(pq.read_metadata(file).num_rows for file in (folder / part).glob("*.parquet")):
            raise ConfigError(
                f"{folder}/{part} has no row, and load_dataset refuses that; its README.md says why, and {again} with other "
                "options"
            )
    try:
        lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        return dict(lineage)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder}/{LINEAGE} cannot be read: {error}; {again}") from error


def identify(repo_id: str, token: str | None) -> tuple[HfApi, str]:
    """(client, owner/name), once it is certain that the token may write somewhere, and the owner is somebody it speaks for.

    Args:
        repo_id: "name" or "owner/name".
        token: default: HF_TOKEN, or that of `hf auth login`.

    Raises:
        ConfigError: it is not; or there is no token.
        ToaError: the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    api = HfApi(token=token)
    with hub_errors(repo_id, UNTOUCHED):
        validate_repo_id(repo_id)
        me = api.whoami()
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(
            f"{repo_id}: the token of {me['name']} may only read; make one with the right to write in the Hub's settings, "
            "and `hf auth login`, or set HF_TOKEN"
        )
    owners = [me["name"], *(org["name"] for org in me.get("orgs", ()))]
    name = repo_id if "/" in repo_id else f"{me['name']}/{repo_id}"
    if name.split("/")[0] not in owners:
        raise ConfigError(
            f"{name}: {name.split('/')[0]!r} is neither {me['name']} nor an organisation that the token speaks for "
            f"({', '.join(owners[1:]) or 'there is none'}); choose another owner, or another token"
        )
    return api, name


def _look(api: HfApi, name: str) -> Found | None:
    """What the repository holds; None: there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.dataset_info(name)
    except RepositoryNotFoundError:
        return None
    files = tuple(each.rfilename for each in info.siblings or ())
    lineage = None
    if LINEAGE in files:
        path = api.hf_hub_download(name, LINEAGE, repo_type="dataset", revision=info.sha)
        try:
            lineage = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError):  # somebody else's
            lineage = {}
    return Found(str(info.sha), bool(info.private), files, lineage)


def _check_same(
    name: str, found: Found, private: bool | None, overwrite: bool, lineage: dict[str, Any] | None
) -> None:
    """Raises:
    ConfigError: the repository is public though it shall not be, or it holds something else than this run (where `lineage`
        is None: than any run).
    """
    if private and not found.private:
        raise ConfigError(
            f"{name} is public; make it private on its page on the Hub, or choose another name"
        )
    others = [path for path in found.files if path != OF_THE_HUB]
    if overwrite or not others:
        return
    remedy = "choose another name, or replace all of it with `python -m toa_trl push RUN NAME --overwrite`"
    if found.lineage is None:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ConfigError(
            f"{name} is there and holds something else than a run of toa_trl ({some}); {remedy}"
        )
    if lineage is not None and found.lineage.get("fingerprint") != lineage.get("fingerprint"):
        raise ConfigError(
            f"{name} holds another run: fingerprint {found.lineage.get('fingerprint')}, this one {lineage.get('fingerprint')}; "
            f"{remedy}"
        )


@contextmanager
def hub_errors(
    name: str,
    again: str = "nothing there is half done, and `python -m toa_trl push RUN NAME` goes on",
) -> Iterator[None]:
    """What goes wrong with the Hub, in one line with the remedy.

    Args:
        name: of what is pushed.
        again: what to do where the Hub does not answer as it should.

    Raises:
        ConfigError: no token, or one that may not do it, or no such name.
        ToaError: the Hub does not answer, or not as it should.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of whichever client it has
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    broke = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)
    login = "`hf auth login` with a token that may write, or set HF_TOKEN"
    try:
        yield
    except (ConfigError, ToaError):
        raise
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"{name}: there is no token for the Hub; {login}") from error
    except HFValidationError as error:
        raise ConfigError(f"{name!r} is no name on the Hub: {_line(error)}") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError(
            f"{name}: HF_HUB_OFFLINE is set, so the Hub cannot be asked; unset it"
        ) from error
    except HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or _line(error)
        if status == 401:
            raise ConfigError(f"{name}: the Hub does not know the token; {login}") from error
        if status in (402, 403):
            raise ConfigError(f"{name}: the Hub refuses it ({status}: {said}); {login}") from error
        raise ToaError(f"{name}: the Hub answered {status} ({said}); {again}") from error
    except ValueError as error:
        if not str(error).startswith(
            ("Invalid metadata", "LFS batch API")
        ):  # of the card, or of the Hub's storage
            raise
        raise ConfigError(f"{name}: {_line(error)}") from error
    except Exception as error:
        if not isinstance(error, broke) and not isinstance(
            error.__cause__, broke
        ):  # RuntimeError from it: an upload
            raise
        raise ToaError(
            f"{name}: the connection to the Hub broke ({_line(error.__cause__ or error)}); {again}"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
