"""Options from YAML and command line, and errors that a user can act on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tests.helpers import EchoAgent
from toa_trl.cli.arguments import Parser, find_config, parse, user_errors
from toa_trl.cli.main import run as main
from toa_trl.errors import AgentError, ConfigError, JournalError, RewardError, SearchError, ToaError
from toa_trl.sampler import TOASampler
from toa_trl.tasks import Task
from toa_trl.tasks.base import Templates
from toa_trl.utils.escape import say

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("budget: too small"), 2, "error: budget: too small"),
        (ToaError("nothing works"), 1, "stopped: nothing works"),
        (JournalError("disk"), 1, "stopped: disk"),
        (AgentError("gone"), 1, "stopped: gone"),
        (RewardError("none"), 1, "stopped: none"),
        (SearchError("nan"), 1, "stopped: nan"),
        (OSError(errno.ENOSPC, "No space left"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "stopped: interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised, user_errors():
        raise error
    assert raised.value.code == code
    output = capsys.readouterr()
    assert said in output.err
    assert len(output.err.splitlines()) == 1
    assert output.out == ""


def test_only_the_first_process_of_a_launch_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as raised, user_errors():
        raise ConfigError("wrong")
    assert raised.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_bug_is_not_a_users_mistake() -> None:
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError
    with pytest.raises(OSError, match="weird"), user_errors():
        raise OSError(errno.EIO, "weird")


@dataclass
class Some:
    budget: int = field(default=3, metadata={"help": "plays"})
    search: str = field(default="toa", metadata={"help": "which"})

    def __post_init__(self) -> None:
        # as accelerate's plugin for DeepSpeed, which transformers shares between two attributes
        self.plugin = Plugin()


@dataclass
class Plugin:
    config: dict[str, Any] = field(default_factory=lambda: {"stage": 3, "path": "~/nvme"})

    def __post_init__(self) -> None:
        self.shared = self.config


def options(tmp_path: Path, text: str, *arguments: str) -> Any:
    from trl import TrlParser

    path = tmp_path / "config.yaml"
    path.write_text(text)
    (parsed,) = parse(TrlParser(Some), ["--config", str(path), *arguments])
    return parsed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: [1]", r"config\.yaml: budget: must be an integer, not \[1\]"),
        ("budget: {a: 1}", r"config\.yaml: budget: must be an integer, not {'a': 1}"),
        ("budget: 1.5", r"config\.yaml: budget: must be an integer, not 1.5"),
        ("budget: .inf", r"config\.yaml: budget: must be an integer, not inf"),
        ("budget: 2024-01-01", r"budget: must be an integer, not datetime.date\(2024, 1, 1\)"),
        ("search: 3", r"config\.yaml: search: must be a text, not 3"),
        ("search: true", r"config\.yaml: search: must be a text, not True"),
        ("budget: many", "argument --budget: invalid int value: 'many'"),
        ("search: [toa]", r"config\.yaml: search: must be a text, not \['toa'\]"),
        ("search: {toa: 1}", r"config\.yaml: search: must be a text, not {'toa': 1}"),
    ],
)
def test_a_value_of_another_type_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        options(tmp_path, text)


def test_an_option_may_take_entries_from_a_file(tmp_path: Path) -> None:
    from trl import TrlParser

    @dataclass
    class Entry:
        takes_entries: ClassVar = ("search",)
        search: str | None = field(default=None, metadata={"help": "which"})

    path = tmp_path / "config.yaml"
    path.write_text("search: {name: toa}")
    (parsed,) = parse(TrlParser(Entry), ["--config", str(path)])
    assert parsed.search == {"name": "toa"}


@pytest.mark.parametrize("text", ["budget: 7", "budget: '7'", "budget: 7.0"])
def test_a_number_may_be_written_as_text_or_with_a_point(text: str, tmp_path: Path) -> None:
    assert options(tmp_path, text) == Some(7, "toa")


def test_yaml_sets_and_the_command_line_overrides(tmp_path: Path) -> None:
    assert options(tmp_path, "budget: 7") == Some(7, "toa")
    assert options(tmp_path, "budget: 7", "--budget", "9", "--search", "moa") == Some(9, "moa")


def test_the_home_folder_in_options_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert options(tmp_path, "search: ~/a").search == "/home/ada/a"
    assert options(tmp_path, "budget: 7", "--search=~/b").search == "/home/ada/b"
    monkeypatch.setenv("SOME_CACHE", "")
    options(tmp_path, "budget: 7\nenv: {SOME_CACHE: ~/cache}")
    assert os.environ["SOME_CACHE"] == "/home/ada/cache"
    (tmp_path / "run.yaml").write_text("budget: 7")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config("~/run.yaml") == tmp_path / "run.yaml"
    plugin = options(tmp_path, "budget: 7").plugin
    assert plugin.config is plugin.shared
    parser = Parser()
    parser.add_argument("--output", type=Path)
    assert parser.parse_args(["--output=~/x"]).output == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("budget: 7\nbudget: 8", r"line 2: the key 'budget' is given twice"),
        ("budgte: 7", r"config\.yaml: unknown key 'budgte'.*did you mean 'budget'"),
        ("budget: [", r"config\.yaml is not YAML"),
        ("- 1", r"config\.yaml must contain keys and values"),
        ("", r"config\.yaml must contain keys and values"),
        ("budget: many", "budget"),
    ],
)
def test_a_config_that_is_wrong_is_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises((ConfigError, SystemExit)) as raised:
        options(tmp_path, text)
    if isinstance(raised.value, SystemExit):
        assert raised.value.code == 2
    else:
        raised.match(named)
        assert "\n" not in str(raised.value)


def test_a_config_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    from trl import TrlParser

    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"--config.*cannot be read"):
            parse(TrlParser(Some), ["--config", str(path)])


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from trl import TrlParser

    with pytest.raises((ConfigError, SystemExit)) as raised:
        parse(TrlParser(Some), ["--budgte", "3"])
    assert "budgte" in capsys.readouterr().err + str(raised.value)


def test_a_bundled_configuration_is_found_by_name() -> None:
    assert find_config("demo/sft") == ROOT / "toa_trl/recipes/configs/demo/sft.yaml"
    with pytest.raises(ConfigError, match=r"demo/synthesize.*did you mean 'demo/sft'") as raised:
        find_config("demo/sfd")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("demo/none", "demo/allocation, demo/allocation_dpo, .*demo/synthesize"),
        ("paper/math/none", "paper/math/compare, paper/math/experiment, paper/math/fleet"),
        ("nowhere/none", "demo/..., llama3-8b/..., .*qwen2.5-7b/..."),
        ("run.yaml", "demo/..., llama3-8b/..., .*qwen2.5-7b/..."),
    ],
)
def test_an_unknown_name_lists_what_is_beside_it(name: str, listed: str) -> None:
    with pytest.raises(ConfigError, match=listed) as raised:
        find_config(name)
    assert len(str(raised.value)) < 400


class Short(Task):
    name = "short"
    inline_templates = Templates(
        answer="Shortly: {prompt}",
        refine="{prompt} {draft}",
        aggregate="{prompt} {drafts}",
        draft="{number} {draft}",
    )


def of_the_question(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """A reward that reads the prompt."""
    return [float(len(prompt[-1]["content"])) for prompt in prompts]


@pytest.mark.parametrize(
    ("task", "run_yaml", "mean"),
    [
        ("math", "", "20"),
        ("math", "task: {name: math}", "20"),
        ("tests.cli.test_arguments:Short", "task: tests.cli.test_arguments:Short", "20"),
        ("tests.cli.test_arguments:Short", "", "20"),  # the sampler writes run.yaml itself
    ],
)
def test_a_reward_is_calibrated_on_what_the_run_shows_it(
    task: str, run_yaml: str, mean: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "x" * length, "answer": "1"} for length in (10, 30)]
    entry = {"kind": "function", "function": "tests.cli.test_arguments:of_the_question"}
    sampler = TOASampler([EchoAgent("a")], entry, "best_of_n", 2, task=task, progress=False)
    sampler.sample(rows, output_dir=tmp_path)
    if run_yaml:
        (tmp_path / "run.yaml").write_text(run_yaml)
    main(["calibrate", str(tmp_path), "--reward", str(entry), "--trust"])
    assert capsys.readouterr().out == f"mean: {mean}, std: 10\n"


@pytest.mark.parametrize("key", ["task: hostile:Task", "task: {name: hostile:Task}"])
@pytest.mark.parametrize("command", ["calibrate", "report", "data", "audit"])
def test_code_that_somebody_elses_folder_names_is_not_imported(
    command: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    sampler = TOASampler([EchoAgent("a")], {"kind": "length"}, "best_of_n", 2, progress=False)
    sampler.sample(["x"], output_dir=run).save(run)
    hostile = "search: hostile:Search\nagents: [{name: a, engine: 'hostile:Agent'}]\n"
    hostile += "reward: {kind: 'hostile:Reward'}\nverifier: hostile:verify\n"
    (run / "run.yaml").write_text(f"{key}\n{hostile}")
    arguments = [command, str(run)]
    if command == "calibrate":
        with pytest.raises(ConfigError, match=r"'hostile:Task' is code, .* only with --trust"):
            main([*arguments, "--reward", "{kind: length}"])
    else:
        main(arguments)
    assert "hostile" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budgte": 3}, "did you mean 'budget'"),
        ({"agents": [{"name": "a", "engine": "skripted"}]}, "'scripted'"),
    ],
)
def test_the_recipe_says_it_in_one_line_and_exits_with_2(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    config = {
        "prompts": str(prompts),
        "agents": [{"name": "a", "engine": "scripted"}],
        "reward": {"kind": "function", "function": "toa_trl.rewards.function:length_reward"},
        "output_dir": str(tmp_path / "run"),
        **changes,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "recipes/synthesize.py", "--config", str(tmp_path / "config.yaml")],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_texts_from_outside_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors():
        raise ToaError("the server said \x1b[2J\x1b]0;title\x07")
    assert capsys.readouterr().err == "stopped: the server said \\x1b[2J\\x1b]0;title\\x07\n"
    assert sys.excepthook.__module__ == "toa_trl.utils.escape"  # for errors that are bugs
    say("a prompt\x1b[31m")
    assert capsys.readouterr().out == "a prompt\\x1b[31m\n"


@pytest.mark.parametrize("code", ["NOTDIR", "ISDIR", "NAMETOOLONG", "PERM"])
def test_a_path_that_cannot_be_used_is_one_line(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(errno, f"E{code}")
    with pytest.raises(SystemExit) as ended, user_errors():
        raise OSError(number, os.strerror(number), "runs/x")
    assert ended.value.code == 2
    expected = f"error: runs/x: {os.strerror(number)}; choose another path\n"
    assert capsys.readouterr().err == expected
