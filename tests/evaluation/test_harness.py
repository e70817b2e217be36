"""lm_eval on the bundled student, with a task file of our own, and invalid input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agents.conftest import Server, chat
from tests.families import make_family, save_family_model
from tests.helpers import wait
from tests.server import serving
from toa_trl.agents import make_agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.evaluation.harness import LmEvalConfig, run_lm_eval
from toa_trl.types import Message, Sampling
from toa_trl.utils.config import validate

DEMO = Path(__file__).parents[2] / "toa_trl/demo"
STUDENT = {"name": "student", "engine": "transformers", "model": str(DEMO / "weights/student")}
NUM = 6
TASK = """
task: stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {problems}}}, cache_dir: {problems}.cache}}
test_split: test
process_docs: !function prints.show
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<never>"], max_gen_toks: 64}}
filter_list:
- name: last-number
  filter:
  - {{function: regex, regex_pattern: "####\\\\s*(-?[0-9]+)", group_select: -1}}
  - {{function: take_first}}
metric_list:
- {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def config(tasks: str | list[str], folder: Path, **options: Any) -> LmEvalConfig:
    return LmEvalConfig(tasks=tasks, include_path=str(folder), **options)


@pytest.fixture
def problems() -> list[dict[str, Any]]:
    lines = (DEMO / "data/heldout.jsonl").read_text(encoding="utf-8").splitlines()[:NUM]
    return [json.loads(line) for line in lines]


@pytest.fixture
def tasks(tmp_path: Path, problems: list[dict[str, Any]]) -> Path:
    (tmp_path / "problems.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in problems), encoding="utf-8"
    )
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "prints.py").write_text("def show(docs):\n    print('\\x1b[2J')\n    return docs\n")
    (folder / "stories.yaml").write_text(
        TASK.format(problems=tmp_path / "problems.jsonl"), encoding="utf-8"
    )
    return folder


def test_the_student_scores_as_its_own_answers_say(
    tasks: Path, problems: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    agent = make_agent(STUDENT)
    asked = [
        wait(
            agent.generate(
                (Message("user", row["prompt"]),), sampling=Sampling(0.0, 1.0, 64), seed=0
            )
        )
        for row in problems
    ]
    right = sum(
        done.text.rpartition("####")[2].strip() == row["answer"]
        for done, row in zip(asked, problems, strict=True)
    )
    assert 0 < right < NUM
    found = run_lm_eval(STUDENT, config("stories", tasks, batch_size=5))
    assert found.keys() == {"stories"}
    assert found["stories"]["exact_match,last-number"] == pytest.approx(right / NUM)
    assert found["stories"]["exact_match,last-number_stderr"] > 0
    assert found["stories"]["num_problems"] == NUM
    printed = capsys.readouterr().out
    assert "\\x1b[2J" in printed  # by the task, visibly
    assert "\x1b[2J" not in printed


def test_an_adapter_alone_is_loaded_on_its_base(tasks: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(STUDENT["model"])
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(STUDENT["model"]).save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(STUDENT["model"]).save_pretrained(tmp_path / "merged")
    adapter, whole, base = (
        run_lm_eval({**STUDENT, "model": str(model)}, config(["stories"], tasks))
        for model in (tmp_path / "adapter", tmp_path / "merged", STUDENT["model"])
    )
    assert adapter == whole != base


@pytest.mark.heavy  # lm_eval reads its own 14,000 tasks
def test_an_unknown_task_names_near_ones(tasks: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'storis'; did you mean stories"):
        run_lm_eval(STUDENT, config(["stories", "storis"], tasks))


@pytest.mark.parametrize(
    ("entry", "include_path", "says"),
    [
        (
            {**STUDENT, "engine": "transformer"},
            "tasks",
            "engine must be one of transformers, .* not 'transformer' .did you mean 'transformers'",
        ),
        ({"name": "a", "model": "m"}, "tasks", "engine must be one of .*, not None"),
        ({**STUDENT, "model": "/nowhere"}, "tasks", "lm_eval: model 'student': OSError"),
        (STUDENT, "no_tasks", "lm_eval.include_path: .* is not a folder"),
    ],
)
def test_mistakes_are_one_line(
    tasks: Path, entry: dict[str, Any], include_path: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        run_lm_eval(entry, config(["stories"], tasks.parent / include_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "lm_eval: the key 'tasks' is missing"),
        ({"tasks": "a", "limit": 0}, "lm_eval.limit: must be >= 1, not 0"),
        ({"tasks": "a", "batch_size": "auto"}, "lm_eval.batch_size: must be an integer"),
        ({"tasks": "a", "num_fewshot": -1}, "lm_eval.num_fewshot: must be >= 0, not -1"),
        ({"task": "a"}, "lm_eval: unknown key 'task'.*did you mean 'tasks'"),
    ],
)
def test_an_invalid_entry_names_the_key(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(LmEvalConfig, entry, "lm_eval")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'toa_trl\[eval\]'"):
        run_lm_eval(STUDENT, LmEvalConfig(tasks="stories"))


@pytest.mark.parametrize("keep", [False, True])
def test_reasoning_is_not_scored(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, problems: list[dict[str, Any]], keep: bool
) -> None:
    from lm_eval.models.huggingface import HFLM

    answers = [f"<think>\n#### {row['answer']}\n</think>\n\nI pass." for row in problems]
    answers[0] = f"It may be 3.</think>#### {problems[0]['answer']}"  # opened by the template
    answers[1] = f"<think>#### {problems[1]['answer']}"  # cut within it
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **options: answers)
    entry = {**STUDENT, **({"keep_reasoning": True} if keep else {})}
    found = run_lm_eval(entry, config("stories", tasks))
    assert found["stories"]["exact_match,last-number"] == pytest.approx(1.0 if keep else 1 / NUM)


def test_a_template_without_a_system_role_shows_the_system_prompt(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    asked: list[str] = []

    def generate(self: Any, requests: Any, **options: Any) -> list[str]:
        asked.extend(request.args[0] for request in requests)
        return [""] * len(requests)

    monkeypatch.setattr(HFLM, "generate_until", generate)
    folder = save_family_model(tmp_path / "gemma", make_family("gemma"))
    entry = {**STUDENT, "model": str(folder), "system_prompt": "Be brief."}
    run_lm_eval(entry, config("stories", tasks, limit=2))
    assert len(asked) == 2
    assert all(text.startswith("<bos><start_of_turn>user\nBe brief.\n\n") for text in asked)


def test_replies_of_a_server_are_read_without_an_index_and_without_reasoning(
    tasks: Path, problems: list[dict[str, Any]]
) -> None:
    pytest.importorskip("tenacity", reason="lm_eval asks servers only with its extra [api]")
    server = Server()
    server.script = [chat(f"<think> x </think> #### {row['answer']}") for row in problems[:3]]
    entry = {"name": "served", "engine": "openai", "model": "m", "base_url": server.urls[0]}
    try:
        found = run_lm_eval({**entry, "max_concurrency": 1}, config("stories", tasks, limit=3))
    finally:
        server.close()
    assert found["stories"]["exact_match,last-number"] == 1.0


def test_a_server_is_asked_for_every_problem(tasks: Path) -> None:
    pytest.importorskip("tenacity", reason="lm_eval asks servers only with its extra [api]")
    with serving(model="small", words=5) as server:
        entry = {
            "name": "served",
            "engine": "openai",
            "model": "small",
            "base_url": [server.url],
            "max_concurrency": 4,
        }
        found = run_lm_eval(entry, config("stories", tasks, limit=3))
        assert server.stats()["requests"]["POST /v1/chat/completions"] == 3
        assert found["stories"]["num_problems"] == 3
        server.control(fault_rate=1.0, faults=["500"])
        with pytest.raises(AgentError, match=r"lm_eval: model 'served': ClientResponseError: 500"):
            run_lm_eval(entry, config(["stories"], tasks, limit=3))
