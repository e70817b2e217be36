"""Recipes are named, combined and checked, and the command writes what they make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard

from tests.helpers import EchoAgent, TextReward, play, rollout
from toa_trl import TOASampler
from toa_trl.cli.main import run as main
from toa_trl.data.preference import preference_rows
from toa_trl.data.recipes import BUILDERS, choose_recipes, make_plan
from toa_trl.data.sft import sft_rows
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.types import Rollout

IT = rollout(play(0, 1.0), play(1, 3.0, parent=0), play(2, 2.0, finish_reason="length"))
ALL = ",".join(BUILDERS)


class Mine:
    """A builder of the user's own."""

    format = "sft"
    needs_task = False

    def rows(self, it: Any) -> str:
        return "none"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 prompts x 12 plays of toa, with data sets; two prompts are equal."""
    folder = tmp_path_factory.mktemp("recipes") / "run"
    agents = [EchoAgent("a"), EchoAgent("b", fails=0.1)]
    sampler = TOASampler(agents, TextReward(), budget=12, task="math", progress=False)
    prompts = [f"What is {n} + 1?" for n in (0, 1, 2, 3, 4, 4)]
    sampler.sample(prompts, output_dir=folder).save(folder)
    return folder


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return list(load_dataset(str(folder), split="train"))


def test_recipes_of_one_format_become_one_data_set() -> None:
    recipes: list[dict[str, Any]] = [
        {"builder": "best", "name": "all", "top_k": 9, "keep_truncated": True},
        {"builder": "best"},
    ]
    plan = make_plan(sft={"top_k": 2}, recipes=recipes)
    built = plan.build([IT, rollout(play(0, None), id="q")], (), None)
    rows = [(row["recipe"], row["play"]) for row in built["sft"].rows]
    # an entry overrides the settings of the run, and has them where it says nothing
    assert rows == [("all", 1), ("all", 2), ("all", 0), ("best", 1), ("best", 0)]
    assert built["sft"].made == {"all": 3, "best": 2}
    assert built["sft"].dropped == {"all: no play was scored": 1, "best: no play was scored": 1}
    assert set(built) == {"sft", "dpo"}


def test_without_recipes_the_data_sets_are_what_they_were() -> None:
    sft: dict[str, Any] = {"top_k": 2, "without": ["z"]}
    pairs = {"policy": "worst", "keep_truncated": True}
    its = [IT, rollout(play(0, 1.0), id="z")]
    built = make_plan(sft, pairs).build(its, (), None)
    assert list(built["sft"].rows) == list(sft_rows(its, **sft)[0])
    assert list(built["dpo"].rows) == list(preference_rows(its, **pairs)[0])  # type: ignore[arg-type]


def test_rollouts_are_read_one_at_a_time() -> None:
    read = []

    class Run:
        def __iter__(self) -> Iterator[Rollout]:
            for number in range(3):
                read.append(number)
                yield rollout(play(0, 1.0), play(1, 2.0), id=str(number))

    plan = make_plan(recipes=[{"builder": "groups"}], clean={"min_characters": 1})
    cleaned = plan.clean(Run())
    assert read == [0, 1, 2]  # judged
    rows = plan.build(cleaned, (), None)["groups"].rows
    next(rows)
    assert read == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([{"builder": "top"}], r"recipes\[0\]: unknown builder 'top'"),
        ([{"builder": "kto", "caps": 1}], r"recipes\[0\]: unknown key 'caps'"),
        ([{"builder": "kto"}, {"builder": "kto"}], r"recipes\[1\]: another recipe.*'kto'; set"),
        ([{"builder": "top_bottom", "max_pairs": 0}], r"recipes\[0\]\.max_pairs: must be >= 1"),
        ([{"builder": "length_matched", "max_ratio": 0.9}], r"recipes\[0\]\.max_ratio"),
        ([{"builder": "groups", "max_responses": 1}], r"recipes\[0\]\.max_responses"),
        ([{"builder": "pair", "policy": "margin"}], r"margin: required by policy"),
    ],
)
def test_invalid_recipes_are_refused_by_name(recipes: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(recipes=recipes)


def test_settings_of_sft_and_dpo_count_where_no_recipe_makes_them() -> None:
    given: dict[str, Any] = {"sft": {"top_k": 2}, "preference": {"rejected_rank": 5}}
    plain = make_plan(**given)
    assert plain.params == {"sft": {"top_k": 2}, "dpo": {"rejected_rank": 5}}
    own = make_plan(**given, recipes=[{"builder": "refinement_sft"}])
    assert own.params == {"sft": {}, "dpo": {"rejected_rank": 5}}


def test_a_recipe_is_chosen_by_its_name_or_its_builder() -> None:
    known: list[dict[str, Any]] = [
        {"builder": "kto", "name": "labels"},
        {"builder": "groups", "max_responses": 4},
    ]
    inline = {"builder": "top_bottom"}
    chosen = choose_recipes(["labels", "groups", "kto", inline], known)
    assert chosen == [*known, {"builder": "kto"}, inline]
    with pytest.raises(ConfigError, match=r"unknown recipe 'label'.*did you mean 'labels'"):
        choose_recipes(["label"], known)


def test_the_command_makes_and_counts_what_recipes_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "derived"
    command = ["data", str(run), "--output", str(output)]
    main([*command, "--recipe", ALL, "--clean", "{exact_duplicates: true, min_reward: 0.5}"])
    assert "sft, dpo, kto, groups are written" in capsys.readouterr().out
    plays = {
        (it.prompt.id, p.index): p for it in Rollouts.load(run) for p in it.plays if p.completion
    }
    card = DatasetCard.load(output / "README.md")
    parts = ["sft", "dpo", "kto", "groups", "rollouts"]
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == parts
    assert "- 1 prompts: duplicate of an earlier prompt" in card.text
    for name in parts[:-1]:
        rows = rows_in(output / name)
        assert {row["prompt_id"] for row in rows} <= {"0", "1", "2", "3", "4"}  # 5 repeats 4
        for recipe in {row["recipe"] for row in rows}:
            number = sum(row["recipe"] == recipe for row in rows)
            assert f"| {recipe} | `{name}` | {number} |" in card.text
    for row in rows_in(output / "sft"):
        draft = row["draft_play"]
        assert (draft is None) == (row["recipe"] == "best")
        if draft is not None:
            text = plays[row["prompt_id"], draft].completion.text  # type: ignore[union-attr]
            assert text in row["prompt"][-1]["content"]
            assert row["prompt"][-1]["content"] != text
        assert row["reward"] >= 0.5
    for row in rows_in(output / "kto"):
        assert row["label"] in (True, False)
        assert plays[row["prompt_id"], row["play"]].reward == row["reward"]
    assert {row["recipe"] for row in rows_in(output / "dpo")} == {
        "pair",
        "top_bottom",
        "length_matched",
        "refinement_pairs",
    }
    again = {name: pq.read_table(output / name) for name in parts}
    main([*command, "--recipe", ALL, "--clean", "{exact_duplicates: true, min_reward: 0.5}"])
    assert all(pq.read_table(output / name).equals(table) for name, table in again.items())
    main(command)  # without recipes: as the run made them, and nothing is left of the others
    assert not (output / "kto").exists()
    assert not (output / "groups").exists()
    for name in ("sft", "dpo"):
        assert pq.read_table(output / name).equals(pq.read_table(run / name))
    text = (output / "README.md").read_text(encoding="utf-8")
    assert "## Recipes" not in text
    assert "## Cleaning" not in text


def test_recipes_and_filters_of_a_run_are_used_and_overridden(run: Path, tmp_path: Path) -> None:
    kept = (run / "run.yaml").read_text(encoding="utf-8")
    settings = {"recipes": [{"builder": "kto", "name": "labels", "max_rows": 2}]}
    settings |= {"clean": {"exact_duplicates": True}}  # type: ignore[dict-item]
    (run / "run.yaml").write_text(yaml.safe_dump({**yaml.safe_load(kept), **settings}))
    try:
        command = ["data", str(run), "--output", str(tmp_path)]
        main(command)
        assert {row["recipe"] for row in rows_in(tmp_path / "kto")} == {"labels"}
        assert len(rows_in(tmp_path / "kto")) == 10
        main([*command, "--recipe", "labels, groups", "--clean", "{}"])
        assert len(rows_in(tmp_path / "kto")) == 12
        main([*command, "--recipe", "groups", "--recipe", "{builder: kto, max_rows: 1}"])
        assert len(rows_in(tmp_path / "groups")) == len(rows_in(tmp_path / "kto")) == 5
        for option, value, message in (
            ("--recipe", "label", r"recipe: unknown recipe 'label'.*did you mean 'labels'"),
            ("--recipe", "{builder", "--recipe: neither YAML nor JSON"),
            ("--clean", "[]", r"--clean: must be a mapping, not '\[\]'"),
        ):
            with pytest.raises(ConfigError, match=message):
                main([*command, option, value])
    finally:
        (run / "run.yaml").write_text(kept)


def test_builders_that_a_folder_names_are_run_only_when_trusted(run: Path, tmp_path: Path) -> None:
    kept = (run / "run.yaml").read_text(encoding="utf-8")
    entry = {"builder": f"{__name__}:Mine"}
    (run / "run.yaml").write_text(yaml.safe_dump({**yaml.safe_load(kept), "recipes": [entry]}))
    try:
        with pytest.raises(ConfigError, match=r"recipes\[0\]: the builder .* only with --trust"):
            main(["data", str(run), "--output", str(tmp_path / "a")])
        main(["data", str(run), "--output", str(tmp_path / "b"), "--trust"])
        assert pq.read_metadata(next((tmp_path / "b" / "sft").glob("*"))).num_rows == 0
    finally:
        (run / "run.yaml").write_text(kept)


def test_recipes_in_python(run: Path) -> None:
    it = Rollouts.load(run)
    made = it.to_datasets(
        [{"builder": "refinement_sft"}, {"builder": "kto"}], {"exact_duplicates": True}
    )
    assert set(made) == {"sft", "kto"}
    assert set(made["sft"]["recipe"]) == {"refinement_sft"}
    assert set(made["kto"].features["label"].dtype.split()) == {"bool"}
