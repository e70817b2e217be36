"""Commands that write leave alone what this package did not write, and say so in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.test_rollouts import rollouts
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError
from toa_trl.training.checks import check_output_dir
from toa_trl.utils.targets import check_folder

PAIRS = ["--rejected_rank", "2"]
Content = dict[Path, bytes | None]


def contents(folder: Path) -> Content:
    """Everything in a folder but locks, which say nothing."""
    found: Content = {}
    for path in folder.rglob("*"):
        if not path.name.endswith((".lock", "-wal", "-shm")):
            found[path] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "my-run"
    folder.mkdir()
    it = rollouts(3, 1.0, None, 3.0, path=folder / "journal.sqlite")
    it.save(folder, preference={"rejected_rank": 2})
    it._journal.close()
    main(["report", str(folder)])
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "my-run"))


def synthesize(folder: Path) -> None:
    agents, reward = "[{name: a, engine: scripted}]", "{kind: length}"
    options = ["--prompts", "prompts.jsonl", "--agents", agents, "--reward", reward]
    main(["synthesize", *options, "--budget", "2", "--output_dir", str(folder)])


def model_in(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.safetensors").write_bytes(b"weights")

    return make


def file_at(name: str, text: str = "mine\n") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return make


def table_of_others(folder: Path) -> None:
    (folder / "sft").mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(folder.parent / "my-run" / "sft").to_pandas()
    rows.to_parquet(folder / "sft" / "train-00000-of-00001.parquet")


def link(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "dpo", ignore_errors=True)
    (folder.parent / "elsewhere").mkdir()
    (folder / "dpo").symlink_to(folder.parent / "elsewhere")


FOREIGN = {
    "a model in sft": (model_in("sft"), "sft"),
    "a model in rollouts": (model_in("rollouts"), "rollouts"),
    "a note in dpo": (file_at("dpo/notes.txt"), "dpo"),
    "a table of others": (table_of_others, "sft"),
    "a link": (link, "dpo"),
    "a file called dpo": (file_at("dpo"), "dpo"),
    "a readme": (file_at("README.md", "# My project\n"), "README.md"),
    "an audit": (file_at("audit.json", '{"mine": 1}'), "audit.json"),
    "a lineage": (file_at("lineage.json", "[]"), "lineage.json"),
    "a picture": (file_at("rewards.png"), "rewards.png"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_data_refuses_another_folder_that_holds_something_else(
    name: str, run: Path, tmp_path: Path
) -> None:
    make, named = FOREIGN[name]
    output = tmp_path / "output"
    make(output)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"output/{named}: was not written by toa_trl") as error:
        main(["data", str(run), "--output", str(output), *PAIRS])
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "command"),
    [
        (model_in("sft"), ["data"]),
        (file_at("README.md"), ["audit"]),
        (file_at("audit.json"), ["audit"]),
        (file_at("report.html", "<html>"), ["audit"]),
        (file_at("report.html", "<html>"), ["report"]),
    ],
)
def test_a_command_refuses_what_was_put_into_its_run(
    make: Callable[[Path], None], command: list[str], run: Path
) -> None:
    make(run)
    before = contents(run)
    with pytest.raises(ConfigError, match="was not written by toa_trl"):
        main([*command, str(run), *(PAIRS if command == ["data"] else [])])
    assert contents(run) == before


@pytest.mark.parametrize("command", ["report", "audit"])
def test_an_output_file_of_others_is_left_alone(command: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    for output, said in ((path, "was not written by toa_trl"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=said):
            main([command, str(run), "--output", str(output)])
    assert path.read_text() == "mine"
    for _ in range(2):
        main([command, str(run), "--output", str(tmp_path / "new" / "file")])


@pytest.mark.parametrize(
    "make",
    [
        file_at("README.md", "# My project\n"),
        file_at("audit.json", "{}"),
        file_at("run.yaml", "search: toa\n"),
        file_at("report.html"),
        model_in("sft"),
    ],
)
def test_synthesize_refuses_a_project_folder_before_it_samples(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "project")
    before = contents(tmp_path / "project")
    with pytest.raises(ConfigError, match="was not written by toa_trl"):
        synthesize(tmp_path / "project")
    assert contents(tmp_path / "project") == before


def test_data_of_one_run_is_not_written_over_another(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    for output, said in ((other, "the folder of another run"), (run / "sft", "/sft of a run")):
        before = contents(tmp_path)
        with pytest.raises(ConfigError, match=said):
            main(["data", str(run), "--output", str(output), *PAIRS])
        assert contents(tmp_path) == before


def test_what_toa_trl_wrote_is_written_again(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        main(["data", str(run), *PAIRS, "--top_k", "2"])
        main(["data", str(run), "--output", str(tmp_path / "output"), *PAIRS])
        main(["audit", str(run)])
    assert pq.read_table(run / "sft").num_rows == 6
    assert pq.read_table(tmp_path / "output" / "sft").num_rows == 3
    assert not list(tmp_path.rglob("*.edited*"))


def as_before_the_marker(run: Path) -> None:
    """Make a run as version 0.1.0 wrote it."""
    for path in run.glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(None), path)
    for name in ("audit.json", "lineage.json"):
        content = json.loads((run / name).read_text())
        del content["toa_trl"]
        (run / name).write_text(json.dumps(content))
    lines = (run / "README.md").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("<!-- toa_trl"))
    then = "made by [toa_trl](https://arxiv.org/abs/2412.17061):"
    text = re.sub(r"made by \[toa_trl\][^:]*:[^:]*:[^:]*:", then, text)
    (run / "README.md").write_text(text)
    picture = (run / "rewards.png").read_bytes().replace(b"Software\0toa_trl", b"Software\0Matplot")
    (run / "rewards.png").write_bytes(picture)
    html = (
        (run / "report.html").read_text().replace('<meta name="generator" content="toa_trl">', "")
    )
    (run / "report.html").write_text(html)


def test_a_run_from_before_the_marker_is_exported_again(run: Path) -> None:
    as_before_the_marker(run)
    card = (run / "README.md").read_text()
    main(["data", str(run), *PAIRS, "--top_k", "2"])
    main(["audit", str(run)])
    assert pq.read_table(run / "sft").num_rows == 6
    assert (run / "README.edited-1.md").read_text() == card  # it may have been edited


@pytest.mark.parametrize("part", ["", "sft", "dpo", "rollouts", "sft/checkpoint-1", "shards/0"])
def test_no_training_writes_into_a_run(part: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"^output_dir: .* (is the folder of|in .*) a run"):
        check_output_dir(run / part)
    for marker in ("journal.sqlite", "README.md", "audit.json"):
        (run / marker).unlink()
    with pytest.raises(ConfigError, match="of a run"):  # data that were derived elsewhere
        check_output_dir(run / part)


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "a.safetensors", "checkpoint-3", "tokenizer.json"]
)
def test_a_training_refuses_files_of_others(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("fine")
    check_output_dir(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name} was not written by a training of toa_trl"):
        check_output_dir(tmp_path)
    (tmp_path / "lineage.json").write_text('{"base_model": null, "data": []}')  # of 0.1.0
    check_output_dir(tmp_path)


def test_a_card_edited_by_hand_keeps_its_edits(run: Path) -> None:
    path = run / "README.md"
    text = path.read_text().replace("pretty_name: my-run", "pretty_name: Mine\nlicense: mit")
    path.write_text(f"{text}\n## Notes\n\nby hand\n")
    main(["data", str(run), *PAIRS, "--top_k", "2"])
    main(["audit", str(run)])
    text = path.read_text()
    assert "| `sft` | 6 |" in text
    assert "pretty_name: Mine\n" in text
    assert "license: mit\n" in text
    assert text.endswith("\n## Notes\n\nby hand\n")
    assert text.count("## Audit") == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file", "is not a folder"),
        ("file/below", "is not a folder"),
        ("x" * 300, "the name is too long"),
        ("/".join(["x" * 200] * 30), "File name too long"),
        ("null\0", "null"),
        ("broken/below", "is not a folder"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(
    path: str, said: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    for attempt in (
        lambda: synthesize(tmp_path / path),
        lambda: main(["data", str(run), "--output", str(tmp_path / path)]),
        lambda: check_output_dir(tmp_path / path),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            attempt()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    assert contents(tmp_path) == before


def test_a_folder_without_permission_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=r"^output_dir: .* is not writable; choose another"):
        check_folder(tmp_path / "new", "output_dir")


def compare(folder: Path, results: Path) -> None:
    agents, reward = "[{name: a, engine: scripted}]", "{kind: length}"
    options = ["--prompts", "prompts.jsonl", "--agents", agents, "--reward", reward]
    options += ["--searches", "{toa: {}}", "--results", str(results)]
    main(["compare", *options, "--output_dir", str(folder)])


def evaluate(folder: Path, results: Path) -> None:
    models = "[{name: a, engine: scripted}]"
    options = ["--prompts", "prompts.jsonl", "--models", models, "--results", str(results)]
    main(["evaluate", *options, "--output_dir", str(folder)])


@pytest.mark.parametrize("command", [compare, evaluate])
def test_evaluations_check_their_targets_first(
    command: Callable[[Path, Path], None], run: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "results.json"
    mine.write_text('{"mine": 1}')
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "file").touch()
    for folder, results, said in (
        (tmp_path / "new", tmp_path / "empty.json", "was not written by toa_trl"),
        (tmp_path / "new", mine, "was not written by toa_trl"),
        (tmp_path / "new", tmp_path, "is a folder"),
        (tmp_path / "new", tmp_path / "file" / "results.json", "is not a folder"),
        (run / "sft", tmp_path / "new.json", "of a run"),
        (tmp_path / "file", tmp_path / "new.json", "is not a folder"),
    ):
        before = contents(tmp_path)
        with pytest.raises(ConfigError, match=said):
            command(folder, results)
        assert contents(tmp_path) == before
    if command is compare:
        model_in(".")(tmp_path / "output")
        (tmp_path / "output" / "best_reward_over_n.png").write_bytes(b"mine")
        with pytest.raises(ConfigError, match=r"over_n\.png: was not written by toa_trl"):
            compare(tmp_path / "output", tmp_path / "new.json")
