"""The part of the Hub that pushing and loading ask for, in a process of its own.

It can be told to break.

    with serving("tests.hub_server") as hub:      # of tests.server
        environment = hub_environment(hub, tmp_path, "ann_write")
        hub.control(at="commit", how="500")

Speaks the protocol of huggingface_hub over plain HTTP: whoami, create, preupload, LFS batch and
PUT, commit, tree, resolve. `control` breaks the requests to one route, `times` of them after the
first `after`; `stats` tells what was asked and what is there. Answers are the Hub's as far as the
client reads them: status, X-Error-Code, X-Error-Message and the JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

# token -> (user, role as whoami tells it); `lab` is an organisation of ann's whose data are private
# by default
TOKENS = {
    "ann_write": ("ann", "write"),
    "ann_read": ("ann", "read"),
    "ann_fine": ("ann", "fineGrained"),  # whoami does not say that it has no right to write
    "bob_write": ("bob", "write"),
    "me_write": ("me", "write"),
}
MEMBERS = {"ann": ("ann", "lab"), "bob": ("bob",), "me": ("me",)}
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "llama3.1", "other", "unknown"}
ROUTES = ("whoami", "create", "info", "preupload", "batch", "upload", "commit", "tree", "resolve")
HOWS = (
    "500",
    "403",
    "409",
    "412",
    "cut",
    "cut_after",
    "stall",
)  # cut_after: done, but the answer never arrives
LFS = (".parquet", ".safetensors", ".png", ".bin")


def hub_environment(hub: Any, home: Path, token: str | None = None) -> dict[str, str]:
    """What a process of its own needs to take this for the Hub.

    Nothing of the user's own Hub is left.
    """
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
    }
    ours = {
        "HF_ENDPOINT": hub.root,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    return {
        **kept,
        **ours,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token else {}),
    }


@dataclass
class Repo:
    """One data set or model."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(
        default_factory=list
    )  # (sha, message, tree), oldest first

    @property
    def sha(self) -> str:
        return self.commits[-1][0]

    def commit(self, message: str, tree: dict[str, bytes]) -> str:
        seed = f"{len(self.commits)} {message} {sorted(tree)}".encode()
        self.commits.append(
            (
                hashlib.sha1(seed + b"".join(tree[path] for path in sorted(tree))).hexdigest(),
                message,
                tree,
            )
        )
        return self.sha


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = JSONResponse({"error": message, **more}, status, headers)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in a tree."""
    found: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": git_oid(content),
    }
    if path.endswith(LFS):
        found["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return found


class Hub:
    """All of its state."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}  # of LFS, by sha256
        self.asked: Counter[str] = Counter()
        self.breaks: dict[str, dict[str, Any]] = {}

    def user(self, request: Request, write: bool = False) -> str | None:
        """Who asks.

        Raises:
            Refused: with another token than those, or, with `write`, without the right to.
        """
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            if write:
                raise Refused(401, "Invalid username or password.")
            return None
        if token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        user, role = TOKENS[token]
        if write and role != "write":
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        return user

    def repo(self, request: Request, kind: str, name: str, write: bool = False) -> Repo:
        """The repository.

        Raises:
            Refused: there is none, or whoever asks may not see it, or not write.
        """
        user, repo = self.user(request, write), self.repos.get((kind, name))
        owners = MEMBERS.get(user or "", ())
        if repo is None or (repo.private and name.split("/")[0] not in owners):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and name.split("/")[0] not in owners:
            raise Refused(403, "Forbidden: Authorization error.")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        """(sha, tree) of a revision.

        Raises:
            Refused: there is none.
        """
        for sha, _, tree in reversed(repo.commits):
            if revision in ("main", sha):
                return sha, tree
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


hub, app = Hub(), FastAPI()


@app.exception_handler(Refused)
async def _refused(request: Request, refused: Refused) -> Response:
    return refused.answer


def route_of(request: Request) -> str:
    path = request.url.path
    words = {
        "whoami-v2": "whoami",
        "repos/create": "create",
        "/preupload/": "preupload",
        "objects/batch": "batch",
    }
    words |= {"/lfs/": "upload", "/commit/": "commit", "/tree/": "tree", "/resolve/": "resolve"}
    return next((route for word, route in words.items() if word in path), "info")


@app.middleware("http")
async def _break(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Count every request, and break those that are to be broken."""
    if request.url.path in ("/stats", "/control"):
        return await call_next(request)
    route = route_of(request)
    hub.asked[route] += 1
    what = hub.breaks.get(route)
    if what is not None:
        what["seen"] += 1
    if what is None or not what["after"] < what["seen"] <= what["after"] + what["times"]:
        return await call_next(request)
    how = what["how"]
    if how == "stall":
        await asyncio.sleep(3600)
    if how == "cut_after":
        await call_next(request)
    if how.startswith("cut"):
        return StreamingResponse(_half(), headers={"content-length": "100"})
    messages = {
        "500": "Internal Error",
        "403": "Forbidden: storage is full",
        "409": "Conflict, try again",
    }
    message = messages.get(how, "A commit has happened since. Please refresh and try again.")
    await request.body()  # whoever is still sending would see a reset instead of the status
    return Refused(int(how), message).answer


async def _half() -> AsyncIterator[bytes]:
    yield b"{"
    raise ConnectionAbortedError("as asked")  # uvicorn then closes the connection


@app.post("/control")
async def control(request: Request) -> dict[str, Any]:
    """{"at": route, "how": ..., "after": 0, "times": 1}.

    {} ends all of it, {"forget": true} empties the Hub as well.
    """
    changes = json.loads(await request.body())
    if changes.pop("forget", False):
        hub.repos.clear()
        hub.blobs.clear()
    if not changes:
        hub.breaks.clear()
        return {}
    assert changes["at"] in ROUTES, changes
    assert changes["how"] in HOWS, changes
    hub.breaks[changes["at"]] = {"after": 0, "times": 1, **changes, "seen": 0}
    return {}


@app.get("/stats")
async def stats() -> dict[str, Any]:
    """What was asked so far, and what is there.

    For each repository its files by their sha256 and its commits.
    """
    repos = {
        f"{kind}/{name}": {
            "private": repo.private,
            "commits": [message for _, message, _ in repo.commits],
            "files": {
                path: hashlib.sha256(content).hexdigest()
                for path, content in repo.commits[-1][2].items()
            },
        }
        for (kind, name), repo in hub.repos.items()
    }
    return {"asked": dict(hub.asked), "repos": repos, "num_blobs": len(hub.blobs)}


@app.get("/api/whoami-v2")
async def whoami(request: Request) -> dict[str, Any]:
    if (user := hub.user(request)) is None:
        raise Refused(401, "Invalid username or password.")
    role = TOKENS[request.headers["authorization"].removeprefix("Bearer ")][1]
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in MEMBERS[user][1:]]
    auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
    return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": auth}


@app.post("/api/repos/create")
async def create(request: Request) -> dict[str, Any]:
    asked = await request.json()
    user, kind = hub.user(request, write=True), asked.get("type", "model") + "s"
    owner = asked.get("organization") or user
    name = f"{owner}/{asked['name']}"
    url = f"{request.base_url}{'datasets/' if kind == 'datasets' else ''}{name}"
    if (kind, name) in hub.repos:
        raise Refused(409, "You already created this repo", url=url)
    if owner not in MEMBERS[user or ""]:
        raise Refused(
            403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"'
        )
    private = asked["visibility"] == "private" if "visibility" in asked else owner == "lab"
    hub.repos[kind, name] = Repo(private)
    hub.repos[kind, name].commit(
        "initial commit", {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
    )
    return {"url": url, "name": name, "id": name}


@app.post("/api/validate-yaml")
async def validate_yaml(request: Request) -> Response:
    head = (await request.json())["content"].split("---\n")
    try:
        metadata = yaml.safe_load(head[1]) if len(head) > 2 and not head[0] else None
    except yaml.YAMLError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    licence = (metadata or {}).get("license")
    if licence is not None and licence not in LICENCES:
        return JSONResponse(
            {
                "errors": [{"message": f'"license" must be one of {sorted(LICENCES)}'}],
                "warnings": [],
            },
            400,
        )
    return JSONResponse(
        {
            "errors": [],
            "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}],
        }
    )


@app.post("/api/{kind}/{owner}/{name}/preupload/{revision}")
async def preupload(
    request: Request, kind: str, owner: str, name: str, revision: str
) -> dict[str, Any]:
    _, tree = hub.tree(hub.repo(request, kind, f"{owner}/{name}", write=True), revision)
    files = []
    for asked in (await request.json())["files"]:
        path, lfs = asked["path"], asked["path"].endswith(LFS)
        found = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if path in tree:
            found["oid"] = hashlib.sha256(tree[path]).hexdigest() if lfs else git_oid(tree[path])
        files.append(found)
    return {"files": files}


@app.post("/{owner}/{name}.git/info/lfs/objects/batch")
@app.post("/datasets/{owner}/{name}.git/info/lfs/objects/batch")
async def batch(request: Request, owner: str, name: str) -> dict[str, Any]:
    kind = "datasets" if request.url.path.startswith("/datasets/") else "models"
    hub.repo(request, kind, f"{owner}/{name}", write=True)
    objects = []
    for each in (await request.json())["objects"]:
        upload = {"upload": {"href": f"{request.base_url}lfs/{each['oid']}"}}
        objects.append({**each} if each["oid"] in hub.blobs else {**each, "actions": upload})
    return {"transfer": "basic", "objects": objects}


@app.put("/lfs/{oid}")
async def upload(request: Request, oid: str) -> Response:
    content = await request.body()
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refused(400, "the content is not what was announced")
    hub.blobs[oid] = content
    return Response()


@app.post("/api/{kind}/{owner}/{name}/commit/{revision}")
async def commit(
    request: Request, kind: str, owner: str, name: str, revision: str
) -> dict[str, Any]:
    repo = hub.repo(request, kind, f"{owner}/{name}", write=True)
    lines = [json.loads(line) for line in (await request.body()).splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, repo.sha):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(hub.tree(repo, revision)[1])
    for line in lines[1:]:
        value = line["value"]
        path = value["path"]
        if line["key"] == "file":
            tree[path] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.blobs:
                raise Refused(400, f"LFS object {value['oid']} of {path} was not uploaded")
            tree[path] = hub.blobs[value["oid"]]
        elif line["key"] == "deletedFile":
            if tree.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif line["key"] == "deletedFolder":
            tree = {
                other: content
                for other, content in tree.items()
                if not other.startswith(path.rstrip("/") + "/")
            }
    sha = repo.commit(header["summary"], tree)
    return {
        "success": True,
        "commitOid": sha,
        "commitUrl": f"{request.base_url}{owner}/{name}/commit/{sha}",
    }


@app.get("/api/{kind}/{owner}/{name}")
@app.get("/api/{kind}/{owner}/{name}/revision/{revision}")
async def info(
    request: Request, kind: str, owner: str, name: str, revision: str = "main"
) -> dict[str, Any]:
    repo = hub.repo(request, kind, f"{owner}/{name}")
    sha, tree = hub.tree(repo, revision)
    head = tree.get("README.md", b"").decode().split("---\n")
    card = yaml.safe_load(head[1]) if len(head) > 2 and not head[0] else {}
    about = {
        "id": f"{owner}/{name}",
        "sha": sha,
        "private": repo.private,
        "tags": [],
        "downloads": 0,
        "gated": False,
    }
    return {
        **about,
        "siblings": [{"rfilename": path} for path in sorted(tree)],
        "cardData": card,
        "disabled": False,
    }


@app.get("/api/{kind}/{owner}/{name}/tree/{revision}")
@app.get("/api/{kind}/{owner}/{name}/tree/{revision}/{path:path}")
async def list_tree(
    request: Request,
    kind: str,
    owner: str,
    name: str,
    revision: str,
    path: str = "",
    recursive: bool = False,
) -> list[dict[str, Any]]:
    _, tree = hub.tree(hub.repo(request, kind, f"{owner}/{name}"), revision)
    prefix = path.rstrip("/") + "/" if path else ""
    below = {each: content for each, content in sorted(tree.items()) if each.startswith(prefix)}
    if path and not below:
        raise Refused(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
    inner = [each.removeprefix(prefix).split("/")[:-1] for each in below]
    depth = None if recursive else 1
    folders = sorted(
        {prefix + "/".join(parts[: i + 1]) for parts in inner for i in range(len(parts))[:depth]}
    )
    files = [
        entry(each, content)
        for each, content in below.items()
        if recursive or "/" not in each.removeprefix(prefix)
    ]
    return [
        {"type": "directory", "path": each, "oid": git_oid(each.encode()), "size": 0}
        for each in folders
    ] + files


@app.post("/api/{kind}/{owner}/{name}/paths-info/{revision}")
async def paths_info(
    request: Request, kind: str, owner: str, name: str, revision: str
) -> list[dict[str, Any]]:
    _, tree = hub.tree(hub.repo(request, kind, f"{owner}/{name}"), revision)
    asked: Any = await (
        request.form() if "form" in request.headers.get("content-type", "") else request.json()
    )
    paths = asked.getlist("paths") if hasattr(asked, "getlist") else asked["paths"]
    return [entry(path, tree[path]) for path in paths if path in tree]


@app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
@app.api_route("/datasets/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Response:
    kind = "datasets" if request.url.path.startswith("/datasets/") else "models"
    sha, tree = hub.tree(hub.repo(request, kind, f"{owner}/{name}"), revision)
    if path not in tree:
        raise Refused(404, "Entry not found", "EntryNotFound")
    content = tree[path]
    tag = hashlib.sha256(content).hexdigest() if path.endswith(LFS) else git_oid(content)
    headers = {"ETag": f'"{tag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if asked := request.headers.get("range", "").removeprefix("bytes="):
        first, _, last = asked.partition("-")
        end = min(int(last or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        return Response(content[int(first) : end + 1], 206, headers)
    return Response(
        content, 200, headers
    )  # Starlette leaves the body of a HEAD out, and its length in


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument(
        "--until_eof",
        action="store_true",
        help="end when stdin ends, so that no server is left over",
    )
    options = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", options.port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))

    async def serve() -> None:
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
        sys.stdout.flush()
        if options.until_eof:
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            os._exit(0)  # without waiting for those whom a stall keeps waiting
        await serving

    asyncio.run(serve())


if __name__ == "__main__":
    main()
