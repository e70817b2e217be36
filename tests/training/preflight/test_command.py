"""`toa-trl check`: what it prints, its exit code, and the row with its loss mask."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console

from tests.families import make_family
from toa_trl.cli.main import main
from toa_trl.training.preflight.agents import agent_findings
from toa_trl.training.preflight.report import print_row
from toa_trl.training.preflight.rows import checked_rows

ROOT = Path(__file__).parents[3]
STUDENT = ROOT / "toa_trl/demo/weights/student"
USER = {"role": "user", "content": "2 + 3?"}
ANSWER = {"role": "assistant", "content": "5"}


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the command, and returns exit code and output."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        code = 0
        try:
            main(["check", *map(str, arguments)])
        except SystemExit as stopped:
            code = int(str(stopped.code))
        output = capsys.readouterr()
        return code, output.out if code < 2 else output.err

    return call


def rows_in(folder: Path, **row: Any) -> Path:
    folder.mkdir()
    Dataset.from_list([row] * 4).to_parquet(folder / "train.parquet")
    return folder


def config(path: Path, first: str = "", **keys: Any) -> Path:
    path.write_text(f"# {first}\n" + "".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def test_a_healthy_training_leaves_with_0_and_shows_a_row(check: Any, tmp_path: Path) -> None:
    data = rows_in(tmp_path / "data", prompt=[USER], completion=[ANSWER])
    file = config(tmp_path / "sft.yaml", model_name_or_path=STUDENT, dataset_name=data)
    code, said = check("--config", file, "--output_dir", tmp_path / "out")
    assert code == 0
    assert "0 errors, 0 warnings" in said
    assert "fine    eos: a turn ends with '<eos>', at which the model stops" in said
    assert "GiB on 1 GPU" in said
    assert "learned, between [[ and ]]" in said
    assert "<assistant>[[5 <eos>]]" in said
    assert not (tmp_path / "out").exists()


def test_an_error_leaves_with_1_and_every_finding(check: Any, tmp_path: Path) -> None:
    tokenizer = make_family("qwen2.5")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    data = rows_in(tmp_path / "data", prompt=[USER], completion=[ANSWER])
    options = ("--model_name_or_path", tmp_path / "model", "--dataset_name", data)
    code, said = check("--recipe", "sft", *options, "--max_length", 105)
    assert code == 1
    first, second = said.splitlines()[:2]
    assert first.startswith("error   eos: ")
    assert "give --eos_token '<|im_end|>'" in first
    assert second.startswith("warning max_length: max_length 105 cuts 4 of 4 rows")
    assert "1 errors, 1 warnings" in said
    code, said = check("--recipe", "sft", *options, "--eos_token", "<|im_end|>")
    assert code == 0


@pytest.mark.parametrize(
    ("recipe", "keys", "code", "said"),
    [
        ("sft", {"dataset_name": "nowhere"}, 1, "error   configuration: dataset_name: nowhere"),
        ("sft", {"model_name_or_path": ""}, 1, "model_name_or_path: the key is missing"),
        ("sft", {"lerning_rate": 1}, 2, "unknown key 'lerning_rate'"),
        ("sft", {"seed": -1}, 2, "seed: must be >= 0, not -1"),
        ("sft", {"use_peft": "{a: 1}"}, 2, "use_peft: must be true or false, not {'a': 1}"),
        ("sft", {"model_name_or_path": "[x]"}, 2, "model_name_or_path: must be a text, not ['x']"),
        ("sft", {"report_to": "{a: 1}"}, 2, "report_to: must be a text, not {'a': 1}"),
        ("sft", {"logging_steps": ".inf"}, 2, "cannot convert float infinity to integer"),
        ("sft", {"check_rows": 0}, 2, "check_rows: must be >= 1, not 0"),
        (
            "other",
            {},
            2,
            "recipe: must be one of sft, dpo, reward, preference, grpo, synthesize, evaluate",
        ),
    ],
)
def test_bad_input(
    recipe: str, keys: dict[str, Any], code: int, said: str, check: Any, tmp_path: Path
) -> None:
    given = {"model_name_or_path": STUDENT, "output_dir": tmp_path / "out", **keys}
    found, text = check("--config", config(tmp_path / f"{recipe}.yaml", **given))
    assert (found, True) == (code, said in text), text


AGENTS = "[{name: a, engine: scripted}]"
REWARD = "{kind: function, function: 'toa_trl.rewards.function:length_reward'}"


@pytest.mark.parametrize(
    "keys",
    [
        {"agents": AGENTS, "reward": REWARD, "output_dir": "out"},
        {"models": AGENTS, "reward": REWARD, "results": "out/results.json"},
    ],
)
@pytest.mark.parametrize("as_options", [False, True])
def test_a_sampling_is_known_by_its_keys_whatever_its_file_is_called(
    keys: dict[str, str], as_options: bool, check: Any, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "2 + 3?"}))
    given: dict[str, Any] = {"prompts": prompts, **keys}
    if as_options:
        arguments = [part for key, value in given.items() for part in (f"--{key}", value)]
    else:
        arguments = ["--config", config(tmp_path / "run.yaml", **given)]
    code, text = check(*arguments)
    assert (code, "prompts: 1 prompts" in text) == (0, True), text


def test_an_evaluation_of_benchmarks_alone_has_no_prompts(check: Any, tmp_path: Path) -> None:
    given = {"models": AGENTS, "lm_eval": "{tasks: gsm8k}"}
    code, text = check("--config", config(tmp_path / "evaluate.yaml", **given))
    assert (code, "prompts" in text) == (0, False), text


def test_a_model_that_is_not_there_is_said_once(check: Any, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"model_name_or_path": tmp_path / "none", "dataset_name": tmp_path}
    code, text = check("--config", config(tmp_path / "sft.yaml", **keys))
    assert (code, text.count("no model could be loaded from"), text.count("memory:")) == (1, 1, 0)


def test_memory_that_is_too_small_is_said_also_before_the_data_exist(
    check: Any, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"model_name_or_path": STUDENT, "dataset_name": tmp_path / "none"}
    keys["gpu_memory"] = 0.001
    code, text = check("--config", config(tmp_path / "sft.yaml", **keys))
    assert (code, text.count("could not be read"), text.count("optimizer alone need")) == (1, 1, 1)


@pytest.mark.parametrize("fault", ["bos", "memory"])
def test_a_training_stops_before_it_loads_the_weights(
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = make_family("llama3")
    if fault == "bos":
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    else:
        monkeypatch.setattr("toa_trl.training.run.gpu_memory_here", lambda: 0.01)
        monkeypatch.setattr("toa_trl.training.run.arguments_of_check", lambda given: (given, False))
    tokenizer.save_pretrained(tmp_path / "model")  # there are no weights
    size = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "hidden_size": 1024}
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "llama", **size}))
    data = rows_in(tmp_path / "data", prompt=[USER], completion=[ANSWER])
    options = {"model_name_or_path": tmp_path / "model", "dataset_name": data}
    options |= {"output_dir": tmp_path / "out"}
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with pytest.raises(SystemExit) as stopped:
        main(["sft", *given, "--use_cpu", "True", "--bf16", "False"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    expected = {"bos": "begin with '<|begin_of_text|>' twice", "memory": "optimizer alone need"}
    assert expected[fault] in said


def test_prompts_and_agents_of_a_synthesis(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, said = check("--config", "demo/synthesize")
    assert code == 0
    assert "every engine is asked for the same sampling" in said
    assert said.count("stops where its chat template ends a turn") == 4
    code, said = check("--config", "demo/evaluate", "--prompts", "nowhere.jsonl")
    assert code == 1
    assert "error   prompts: prompts: nowhere.jsonl" in said


@pytest.mark.parametrize(
    ("agent", "level", "said"),
    [
        ({"extra_body": {"top_k": None}}, "warning", "extra_body leaves out top_k"),
        ({"extra_body": {"top_k": 20}}, "fine", "sets top_k apart: one 20, two -1"),
        ({"sampling": {"temperature": 1.0}}, "fine", "temperature apart: one 1.0, two 0.7"),
        ({"engine": "transformers", "model": "{base}"}, "warning", "continue until max_tokens"),
        ({"engine": "vllm", "model": "{nowhere}"}, "error", "no tokenizer could be loaded"),
    ],
)
def test_how_agents_sample(agent: dict[str, Any], level: str, said: str, tmp_path: Path) -> None:
    tokenizer = make_family("qwen2.5")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base/config.json").write_text('{"model_type": "qwen2"}')
    one = {"name": "one", "engine": "openai", "model": "m"} | agent
    if one["model"].startswith("{"):
        one["model"] = str(tmp_path / one["model"].strip("{}"))
    entries = [one, {"name": "two", "engine": "openai", "model": "m"}]
    findings = [*agent_findings(entries, {"temperature": 0.7})]
    assert any(f.level == level and said in str(f) for f in findings), findings


def test_methods_of_the_recipe_preference(check: Any, tmp_path: Path) -> None:
    rejected = [{**ANSWER, "content": "6"}]
    data = rows_in(tmp_path / "data", prompt=[USER], chosen=[ANSWER], rejected=rejected)
    keys: dict[str, Any] = {"method": "kto", "model_name_or_path": STUDENT, "dataset_name": data}
    code, said = check("--config", config(tmp_path / "preference.yaml", **keys))
    assert code == 0
    assert "memory: needs 0.3 GiB on 1 GPU" in said
    assert "One row (rejected)" in said


def test_the_row_is_in_color_on_a_terminal() -> None:
    tokenizer = make_family("qwen2.5")
    row = {"prompt": [USER], "completion": [{**ANSWER, "content": "5\x1b[2J"}]}
    checked, _ = checked_rows([row], tokenizer, None, "SFT")
    shown = []
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, color_system="standard")
        if not is_terminal:
            console = Console(file=file)
        print_row(checked, tokenizer, 512, console)
        shown.append(file.getvalue())
    assert "\x1b[32m5\\x1b[2J<|im_end|>" in shown[0]  # green, and no control character of the row
    assert "[[" not in shown[0]
    assert "<|im_start|>assistant\n[[5\\x1b[2J<|im_end|>\n]]" in shown[1]
