"""recipes/evaluate.py as users start it.

Every task, several checkpoints, and what can be wrong with one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ENVIRONMENT, ROOT, call, command, run
from tests.judge_server import judging
from tests.server import serving
from toa_trl.data.prompts import load_prompts
from toa_trl.tasks import make_task

STUDENT = ROOT / "toa_trl/demo/weights/student"
HELDOUT = "toa_trl/demo/data/heldout.jsonl"
VERIFIER = "toa_trl.demo.world:accuracy_reward"


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recorded(path: Path, name: str, answers: dict[str, str]) -> dict[str, str]:
    rows = ({"prompt": asked, "response": answer} for asked, answer in answers.items())
    return {"name": name, "engine": "recorded", "path": str(write(path / f"{name}.jsonl", rows))}


def config(path: Path, **settings: Any) -> Path:
    settings = {"num_samples": 0, "results": str(path / "results.json"), **settings}
    (path / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    return path / "evaluate.yaml"


def evaluate(path: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    return call("evaluate", "--config", config(path, **settings))


def results(path: Path) -> Any:
    return json.loads((path / "results.json").read_text())


def adapter(folder: Path, base: Path) -> Path:
    """An untrained LoRA adapter, as TRL saves one, without the base's tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"])
    )
    model.save_pretrained(folder)
    return folder


def test_a_folder_with_an_adapter_alone_is_evaluated_on_its_base(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "lora", STUDENT)
    models = [
        {"name": name, "engine": "transformers", "model": str(m)}
        for name, m in (("b", STUDENT), ("l", lora))
    ]
    settings = {
        "prompts": HELDOUT,
        "num_prompts": 12,
        "verifier": VERIFIER,
        "sampling": {"max_tokens": 64},
    }
    done = evaluate(
        tmp_path, **settings, models=models, baseline="b", num_samples=1, model_cards=True
    )
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert found["student"]["b"] == found["student"]["l"]  # an untrained adapter changes nothing
    (row,) = found["win_rates"]
    assert (row["by"], row["win_rate"], row["num_ties"]) == ("verifier", 0.5, 12)
    card = (lora / "README.md").read_text()
    assert "model-index" in card
    assert re.search(r"\| heldout +\| Win rate against b by verifier +\| 0\.5 \[", card)
    assert not (STUDENT / "README.md").exists()  # the baseline's is left alone


@pytest.mark.parametrize("what", ["nothing", "an adapter without its base"])
def test_a_folder_without_a_model_is_one_line_that_names_it(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    if what != "nothing":
        (folder / "adapter_config.json").write_text(
            '{"base_model_name_or_path": "gone/base", "peft_type": "LORA"}'
        )
    models = [
        {"name": "s", "engine": "scripted"},
        {"name": "m", "engine": "transformers", "model": str(folder)},
    ]
    done = evaluate(tmp_path, prompts=HELDOUT, num_prompts=3, models=models, verifier=VERIFIER)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(folder) in done.stderr
    assert what == "nothing" or "gone/base" in done.stderr
    assert not (tmp_path / "results.json").exists()  # said before the first model was asked


def test_mathematics_by_its_own_verifier(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(8)]
    prompts = write(tmp_path / "prompts.jsonl", rows)
    asked = [
        p.messages[-1].content for p in load_prompts(str(prompts), read=make_task("math").read)
    ]
    answers = {text: rf"It is \boxed{{{2 * i if i < 6 else 7}}}" for i, text in enumerate(asked)}
    models = [
        recorded(tmp_path, "good", answers),
        recorded(tmp_path, "bad", dict.fromkeys(asked, "who knows")),
    ]
    done = evaluate(
        tmp_path, prompts=str(prompts), task="math", models=models, baseline="bad", num_samples=3
    )
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert (found["student"]["good"]["accuracy"], found["student"]["bad"]["accuracy"]) == (
        0.75,
        0.0,
    )
    assert (found["student"]["good"]["maj_at_k"], found["student"]["good"]["k"]) == (0.75, 3)
    assert (found["win_rates"][0]["num_wins"], found["win_rates"][0]["num_ties"]) == (6, 2)


def test_translation_by_its_metrics_and_a_server(tmp_path: Path) -> None:
    languages = {"source_language": "German", "target_language": "English"}
    rows = [
        {
            "id": str(i),
            "source": f"Satz {i}.",
            "reference": f"This is sentence {i} of many.",
            **languages,
        }
        for i in range(5)
    ]
    prompts = write(tmp_path / "prompts.jsonl", rows)
    asked = [
        p.messages[-1].content
        for p in load_prompts(str(prompts), read=make_task("translation").read)
    ]
    good = recorded(
        tmp_path, "good", {text: f'"This is sentence {i} of many."' for i, text in enumerate(asked)}
    )
    bad = recorded(tmp_path, "bad", dict.fromkeys(asked, "Nothing."))
    with serving() as server:
        comet = {"kind": "http", "url": f"{server.root}/score", "name": "comet"}
        done = evaluate(
            tmp_path, prompts=str(prompts), task="translation", models=[good, bad], comet=comet
        )
    assert done.returncode == 0, done.stderr
    student = results(tmp_path)["student"]
    assert [
        student["good"][key] for key in ("chrf", "bleu", "mean_verifier_score")
    ] == pytest.approx([100.0] * 3)
    assert student["bad"]["chrf"] < 20
    assert all(isinstance(row["comet"], float) for row in student.values())
    assert not {"accuracy", "k"} & student["good"].keys()


def test_a_judge_compares_in_both_orders(tmp_path: Path) -> None:
    asked = [f"Question {i}?" for i in range(30)]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in asked])
    long = recorded(
        tmp_path, "long", {text: "many words here " * (1 + i % 3) for i, text in enumerate(asked)}
    )
    short = recorded(tmp_path, "short", dict.fromkeys(asked, "two words"))
    with judging(nonsense=0.3) as server:
        judge = {
            "agent": {"name": "j", "engine": "openai", "model": "judge", "base_url": server.url},
            "mode": "arena",
        }
        settings = {
            "prompts": str(prompts),
            "models": [long, short],
            "baseline": "short",
            "judge": judge,
        }
        done = evaluate(tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        (row,) = results(tmp_path)["win_rates"]
        asked = sum(server.stats()["requests"].values())
        assert evaluate(tmp_path, **settings).returncode == 0
        # verdicts are kept; what was none is asked for again, in two orders and three attempts
        assert sum(server.stats()["requests"].values()) - asked <= 6 * row["num_failed"] + 5
    assert (row["by"], row["win_rate"], row["num_losses"]) == ("judge", 1.0, 0)
    assert row["num_wins"] + row["num_failed"] == 30
    lines = (tmp_path / "outputs/side_by_side.jsonl").read_text().splitlines()
    head, *shown = map(json.loads, lines)
    assert (head["models"], head["baseline"]) == (["long", "short"], "short")
    assert [one["messages"] for one in shown] == [[["user", f"Question {i}?"]] for i in range(30)]
    verdicts = [one["responses"][0]["judge"] for one in shown]
    assert verdicts.count(1.0) >= row["num_wins"]  # the second evaluation may know more
    assert set(verdicts) <= {1.0, None}
    assert shown[1]["responses"][1] == {
        "model": "short",
        "text": "two words",
        "finish_reason": "stop",
    }
    assert row["num_failed"] < 10


def test_a_mistake_that_would_show_late_is_said_before_the_first_model_is_asked(
    tmp_path: Path,
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Question?"}])
    models = [{"name": "a", "engine": "scripted"}, {"name": "b", "engine": "scripted"}]
    gone = {"name": "gone", "engine": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    lora = adapter(tmp_path / "l", STUDENT)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    late: dict[str, dict[str, Any]] = {
        "unknown key 'anotator'": {"alpaca_eval": {"anotator": {}}},
        "'tasks' is missing": {"lm_eval": {"limit": 3}},
        "http://127.0.0.1:9": {"reward": {"kind": "http", "url": "http://127.0.0.1:9/score"}},
        "agent 'gone'": {"models": [*models, gone]},
        "vllm": {"models": [*models, {"name": "v", "engine": "vllm", "model": str(lora)}]},
    }
    for message, settings in late.items():
        done = evaluate(
            tmp_path, **{"prompts": str(prompts), "models": models, "baseline": "a", **settings}
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr
        assert not (tmp_path / "outputs").exists()


def test_figures_of_an_earlier_evaluation_do_not_stay_beside_new_ones(tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Question?"}])
    models = [{"name": "a", "engine": "scripted"}, {"name": "b", "engine": "scripted"}]
    settings = {"prompts": str(prompts), "models": models, "reward": {"kind": "length"}}
    assert evaluate(tmp_path, **settings, baseline="a").returncode == 0
    assert results(tmp_path)["win_rates"]
    assert evaluate(tmp_path, **settings).returncode == 0
    assert not results(tmp_path)["win_rates"]


@pytest.mark.heavy
def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}?"} for i in range(300)])
    with serving(latency_s=(0.3, 0.3), slots=20) as server:
        model = {"name": "m", "engine": "openai", "model": "m", "base_url": server.url}
        length = {"kind": "length"}
        path = config(tmp_path, prompts=str(prompts), models=[model], reward=length, num_samples=1)
        process = subprocess.Popen(
            command("recipes/evaluate.py", "--config", path),
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while (
            not (half := list((tmp_path / "outputs").glob("m-*.jsonl")))
            or half[0].stat().st_size < 3_000
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        num_before = len(half[0].read_text().splitlines())
        assert 0 < num_before < 600
        asked_before = sum(server.stats()["requests"].values())
        done = run("recipes/evaluate.py", "--config", path)
        assert done.returncode == 0, done.stderr
        # a last line may be cut in two, and the server is looked for at the start
        assert sum(server.stats()["requests"].values()) - asked_before <= 600 - num_before + 5
    rows = [json.loads(line) for line in half[0].read_text().splitlines()]
    assert set(Counter((row["id"], row["sample"]) for row in rows).values()) == {1}
    assert len(rows) == 600
    assert results(tmp_path)["student"]["m"]["num_problems"] == 300
