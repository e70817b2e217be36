"""Pushing a run's folder to a Hub that is a process of its own, and breaks where it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from tests.helpers import IDENTITY, play
from tests.server import Process, serving
from tests.test_rollouts import rollouts
from toa_trl import Rollouts
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError, ToaError
from toa_trl.hub.card_edits import PUSHED as LINE
from toa_trl.hub.card_edits import keep_edits
from toa_trl.hub.dataset_card import named_on_hub
from toa_trl.hub.push import check_push, hub_errors, push_folder
from toa_trl.report.audit import read_audit
from toa_trl.sampling.journal import Journal
from toa_trl.types import Action, Play, Prompt
from toa_trl.utils.cards import BLOCK, is_card, new_card

PAIRS: dict[str, Any] = {"preference": {"rejected_rank": 2}}


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving("tests.hub_server") as process:
        yield process


def be_the_hub(server: Process, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Point the client to this Hub; it reads its constants from the environment when imported."""
    values = {"ENDPOINT": server.root, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    urls = f"{server.root}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    more = {
        "HUGGINGFACE_CO_URL_TEMPLATE": urls,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
    }
    for name, value in {**values, **more}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(
        "huggingface_hub.utils._http.time.sleep", lambda _: None
    )  # between the client's own attempts
    monkeypatch.setenv("HF_TOKEN", "ann_write")


@pytest.fixture
def hub(server: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    be_the_hub(server, monkeypatch, tmp_path / "cache")
    yield server
    server.control(forget=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "my-run"
    folder.mkdir()
    (folder / "run.yaml").write_text("agents: [{name: a, base_url: 'http://secret:1'}]")
    rollouts(5, 1.0, None, 3.0, path=folder / "journal.sqlite").save(folder, **PAIRS)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "my-run"))


def repo(hub: Process, name: str) -> dict[str, Any]:
    return hub.stats()["repos"][f"datasets/{name}"]


PUSHED = {"README.md", "lineage.json", "audit.json", "rewards.png", ".gitattributes"}


def test_what_is_pushed_and_what_stays_at_home(hub: Process, run: Path) -> None:
    assert push_folder(run, "ann/first") == f"{hub.root}/datasets/ann/first"
    there = repo(hub, "ann/first")
    assert not there["private"]
    assert there["commits"] == [
        "initial commit",
        f"toa_trl: run {json.loads((run / 'lineage.json').read_text())['fingerprint']}",
    ]
    shards = {f"{part}/train-00000-of-00001.parquet" for part in ("sft", "dpo", "rollouts")}
    assert there["files"].keys() == PUSHED | shards
    assert 'load_dataset("OWNER/' in (run / "README.md").read_text()


def test_a_second_push_of_the_same_is_no_commit(hub: Process, run: Path) -> None:
    push_folder(run, "second")  # of whom the token is
    before = repo(hub, "ann/second")
    Rollouts.load(run).push_to_hub("ann/second", **PAIRS)  # which saves again: the same files
    assert repo(hub, "ann/second") == before
    main(["push", str(run), "ann/second"])
    assert repo(hub, "ann/second") == before


def test_data_sets_of_recipes_are_pushed_and_removed_with_their_recipe(
    hub: Process, run: Path
) -> None:
    it, recipes = Rollouts.load(run), [{"builder": "kto"}, {"builder": "groups"}]
    it.push_to_hub("ann/recipes", **PAIRS, recipes=recipes)
    further = {"kto/train-00000-of-00001.parquet", "groups/train-00000-of-00001.parquet"}
    assert further <= repo(hub, "ann/recipes")["files"].keys()
    it.push_to_hub("ann/recipes", **PAIRS)
    assert not further & repo(hub, "ann/recipes")["files"].keys()
    (run / "kto").mkdir()
    with pytest.raises(ConfigError, match="/kto has no rows"):
        push_folder(run, "ann/recipes")


@pytest.mark.parametrize(
    ("at", "how", "times", "after"),
    [
        ("create", "500", 9, 0),
        ("create", "cut_after", 1, 0),
        ("preupload", "500", 9, 0),
        ("preupload", "cut", 9, 0),
        ("batch", "500", 9, 0),
        ("upload", "cut", 99, 2),
        ("upload", "500", 99, 1),
        ("upload", "cut_after", 99, 3),
        ("commit", "500", 1, 0),
        ("commit", "cut", 1, 0),
        ("commit", "cut_after", 1, 0),
        ("commit", "412", 3, 0),
    ],
)
def test_a_push_that_breaks_and_is_repeated_ends_in_the_same_state(
    hub: Process, run: Path, at: str, how: str, times: int, after: int
) -> None:
    name = "ann/broken"
    hub.control(at=at, how=how, times=times, after=after)
    with pytest.raises(
        ToaError, match=f"{name}: the (Hub responded|connection to the Hub failed).*continues"
    ) as raised:
        push_folder(run, name)
    assert not isinstance(raised.value, ConfigError)
    assert "\n" not in str(raised.value)
    hub.control()
    push_folder(run, name)
    there = repo(hub, name)
    assert len(there["commits"]) == 2
    push_folder(run, f"{name}-whole")
    readme = there["files"].pop("README.md")
    whole = repo(hub, f"{name}-whole")["files"]
    assert readme != whole.pop("README.md")  # it tells the name
    assert there["files"] == whole


def test_only_what_is_missing_is_sent_again(hub: Process, run: Path) -> None:
    rollouts(5, 11.0, 12.0, 13.5, path=(run.with_name("other")) / "journal.sqlite").save(
        run, **PAIRS
    )
    hub.control(at="upload", how="500", times=99, after=2)
    with pytest.raises(ToaError):
        push_folder(run, "ann/missing")
    hub.control()
    sent, num_blobs = hub.stats()["asked"]["upload"], hub.stats()["num_blobs"]
    push_folder(run, "ann/missing")
    assert (
        hub.stats()["num_blobs"] - num_blobs == hub.stats()["asked"]["upload"] - sent == 2
    )  # of three shards and a picture


def test_no_place_on_this_machine_is_pushed(hub: Process, run: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text('{"id": "x", "prompt": "Question 3?"}\n')
    found = Rollouts.load(run)
    found.save(run, **PAIRS, decontaminate=[str(tmp_path / "bench.jsonl")])
    assert str(tmp_path) in (run / "audit.json").read_text()
    push_folder(run, "ann/places")
    audit = json.loads(
        Path(hf_hub_download("ann/places", "audit.json", repo_type="dataset")).read_text()
    )
    assert [each["file"] for each in audit["contamination"]["sets"]] == ["bench.jsonl"]
    assert [each.words for each in read_audit(run).contamination.overlaps] == ["question 3"]  # type: ignore[union-attr]
    assert [(each["problem_id"], each["words"]) for each in audit["contamination"]["overlaps"]] == [
        ("x", "")
    ]
    for name in PUSHED - {".gitattributes"}:
        content = Path(hf_hub_download("ann/places", name, repo_type="dataset")).read_bytes()
        assert str(tmp_path).encode() not in content
        assert b"secret" not in content
        assert b"ann_write" not in content


def test_no_address_of_a_server_is_pushed(hub: Process, tmp_path: Path) -> None:
    said = (
        "http://127.0.0.1:8000/v1: Cannot connect to host gpu-7:8000 "
        "[Connect call failed ('127.0.0.1', 8000)]"
    )
    journal = Journal(tmp_path / "run" / "journal.sqlite", create=True)
    journal.begin(IDENTITY, [Prompt("0", "Question?")])  # type: ignore[arg-type]
    plays = [play(0, 1.0), play(1, 2.0), Play(2, Action("a"), error=said)]
    journal.append_all([("0", each) for each in plays])
    Rollouts(journal).push_to_hub("ann/errors", **PAIRS)
    assert [each.plays[-1].error for each in Rollouts(journal)] == [said]
    files = {
        name: hf_hub_download("ann/errors", name, repo_type="dataset")
        for name in repo(hub, "ann/errors")["files"]
    }
    tables = [
        pq.read_table(path).to_pylist() for name, path in files.items() if name.endswith(".parquet")
    ]
    for content in (str(tables).encode(), *(Path(path).read_bytes() for path in files.values())):
        assert b"127.0.0.1" not in content
        assert b"gpu-7" not in content
    assert "Cannot connect to host a server" in str(tables)


@pytest.mark.parametrize("how", ["409", "412"])
def test_a_commit_of_somebody_else_in_between_is_no_hindrance(
    hub: Process, run: Path, how: str
) -> None:
    hub.control(at="commit", how=how, times=2)
    push_folder(run, f"ann/between-{how}")
    assert len(repo(hub, f"ann/between-{how}")["commits"]) == 2


def test_what_somebody_else_pushed_in_between_is_seen(
    hub: Process, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = HfApi.create_commit

    def overtaken(self: HfApi, name: str, operations: Any, **options: Any) -> Any:
        monkeypatch.setattr(HfApi, "create_commit", commit)
        put(hub, name, "train.csv", b"theirs")
        return commit(self, name, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(ConfigError, match=r"not a run of toa_trl \(it contains train\.csv\)"):
        push_folder(run, "ann/overtaken")
    assert repo(hub, "ann/overtaken")["files"].keys() == {".gitattributes", "train.csv"}


def test_nothing_of_an_earlier_push_is_left(
    hub: Process, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Rollouts.load(run)
    with monkeypatch.context() as small:
        small.setattr("toa_trl.data.tables.ROWS_PER_FILE", 2)
        small.setattr("toa_trl.data.tables.ROWS_PER_BATCH", 2)
        it.push_to_hub("ann/shards", **PAIRS)
    assert sum(path.startswith("sft/") for path in repo(hub, "ann/shards")["files"]) == 3
    put(hub, "ann/shards", "LICENSE", b"mine")
    it.push_to_hub("ann/shards", **PAIRS)
    files = repo(hub, "ann/shards")["files"].keys()
    shards = {f"{part}/train-00000-of-00001.parquet" for part in ("sft", "dpo", "rollouts")}
    assert files == PUSHED | shards | {"LICENSE"}  # what its owner added stays


def put(hub: Process, name: str, path: str, content: bytes) -> None:
    api = HfApi(endpoint=hub.root, token="ann_write")
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name, repo_type="dataset")


def test_what_is_edited_in_the_card_on_the_hub_stays(hub: Process, run: Path) -> None:
    def there() -> str:
        path = hf_hub_download("ann/edited", "README.md", repo_type="dataset")
        return Path(path).read_text()

    card = run / "README.md"
    card.write_text(card.read_text() + "\nWritten here.\n\nRemoved later.\n")
    push_folder(run, "ann/edited")
    edited = there().replace("---\n", "---\nlicense: mit\n", 1)
    begin = edited.index("<!-- toa_trl begin")
    edited = edited[:begin] + "Thanks to Ann.\n\n" + edited[begin:]
    put(hub, "ann/edited", "README.md", edited.replace("Removed later.", "").encode())
    for _ in range(2):
        push_folder(run, "ann/edited")
        assert "license: mit" in there()
        assert there().index("Thanks to Ann.") < there().index("<!-- toa_trl begin")
        assert there().count("Written here.") == 1
        assert "Removed later." not in there()
    assert len(repo(hub, "ann/edited")["commits"]) == 4  # the last push had nothing new
    main(["data", str(run), "--policy", "worst", "--top_k", "2"])
    card.write_text(card.read_text().replace("Written here.", "Rewritten here."))
    main(["push", str(run), "ann/edited", "--overwrite"])
    assert "Thanks to Ann." in there()
    assert "Rewritten here." in there()
    assert "Written here." not in there().replace("Rewritten here.", "")
    assert BLOCK.findall(there()) == BLOCK.findall(named_on_hub(card.read_text(), "ann/edited"))


def test_what_is_edited_in_the_card_of_a_model_on_the_hub_stays(
    hub: Process, tmp_path: Path
) -> None:
    api, card = HfApi(endpoint=hub.root, token="ann_write"), tmp_path / "student" / "README.md"
    trained = {"tags": ["trl"]}

    def push(text: str) -> str:
        card.parent.mkdir(exist_ok=True)
        previous = card.read_text() if card.exists() else ""
        card.write_text(new_card(card, previous, trained, {"card": text}))
        keep_edits(card, "ann/student")
        api.create_repo("ann/student", exist_ok=True)
        api.upload_file(path_or_fileobj=str(card), path_in_repo="README.md", repo_id="ann/student")
        return Path(hf_hub_download("ann/student", "README.md")).read_text()

    there = push("# First")
    edited = there.replace("tags:", "license: mit\ntags:") + "\nNot for production.\n"
    api.upload_file(
        path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="ann/student"
    )
    there = push("# Second")
    assert "# Second" in there
    assert "# First" not in there
    assert there.count("Not for production.") == there.count("license: mit") == 1
    third = push("# Second")
    assert LINE.sub("", third) == LINE.sub("", there)
    assert push("# Second") == third
    assert is_card(card)


def test_other_content_is_refused_unless_it_is_to_be_replaced(hub: Process, run: Path) -> None:
    put(hub, "ann/taken", "train.csv", b"a,b\n1,2\n")
    before = repo(hub, "ann/taken")
    for pushing in (lambda: push_folder(run, "ann/taken"), lambda: check_push("ann/taken")):
        with pytest.raises(
            ConfigError, match=r"not a run of toa_trl \(it contains train\.csv\); .*--overwrite"
        ):
            pushing()
    assert repo(hub, "ann/taken") == before
    main(["push", str(run), "ann/taken", "--overwrite"])
    assert "train.csv" not in repo(hub, "ann/taken")["files"]
    assert repo(hub, "ann/taken")["files"].keys() >= PUSHED


def test_another_run_is_refused(hub: Process, run: Path, tmp_path: Path) -> None:
    push_folder(run, "ann/runs")
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "lineage.json").write_text('{"fingerprint": "0123"}')
    with pytest.raises(
        ConfigError,
        match=r"contains another run: fingerprint \w{16}, this one 0123; choose another name",
    ):
        push_folder(other, "ann/runs")
    check_push("ann/runs")  # before the sampling nobody knows which run it will be
    push_folder(other, "ann/runs", overwrite=True)
    push_folder(other, "ann/runs")


def test_who_may_see_it(hub: Process, run: Path) -> None:
    push_folder(run, "lab/of-the-lab")  # whose data are private by default
    push_folder(run, "ann/hidden", private=True)
    push_folder(run, "lab/open", private=False)
    push_folder(run, "ann/open")
    private = {
        name: repo(hub, name)["private"]
        for name in ("lab/of-the-lab", "ann/hidden", "lab/open", "ann/open")
    }
    assert private == {
        "lab/of-the-lab": True,
        "ann/hidden": True,
        "lab/open": False,
        "ann/open": False,
    }
    for pushing in (
        lambda: push_folder(run, "ann/open", private=True),
        lambda: check_push("ann/open", private=True),
    ):
        with pytest.raises(ConfigError, match="ann/open is public; make it private"):
            pushing()


def test_a_private_runs_push_that_broke_goes_on_private(hub: Process, run: Path) -> None:
    with (run / "run.yaml").open("a") as file:
        file.write("\nhub_private_repo: true\n")
    hub.control(at="create", how="500", times=9)
    with pytest.raises(ToaError, match="continues"):
        push_folder(run, "ann/kept", private=True)
    hub.control()
    main(["push", str(run), "ann/kept"])
    Rollouts.load(run).push_to_hub("ann/kept-too", **PAIRS)
    main(["push", str(run), "ann/shown", "--no-private"])
    private = [repo(hub, name)["private"] for name in ("ann/kept", "ann/kept-too", "ann/shown")]
    assert private == [True, True, False]


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (None, "ann/x", "there is no token for the Hub; run `hf auth login`"),
        ("stranger", "ann/x", "the Hub rejects the token"),
        ("ann_read", "ann/x", "the token of ann may only read; create one with write access"),
        (
            "bob_write",
            "ann/x",
            r"'ann' is neither bob nor an organisation of the token \(it has none\)",
        ),
        (
            "ann_write",
            "nobody/x",
            r"'nobody' is neither ann nor an organisation of the token \(lab\)",
        ),
        ("ann_write", "ann/a b", "'ann/a b' is not a valid name on the Hub"),
        ("ann_write", "a/b/c", "is not a valid name on the Hub"),
    ],
)
def test_who_may_not_push_is_told_why(
    hub: Process,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    name: str,
    said: str,
) -> None:
    before = hub.stats()["repos"]
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for pushing in (lambda: push_folder(run, name), lambda: check_push(name)):
        with pytest.raises(ConfigError, match=said) as raised:
            pushing()
        assert "\n" not in str(raised.value)
        assert token is None or token not in str(raised.value)
    assert hub.stats()["repos"] == before


def test_what_the_hub_refuses_is_told(
    hub: Process, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"ann/x: the Hub refuses \(403: .*write token.*\); run `hf auth login`"
    ):
        push_folder(run, "ann/x", token="ann_fine")
    hub.control(at="commit", how="403")
    with pytest.raises(ConfigError, match="storage is full"):
        push_folder(run, "ann/x")
    readme = (run / "README.md").read_text()
    (run / "README.md").write_text(readme.replace("pretty_name", "license: mine\npretty_name"))
    with pytest.raises(ConfigError, match='"license" must be one of'):
        push_folder(run, "ann/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        push_folder(run, "ann/x")


def test_a_hub_that_is_not_there_is_told(
    run: Path, hub: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ToaError, match="the connection to the Hub failed"):
        push_folder(run, "ann/x")


@pytest.mark.parametrize(
    "error", [HTTPError("cut"), ConnectionResetError("cut"), TimeoutError("cut")]
)
def test_a_broken_connection_is_told_and_a_mistake_is_not_taken_for_one(error: Exception) -> None:
    said = r"^ann/x: the connection to the Hub failed \(cut\); `hf upload` does it$"
    with pytest.raises(ToaError, match=said), hub_errors("ann/x", "`hf upload` does it"):
        raise error
    said = r"the connection to the Hub failed \(cut\); the repository is consistent"
    with pytest.raises(ToaError, match=said), hub_errors("ann/x"):
        raise RuntimeError("while uploading") from error
    for mistake in (
        KeyError("x"),
        FileNotFoundError("x"),
        RuntimeError("CUDA out of memory"),
        ValueError("x"),
    ):
        with pytest.raises(type(mistake)) as raised, hub_errors("ann/x"):
            raise mistake
        assert raised.value is mistake


def test_a_folder_without_data_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has no lineage\.json or no README\.md; name the folder of a run"
    ):
        push_folder(tmp_path, "ann/x")
    (run / "lineage.json").write_text("{")
    with pytest.raises(ConfigError, match=r"lineage\.json cannot be read"):
        push_folder(run, "ann/x")
    shutil.rmtree(run / "dpo")
    with pytest.raises(ConfigError, match="dpo has no rows"):
        push_folder(run, "ann/x")
