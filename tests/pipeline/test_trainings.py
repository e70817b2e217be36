"""The options of trainings are checked before the first stage, as their commands parse them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from tests.pipeline.conftest import plan_of, with_stage
from tests.pipeline.test_pipeline import quiet
from toa_trl.cli.arguments import find_bundled
from toa_trl.errors import ConfigError
from toa_trl.pipeline.memory import check_trainings
from toa_trl.pipeline.run import run_plan

CPU = {"use_cpu": True, "bf16": False}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config": {"learnin_rate": 0.1}}, r"stages\[2\]\.config: unknown .*'--learning_rate'"),
        ({"config": {"learning_rate": "fast"}}, r"stages\[2\]\.config: .*invalid float value"),
        ({"run": "preference", "config": CPU}, r"stages\[2\]\.config: method: must be one of kto"),
        ({"run": "grpo", "config": {"method": "ppo"}}, r"method: must be one of grpo, rloo"),
        ({"config": {}}, r"stages\[2\]: sft needs a GPU, and there is none; .* use_cpu: true"),
        ({"launch": {"accelerate_config": "zero9"}}, r"stages\[2\]\.launch\.accelerate_config: .*"),
    ],
)
def test_a_wrong_option_of_a_training_is_one_line(
    keys: dict[str, Any], message: str, pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toa_trl.pipeline.memory.num_accelerators", lambda: 0)
    pipeline["stages"] = pipeline["stages"][:3]
    with pytest.raises(ConfigError, match=message) as raised:
        check_trainings(plan_of(with_stage(pipeline, 2, **keys)))
    assert len(str(raised.value).splitlines()) == 1


def test_every_shipped_configuration_of_a_training_is_accepted(
    pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toa_trl.pipeline.checks.package_findings", lambda keys: [])
    root = Path(find_bundled("demo/sft", "recipes/configs", "")).parents[1]
    kinds = ("sft", "dpo", "reward", "grpo", "preference", "simpo", "orpo")
    stages = []
    for number, file in enumerate(sorted(root.glob("[!p]*/*.yaml"))):
        kind = file.stem.partition("_")[0]
        if kind in kinds:
            run = "preference" if kind in ("simpo", "orpo") else kind
            stages.append({"run": run, "name": f"s{number}", "config": str(file)})
    assert len(stages) > 20
    pipeline["stages"] = [pipeline["stages"][0], *stages]
    check_trainings(plan_of(pipeline), dry_run=True)


def test_other_mistakes_before_the_first_stage(pipeline: dict[str, Any], stub: Any) -> None:
    with pytest.raises(ConfigError, match=r"stages\[2\]\.launcher: the program 'nosuch' was not"):
        wait(run_plan(plan_of(with_stage(pipeline, 2, launcher="nosuch -n 2")), quiet))
    with pytest.raises(ConfigError, match=r"stages\[2\]\.model: 'dpo' is no training before it"):
        plan_of(with_stage(pipeline, 2, model="dpo"))
    pipeline["servers"] = {"servers": [{"name": "a", "model": "m", "port": n} for n in (1, 2)]}
    with pytest.raises(ConfigError, match="servers: 2 entries have the name 'a'"):
        plan_of(pipeline)
