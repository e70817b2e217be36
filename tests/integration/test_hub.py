"""A run goes to the Hub and comes back.

Real processes, and the client that everybody has, against `tests.hub_server`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub_server import hub_environment
from tests.integration.conftest import ROOT, preloaded
from tests.server import Process, serving

pytestmark = pytest.mark.heavy

BACK = """
import json, sys
from datasets import load_dataset
import pyarrow.parquet as pq

run, name = sys.argv[1:]
for part in ("sft", "dpo", "rollouts"):
    rows = pq.read_table(f"{run}/{part}").to_pylist()
    assert load_dataset(name, part, split="train").to_list() == rows, part
    assert load_dataset(f"{run}/{part}", split="train").to_list() == rows, part
from huggingface_hub import DatasetCard
lines = DatasetCard.load(name).text.partition("```python")[2].partition("```")[0].splitlines()
exec("\\n".join(line for line in lines if "from the run's folder" not in line))
assert pairs.to_list() == pq.read_table(f"{run}/dpo").to_pylist()
from toa_trl.hub.lineage import read_lineage
print(json.dumps(read_lineage(name)))
"""
MODEL = """
import sys, torch
from huggingface_hub import HfApi, ModelCard
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from toa_trl.hub.model_card import model_lineage, write_model_card

folder, name, data = sys.argv[1:]
ours = AutoModelForCausalLM.from_pretrained("toa_trl/demo/weights/student")
ours.save_pretrained(folder)
AutoTokenizer.from_pretrained("toa_trl/demo/weights/student").save_pretrained(folder)
from toa_trl.hub.lineage import read_lineage
for _ in range(2):
    lineage = {"dataset": data, "rows": 12, "fraction": None, **read_lineage(data)}
    fields = {"base_model": "toa_trl/demo/weights/student", "method": "SFT"}
    write_model_card(Path(folder), [lineage], fields, "# Model")
HfApi().create_repo(name)
HfApi().upload_folder(repo_id=name, folder_path=folder)
theirs = AutoModelForCausalLM.from_pretrained(name)
pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
assert all(torch.equal(a, b) for a, b in pairs)
AutoTokenizer.from_pretrained(name)
card = ModelCard.load(name)
assert card.data.datasets == [data] and "toa_trl" in card.data.tags, card.data
assert f"SFT on `{data}` (run {lineage['fingerprint']})" in card.text
assert model_lineage(name)["data"][0]["search"] == "toa"
# and a model that is trained from it there has it behind it
write_model_card(Path(folder), [lineage], {"base_model": name, "method": "DPO"}, "# Model")
assert model_lineage(folder)["parent"]["method"] == "SFT"
"""
CSV = """
import sys
from huggingface_hub import HfApi
from toa_trl.data.prompts import load_prompts

name = sys.argv[1]
HfApi().create_repo(name, repo_type="dataset")
text = b"id,prompt,gold,level\\n007,NA,1e5,3\\n08,2024-01-02,007,12\\n,NaN,NA,\\n"
HfApi().upload_file(
    path_or_fileobj=text, path_in_repo="train.csv", repo_id=name, repo_type="dataset"
)
for source in (name, f"hf://datasets/{name}/train.csv"):
    prompts = load_prompts(source)
    read = [(p.id, p.messages[0].content, *p.metadata.values()) for p in prompts]
    assert read == [
        ("007", "NA", "1e5", 3), ("08", "2024-01-02", "007", 12), ("2", "NaN", "NA", None)
    ], read
"""
LOADED = """
import sys, torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM
from toa_trl.hub.model_card import model_lineage

ours, theirs = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in sys.argv[1:])
assert all(torch.equal(ours[name], theirs[name]) for name in ours)
assert "## Training data" in ModelCard.load(sys.argv[2]).text
assert model_lineage(sys.argv[2])["method"] == "SFT"
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving("tests.hub_server") as process:
        yield process


@pytest.fixture
def hub(server: Process) -> Process:
    """An empty Hub, always at the same address: the processes of its users have imported that."""
    server.kill()
    server.restart()
    return server


class User:
    """Somebody at a terminal, with a token or without."""

    def __init__(self, hub: Process, home: Path, token: str | None = "ann_write") -> None:
        self.environment = hub_environment(hub, home, token)
        imported = ("HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
        self.imported = {name: self.environment[name] for name in imported}
        self.imported["HF_HUB_OFFLINE"] = "0"

    def command(self, *arguments: object) -> list[str]:
        return preloaded(*arguments, **self.imported)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=300,
        )


def files(hub: Process, name: str) -> dict[str, str]:
    return hub.stats()["repos"][f"datasets/{name}"]["files"]


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_run_is_pushed_and_comes_back_as_it_was(
    hub: Process, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    user = User(hub, tmp_path)
    name, run = "lab/there-and-back", tmp_path / "run"
    config = write_config(card={"license": "cc-by-4.0"}, push_to_hub=name)
    hub.control(at="commit", how="cut")
    done = user.run("recipes/synthesize.py", "--config", config)
    assert done.returncode == 1
    error = last_error(done)
    assert error.startswith(f"stopped: {name}: the connection to the Hub failed")
    assert "Done. The datasets are in" in done.stdout  # saved before, whatever becomes of the push
    assert files(hub, name).keys() == {".gitattributes"}

    done = user.run("-m", "toa_trl", "push", run, name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.root}/datasets/{name}"
    there = hub.stats()["repos"][f"datasets/{name}"]
    assert there["private"]  # as the lab has it
    assert len(there["commits"]) == 2
    assert {"journal.sqlite", "run.yaml", "report.html"}.isdisjoint(there["files"])

    back = user.run("-c", BACK, run, name)
    assert back.returncode == 0, back.stderr
    assert (
        json.loads(back.stdout)["fingerprint"]
        == json.loads((run / "lineage.json").read_text())["fingerprint"]
    )
    stranger = User(hub, tmp_path / "other", "bob_write").run("-c", BACK, run, name)
    assert stranger.returncode != 0
    model = user.run("-c", MODEL, tmp_path / "model", "ann/student", name)
    assert model.returncode == 0, model.stderr

    written = [path for path in run.rglob("*") if path.is_file()]
    assert len(written) > 8
    assert not [path for path in written if b"ann_write" in path.read_bytes()]
    assert "ann_write" not in done.stdout + done.stderr + back.stdout + back.stderr


def test_a_process_that_is_killed_in_the_middle_of_a_push(
    hub: Process, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    user = User(hub, tmp_path)
    assert user.run("recipes/synthesize.py", "--config", write_config()).returncode == 0
    hub.control(at="upload", how="stall", after=2, times=99)
    killed = user.start("-m", "toa_trl", "push", tmp_path / "run", "ann/killed")
    deadline = time.monotonic() + 120
    while hub.stats()["asked"].get("upload", 0) < 3:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert files(hub, "ann/killed").keys() == {".gitattributes"}
    hub.control()
    assert user.run("-m", "toa_trl", "push", tmp_path / "run", "ann/killed").returncode == 0
    before = hub.stats()["repos"]["datasets/ann/killed"]
    assert user.run("-m", "toa_trl", "push", tmp_path / "run", "ann/killed").returncode == 0
    assert hub.stats()["repos"]["datasets/ann/killed"] == before
    assert user.run("-c", BACK, tmp_path / "run", "ann/killed").returncode == 0


def test_what_is_in_a_pushs_way_shows_before_the_sampling(
    hub: Process, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    cases: list[tuple[str | None, str, str, int]] = [
        (None, "ann/x", "error: ann/x: there is no token for the Hub", 2),
        ("ann_read", "ann/x", "error: ann/x: the token of ann may only read", 2),
        (
            "ann_write",
            "nobody/x",
            "error: nobody/x: 'nobody' is neither ann nor an organisation",
            2,
        ),
    ]
    for token, name, said, code in cases:
        config = write_config(push_to_hub=name)
        done = User(hub, tmp_path, token).run("recipes/synthesize.py", "--config", config)
        assert (done.returncode, last_error(done)[: len(said)]) == (code, said)
        assert not (tmp_path / "run" / "journal.sqlite").exists()
    assert hub.stats()["repos"] == {}


def test_adapters_and_others_can_be_asked_for_their_licence(hub: Process, tmp_path: Path) -> None:
    code = """
from huggingface_hub import HfApi
from toa_trl.hub.licences import licence_of, revision_of
HfApi().create_repo("ann/agent")
card = b"---\\nlicense: llama3.1\\n---\\n# Agent\\n"
for path, content in {"README.md": card, "config.json": b"{}"}.items():
    commit = HfApi().upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="ann/agent")
assert licence_of("ann/agent") == "llama3.1"
entry = {"engine": "transformers", "model": "ann/agent"}
assert revision_of(entry) is None
from transformers import PretrainedConfig
PretrainedConfig.from_pretrained("ann/agent")
assert revision_of(entry) == commit.oid, revision_of(entry)
"""
    done = User(hub, tmp_path).run("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_trained_model_is_pushed_with_its_lineage(
    hub: Process, tmp_path: Path, training_data: Path
) -> None:
    def train(user: User, name: str) -> subprocess.CompletedProcess[str]:
        config = (
            "--config",
            "recipes/configs/demo/sft.yaml",
            "--model_name_or_path",
            "toa_trl/demo/weights/student",
        )
        where = (
            "--dataset_name",
            training_data / "sft",
            "--output_dir",
            tmp_path / "student",
            "--max_steps",
            1,
        )
        return user.run("recipes/sft.py", *config, *where, "--push_to_hub", "--hub_model_id", name)

    refused = train(User(hub, tmp_path, None), "student")
    assert refused.returncode == 2
    assert "there is no token" in last_error(refused)
    assert "may only read" in last_error(train(User(hub, tmp_path, "ann_read"), "student"))
    assert not (tmp_path / "student").exists()
    user = User(hub, tmp_path)
    hub.control(at="commit", how="500", times=99)
    broken = train(user, "ann/student")
    assert broken.returncode == 1
    remedy = (
        f"`hf upload ann/student {tmp_path / 'student'} --exclude 'checkpoint-*'` pushes "
        "what is saved"
    )
    assert last_error(broken).endswith(remedy)
    assert (tmp_path / "student" / "model.safetensors").is_file()
    hub.control()
    done = train(user, "ann/student")
    assert done.returncode == 0, done.stderr
    loaded = user.run("-c", LOADED, tmp_path / "student", "ann/student")
    assert loaded.returncode == 0, loaded.stderr


def test_values_of_a_csv_file_on_the_hub_stay_as_they_are_written(
    hub: Process, tmp_path: Path
) -> None:
    done = User(hub, tmp_path).run("-c", CSV, "ann/csv")
    assert done.returncode == 0, done.stderr
