"""What fleet.yaml says, what becomes of it, and the endpoints file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from toa_trl.errors import ConfigError
from toa_trl.serving.endpoints import apply_endpoints, load_endpoints, write_endpoints
from toa_trl.serving.fleet import FleetConfig, ServerConfig, load_fleet
from toa_trl.serving.supervisor import check_machine, serve
from toa_trl.utils.config import validate

ROOT = Path(__file__).parents[2]
NEUTRAL = ["--generation-config", "vllm"]
NO_GPUS: list[Any] = [0, [], [[]], [[0], []], [0, 0], [0, [1]], [[0], 1], [-1], ["0"], [True]]
SERVER = {"name": "a", "model": "some/model", "port": 8001}


def fleet(*servers: dict[str, Any], **keys: Any) -> FleetConfig:
    entries = [{**SERVER, **server} for server in servers or [{}]]
    made: FleetConfig = validate(FleetConfig, {"servers": entries, **keys})
    return made


def words(**keys: Any) -> list[str]:
    """The command of a server, after the launcher, the address and the neutral sampling."""
    made = fleet(keys)
    command = made.command(made.replicas[0])[7:]
    if not keys.get("reward"):
        assert command[:2] == NEUTRAL
        command = command[2:]
    return command


def test_the_command_of_a_server() -> None:
    made = fleet(
        {},
        {"name": "b", "port": 8002, "launcher": "'/my envs/python' -m vllm --model {model}"},
        host="gpu1",
    )
    first, second = map(made.command, made.replicas)
    assert first == ["vllm", "serve", "some/model", "--host", "0.0.0.0", "--port", "8001", *NEUTRAL]
    assert second[:5] == ["/my envs/python", "-m", "vllm", "--model", "some/model"]
    for host in ("127.0.0.1", "localhost"):
        local = fleet(host=host)
        assert local.command(local.replicas[0])[3:5] == ["--host", "127.0.0.1"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"reward": True}, "--runner pooling"),
        ({"gpus": [0]}, ""),
        ({"gpus": [2, 3]}, "--tensor-parallel-size 2"),
        ({"gpus": [[0, 1], [2, 3]]}, "--tensor-parallel-size 2"),
        ({"gpus": [2, 3], "tensor_parallel": 1}, ""),
        ({"tensor_parallel": 2}, "--tensor-parallel-size 2"),
        ({"memory_share": 0.9}, "--gpu-memory-utilization 0.9"),
        ({"chat_template": __file__}, f"--chat-template {__file__}"),
        (
            {"args": {"max-model-len": 8192, "eager": True, "cache": False}},
            "--max-model-len 8192 --eager --no-cache",
        ),
        ({"args": {"names": ["x", "y"], "config": {"n": 1}}}, '--names x y --config {"n": 1}'),
    ],
)
def test_the_options_of_a_server(keys: dict[str, Any], said: str) -> None:
    assert " ".join(words(**keys)) == said


def test_replicas_have_ports_and_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    made = fleet(
        {"gpus": [[0, 1], [2, 3]], "env": {"X": 1}},
        {"name": "b", "port": 8011, "gpus": [4]},
        {"name": "c", "port": 1},
    )
    assert [replica.label for replica in made.replicas] == ["a-0", "a-1", "b", "c"]
    assert [replica.port for replica in made.replicas] == [8001, 8002, 8011, 1]
    environments = [made.environment(replica) for replica in made.replicas]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == [
        "0,1",
        "2,3",
        "4",
        "7",
    ]
    assert [environment.get("X") for environment in environments] == ["1", "1", None, None]
    assert "PATH" in environments[0]


@pytest.mark.parametrize(
    ("server", "named"),
    [
        ({"gpu": [0]}, r"servers\[0\]: unknown key 'gpu'.*did you mean 'gpus'"),
        ({"name": "a/b"}, r"servers\[0\]\.name: must consist of.*'a/b'"),
        ({"name": 3}, r"servers\[0\]\.name: must be a string"),
        ({"model": ""}, "model: must not be empty"),
        ({"port": 0}, "port: must be >= 1, not 0"),
        ({"port": "8001"}, "port: must be an integer, not '8001'"),
        ({"port": 65535, "gpus": [[0], [1]]}, r"servers\[0\]\.port: .*must be <= 65535"),
        *(({"gpus": gpus}, r"servers\[0\]\.gpus: must be a list such as") for gpus in NO_GPUS),
        ({"tensor_parallel": 0}, "tensor_parallel: must be >= 1"),
        ({"tensor_parallel": 2, "gpus": [[0, 1], [2]]}, r"tensor_parallel: must be <= .*\(1\)"),
        ({"memory_share": 0}, "memory_share: must be > 0"),
        ({"memory_share": 1.1}, "memory_share: must be <= 1"),
        ({"chat_template": "nowhere.jinja"}, "chat_template: must be an existing file, not 'now"),
        ({"reward": "yes"}, "reward: must be true or false"),
        ({"args": ["--x"]}, "args: must be a mapping"),
        ({"args": {"max-model-len": None}}, "args.*: must have a value"),
        ({"args": {"port": 1}}, "args.*: must not be an option that a key"),
        ({"args": {"tensor_parallel_size": 1}}, "args.*: must not be an option that a key"),
        ({"env": {"X": True}}, r"env\.X: must be"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}, "gpus": [0]}, "conflicts with gpus; remove one"),
        ({"launcher": "vllm serve"}, r"launcher: must be a command that contains \{model\}"),
        ({"launcher": "vllm 'serve {model}"}, "launcher: No closing quotation"),
    ],
)
def test_a_server_that_is_wrong_is_refused(server: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        fleet(server)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"host": "http://gpu1"}, "host: must consist of"),
        ({"launcher": 3}, "launcher: must be a string"),
        ({"endpoints": ""}, "endpoints: must not be empty"),
        ({"log_dir": 3}, "log_dir: must be a string"),
        ({"start_timeout_s": 0}, "start_timeout_s: must be > 0"),
        ({"max_restarts": -1}, "max_restarts: must be >= 0"),
    ],
)
def test_a_fleet_that_is_wrong_is_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        fleet(**keys)


@pytest.mark.parametrize("servers", [[], None, {"a": 1}, ["a"]])
def test_servers_of_another_shape_are_refused(servers: Any) -> None:
    with pytest.raises(ConfigError, match=r"servers(\[0\])?: must (be|have)"):
        validate(FleetConfig, {"servers": servers})


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({}, {"port": 8002}, "servers: 2 entries have the name 'a'"),
        ({"gpus": [[0], [1]]}, {"name": "a-1", "port": 8011}, "2 entries have the name 'a-1'"),
        ({"gpus": [[0], [1]]}, {"name": "b", "port": 8002}, "a-1 and b both use port 8002"),
        (
            {"reward": True},
            {"name": "b", "port": 8002, "reward": True},
            "a and b have reward: true",
        ),
        ({"gpus": [1]}, {"name": "b", "port": 8002, "gpus": [0, 1]}, "a and b share GPU 1"),
        (
            {"gpus": [1], "memory_share": 0.6},
            {"name": "b", "port": 8002, "gpus": [1], "memory_share": 0.5},
            "a and b share GPU 1",
        ),
        (
            {"gpus": [1], "memory_share": 0.6},
            {"name": "b", "port": 8002, "gpus": [1]},
            "a and b share GPU 1",
        ),
        ({"gpus": [[1], [1]]}, {"name": "b", "port": 8003}, "a-0 and a-1 share GPU 1"),
    ],
)
def test_two_servers_cannot_have_the_same(
    first: dict[str, Any], second: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        fleet(first, second)


def test_servers_share_a_gpu_by_memory_share() -> None:
    shares = [{"name": f"s{i}", "port": 8001 + i, "gpus": [0], "memory_share": share} for i,
    share in enumerate([0.7, 0.2, 0.1])]  # fmt: skip
    assert len(fleet(*shares).replicas) == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("servers: [", "is not YAML"),
        ("- 1", "must contain keys and values"),
        ("launcher: vllm serve {model}", "servers: the key is missing"),
        ("server: []", "did you mean 'servers'"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "fleet.yaml"
    with pytest.raises(ConfigError, match=r"fleet\.yaml cannot be read.*--help"):
        load_fleet(path)
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as raised:
        load_fleet(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_help_is_enough(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "toa_trl/cli/serve_agents.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    example = shown.partition("fleet.yaml:\n")[2].partition("\nThe keys of a server")[0]
    (tmp_path / "fleet.yaml").write_text(example)
    assert len(load_fleet(tmp_path / "fleet.yaml").replicas) == 4
    for key in (*FleetConfig.model_fields, *ServerConfig.model_fields):
        assert f"\n    {key}" in shown or f"{key}:" in example, key


def test_a_launcher_that_is_not_installed_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"server 'a': the program 'no-vllm' was not found; install vLLM"
    ):
        check_machine(fleet(launcher="no-vllm serve {model}"))


@pytest.mark.parametrize("key", ["endpoints", "log_dir"])
def test_a_path_that_cannot_be_written_is_said_before_anything_starts(
    tmp_path: Path, key: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    paths = {"endpoints": tmp_path / "endpoints.yaml", "log_dir": tmp_path / "logs"}
    paths[key] = tmp_path / ("folder" if key == "endpoints" else "file")
    launcher = f"{sys.executable} {{model}}"
    with pytest.raises(ConfigError, match=f"log_dir or endpoints: {paths[key]}"):
        serve(
            fleet(launcher=launcher, **{key: str(path) for key, path in paths.items()}),
            say=pytest.fail,
        )


def test_an_endpoints_file_of_others_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text("mine: 1\n")
    config = fleet(launcher=f"{sys.executable} {{model}}", endpoints=str(path))
    with pytest.raises(ConfigError, match=r"endpoints\.yaml: was not written by toa_trl"):
        serve(config, say=pytest.fail)
    assert path.read_text() == "mine: 1\n"


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.yaml"
    judge = {"name": "judge", "model": "reward/model", "port": 8021, "reward": True}
    write_endpoints(fleet({"gpus": [[0], [1]]}, judge, host="gpu1", endpoints=str(path)))
    return path


def test_the_endpoints_file(endpoints: Path) -> None:
    assert yaml.safe_load(endpoints.read_text()) == {
        "agents": {
            "a": {"model": "some/model", "base_url": ["http://gpu1:8001/v1", "http://gpu1:8002/v1"]}
        },
        "reward": {"model": "reward/model", "base_url": ["http://gpu1:8021/v1"]},
    }
    assert list(endpoints.parent.iterdir()) == [endpoints]
    write_endpoints(fleet(endpoints=str(endpoints)))
    assert load_endpoints(endpoints).reward is None


def test_entries_get_what_they_lack(endpoints: Path) -> None:
    urls = ["http://gpu1:8001/v1", "http://gpu1:8002/v1"]
    untouched: list[dict[str, Any]] = [
        {"name": "a", "engine": "openai", "model": "x", "base_url": "http://other/v1"},
        {"name": "t", "engine": "transformers", "model": "y"},
    ]
    agents: list[dict[str, Any]] = [
        {"name": "a", "engine": "openai", "timeout_s": 3},
        *untouched,
    ]
    found, reward = apply_endpoints(agents, {"kind": "vllm", "model": "reward/model"}, endpoints)
    assert found == [
        {"name": "a", "engine": "openai", "timeout_s": 3, "model": "some/model", "base_url": urls},
        *untouched,
    ]
    assert reward == {"kind": "vllm", "model": "reward/model", "base_url": ["http://gpu1:8021/v1"]}
    assert "base_url" not in agents[0], "what was given stays"
    other = {"kind": "classifier", "model": "z"}
    assert apply_endpoints([], other, endpoints) == ([], other)


@pytest.mark.parametrize(
    ("agent", "reward", "named"),
    [
        ({"name": "b"}, {}, r"agent 'b': .*endpoints\.yaml does not list it, only a; add it"),
        (
            {"name": "a"},
            {"kind": "vllm"},
            r"reward 'vllm': .*endpoints\.yaml does not list it, only a; add it",
        ),
        (
            {"name": "a", "model": "other"},
            {},
            r"agent 'a'\.model: .* serves 'some/model', not 'other'",
        ),
    ],
)
def test_what_the_fleet_does_not_serve_is_said(
    tmp_path: Path, agent: dict[str, Any], reward: dict[str, Any], named: str
) -> None:
    path = tmp_path / "endpoints.yaml"
    write_endpoints(fleet(endpoints=str(path)))
    with pytest.raises(ConfigError, match=named):
        apply_endpoints([{"engine": "openai", **agent}], reward, path)


def test_without_a_fleet_its_command_is_named(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    with pytest.raises(ConfigError, match="start `toa-trl serve-agents` first"):
        load_endpoints(path)
    path.write_text("agent: {}")
    with pytest.raises(ConfigError, match="not a file of `toa-trl serve-agents`"):
        load_endpoints(path)
