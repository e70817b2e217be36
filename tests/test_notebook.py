"""Rollouts and samplers as a notebook shows them, and as tables, figures and trees."""

from __future__ import annotations

import inspect
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.helpers import EchoAgent, TextReward
from toa_trl import TOASampler
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts, is_complete

PROMPTS = [{"id": f"p{n}", "prompt": f"<b>What</b> is {n}?"} for n in range(7)]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def sampler() -> TOASampler:
    agents = [EchoAgent("a<i>"), EchoAgent("b", fails=0.3)]
    params = {"width": 2, "tau": 1.0}
    return TOASampler(agents, TextReward(), "toa", 8, search_params=params, progress=False)


@pytest.fixture(scope="module")
def rollouts(sampler: TOASampler) -> Rollouts:
    return sampler.sample(PROMPTS)


def test_a_rollout_is_found_by_its_position_or_its_id(rollouts: Rollouts) -> None:
    in_order = list(rollouts)
    assert [rollouts[n] for n in range(7)] == in_order
    assert rollouts[-1] == in_order[6]
    assert rollouts["p3"] == in_order[3]
    assert rollouts[1:6:2] == in_order[1:6:2]
    assert rollouts[::-1] == in_order[::-1]


def test_what_is_not_there_is_named(rollouts: Rollouts) -> None:
    with pytest.raises(IndexError, match="there are 7 prompts, and no number -8"):
        rollouts[-8]
    with pytest.raises(KeyError, match="no prompt has the id 'p9'"):
        rollouts["p9"]


def test_the_text_says_what_the_run_is(rollouts: Rollouts, sampler: TOASampler) -> None:
    text = repr(rollouts)
    assert text.startswith("<Rollouts of toa, budget 8, in memory: 7 prompts, 56 scored plays")
    assert "mean best reward 0." in text
    assert repr(sampler).startswith("TOASampler(agents=['a<i>', 'b'], search='toa'")
    assert "budget=8" in repr(sampler)


def test_html_shows_texts_and_runs_none_of_them(rollouts: Rollouts, sampler: TOASampler) -> None:
    shown = [rollouts._repr_html_(), sampler._repr_html_(), rollouts[0]._repr_html_()]
    for html in shown:
        assert "a&lt;i&gt;" in html
        assert "<b>What" not in html
        assert "a<i>" not in html
    assert "&lt;b&gt;What&lt;/b&gt; is 4?" in shown[0]
    assert "and 2 more prompts" in shown[0]


def test_a_tree_has_every_play_below_its_parent(rollouts: Rollouts, tmp_path: Path) -> None:
    for rollout in rollouts:
        tree = rollout.tree()
        assert tree._repr_svg_() == tree
        image = ET.fromstring(tree)
        nodes = image.findall(f"{SVG}g")
        assert len(nodes) == len(rollout.plays)
        titles = [node.findtext(f"{SVG}title") or "" for node in nodes]
        for play, title in zip(rollout.plays, titles, strict=True):
            assert title.startswith(f"{play.action.agent}, {play.action.kind}, ")
        lines = image.findall(f"{SVG}line")
        assert len(lines) == sum(play.action.parent is not None for play in rollout.plays)
        assert all(float(line.attrib["y1"]) < float(line.attrib["y2"]) for line in lines)
        circles = image.findall(f"{SVG}g/{SVG}circle")
        places = {(circle.attrib["cx"], circle.attrib["cy"]) for circle in circles}
        assert len(places) == len(nodes)  # none hides another


def test_an_agent_has_the_same_colour_in_every_tree_and_in_the_figure(rollouts: Rollouts) -> None:
    from toa_trl.report.figures import color

    for rollout in rollouts:
        for play in rollout.scored:
            shade = color(["a<i>", "b"].index(play.action.agent))
            assert f'fill="{shade}"' in rollout.tree()
    axes = rollouts.plot().axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert [label.partition(",")[0] for label in labels] == ["a<i>", "b"]
    assert [text.get_color() for text in axes.texts] == [color(0), color(1)]


def test_pandas_has_a_row_per_play(rollouts: Rollouts) -> None:
    frame = rollouts.to_pandas()
    assert len(frame) == sum(len(rollout.plays) for rollout in rollouts)
    assert set(frame["prompt_id"]) == {f"p{n}" for n in range(7)}


@pytest.mark.parametrize("name", ["to_sft", "to_preference", "push_to_hub", "save"])
def test_arguments_are_named_so_that_they_can_be_completed(name: str) -> None:
    parameters = inspect.signature(getattr(Rollouts, name)).parameters.values()
    assert not [p for p in parameters if p.kind is p.VAR_KEYWORD]


def test_sampling_leaves_the_folder_that_the_command_leaves(
    sampler: TOASampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TOASampler, "sample", TOASampler.sample.__wrapped__)  # type: ignore[attr-defined]
    sampler.sample(PROMPTS[:3], output_dir=tmp_path / "run")
    assert is_complete(tmp_path / "run")
    settings = {
        "prompts": [row["prompt"] for row in PROMPTS[:3]],
        "agents": [{"name": name, "engine": "scripted"} for name in "ab"],
        "reward": {"kind": "length"},
        "budget": 8,
        "output_dir": str(tmp_path / "command"),
    }
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS[:3]))
    (tmp_path / "run.json").write_text(json.dumps({**settings, "prompts": str(prompts)}))
    main(["synthesize", "--config", str(tmp_path / "run.json")])
    assert files(tmp_path / "run") == files(tmp_path / "command")
    sampler.sample(PROMPTS[:3], output_dir=tmp_path / "short", export=False)
    assert files(tmp_path / "short") < files(tmp_path / "command")
    (tmp_path / "mine" / "sft").mkdir(parents=True)
    (tmp_path / "mine" / "sft" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="sft"):
        sampler.sample(PROMPTS[:3], output_dir=tmp_path / "mine")
    assert not (tmp_path / "mine" / "journal.sqlite").exists()  # found before anything was sampled


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
