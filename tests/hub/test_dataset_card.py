"""The data set card: what it says of a run, and that it gives nothing away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from toa_trl import __version__
from toa_trl.hub.dataset_card import named_on_hub, replace_audit, reward_name, write_card
from toa_trl.hub.licences import licence_of, revision_of
from toa_trl.types import AgentCounts, Counts
from toa_trl.utils.redaction import on_hub, public_name

IDENTITY: dict[str, Any] = {
    "search": "toa",
    "search_params": {"tau": 0.1},
    "budget": 3,
    "seed": 0,
    "agents": {"a": {"model": "m"}},
    "reward": {"kind": "chrf"},
    "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 9},
}
JUDGE = {
    "kind": "judge",
    "agent": {"name": "j", "engine": "openai", "model": "org/judge", "api_key": "sk-1"},
}
CLASSIFIER = {"kind": "classifier", "model": "org/rm", "base_url": "http://host"}


def card(path: Path, known: Mapping[str, Any] | None = None, **identity: Any) -> str:
    dropped: dict[str, Counter[str]] = {"sft": Counter(), "dpo": Counter({"too few": 2})}
    num_rows = {"rollouts": 12, "sft": 4, "dpo": 2}
    write_card(
        path / "README.md",
        {**IDENTITY, **identity},
        Counts(4, 12, 0, 0, 1, 2, 3.0, 4.0),
        num_rows,
        dropped,
        {"sft": {}, "dpo": {}},
        "## Audit\n\n- fine\n",
        **(known or {}),
    )
    return (path / "README.md").read_text(encoding="utf-8")


def without_markers(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("<!-- toa_trl ")]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("length_reward", "length_reward"),
        (CLASSIFIER, "classifier `org/rm`"),
        ({"kind": "function", "function": "mine:score"}, "function `mine:score`"),
        ({"kind": "chrf"}, "chrf"),
        ({"kind": "length", "unit": "characters"}, "length `characters`"),
        (JUDGE, "judge `org/judge`"),
        (
            {
                "kind": "weighted_sum",
                "rewards": [
                    {"weight": 0.7, "reward": CLASSIFIER},
                    {"weight": 1, "reward": {"kind": "chrf"}},
                ],
            },
            "weighted_sum of 0.7 x classifier `org/rm`, 1 x chrf",
        ),
        (
            {"kind": "minimum", "rewards": [CLASSIFIER, JUDGE]},
            "minimum of classifier `org/rm`, judge `org/judge`",
        ),
        (
            {
                "kind": "held_out",
                "reward": {"kind": "minimum", "rewards": [CLASSIFIER, {"kind": "math"}]},
                "second": JUDGE,
            },
            "minimum of classifier `org/rm`, math; held out, only recorded: judge `org/judge`",
        ),
        (
            {
                "kind": "weighted_sum",
                "rewards": [{"weight": 1, "reward": {"kind": "minimum", "rewards": [JUDGE]}}],
            },
            "weighted_sum of 1 x (minimum of judge `org/judge`)",
        ),
        ({"kind": "weighted_sum", "rewards": ["x", {}]}, "weighted_sum of x, ?"),
    ],
)
def test_rewards_are_named_by_kind_and_model(entry: Any, said: str, tmp_path: Path) -> None:
    assert reward_name(entry) == said
    assert f"| reward | {said} |" in card(tmp_path, reward=entry)


def test_settings_are_explained_and_columns_are_listed(tmp_path: Path) -> None:
    column = {"name": "rank", "type": "integer", "meaning": "by reward", "configurations": "sft"}
    known = {"columns": [column], "example": '{"rank": 1}'}
    text = card(tmp_path, known, search_params={"tau": 0.1, "own": 3})
    assert "| tau | 0.1 | temperature of the squashing" in text
    assert "| own | 3 |  |" in text  # of a search that has no such parameter any more
    assert "| temperature | 0.7 | Softmax temperature; 0 is greedy |" in text
    assert "| `rank` | integer | sft | by reward |" in text
    assert '```json\n{"rank": 1}\n```' in text
    assert f"[toa_trl](https://arxiv.org/abs/2412.17061) {__version__}" in text


def test_a_search_of_the_users_own_is_not_imported_for_the_card(tmp_path: Path) -> None:
    assert "| tau | 0.1 |  |" in card(tmp_path, search="no_such_module:Search")


def test_a_task_changes_the_words(tmp_path: Path) -> None:
    old = card(tmp_path)
    assert old == card(tmp_path, task={"name": "alignment", "templates": {"refine": "secret"}})
    assert "4 prompts, 12 responses with their rewards" in old
    text = card(
        tmp_path,
        task={"name": "translation", "templates": {"answer": "x"}, "target_language": "English"},
    )
    assert "4 source texts, 12 translations with their rewards" in text
    assert "| task | `translation`, target_language English |" in text
    assert yaml.safe_load(text.split("---")[1])["task_categories"] == [
        "text-generation",
        "translation",
    ]
    assert "4 problems, 12 solutions" in card(tmp_path, task={"name": "math", "templates": {}})
    assert "4 prompts, 12 responses" in card(tmp_path, task={"name": "package.module:Own"})


def test_an_audit_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    before = card(tmp_path)
    replace_audit(tmp_path / "README.md", "## Audit\n\n- not \\1 so fine\n")
    after = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert without_markers(after) == without_markers(before.replace("- fine", "- not \\1 so fine"))
    replace_audit(tmp_path / "README.md", "## Audit\n\n- fine\n")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before


def test_what_is_known_is_said_and_what_is_not_is_not_guessed(tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny-licence\n---\n# Tiny\n"
    )
    (tmp_path / "prompts.jsonl").write_text("{}")
    agents = {
        "local": {"engine": "transformers", "model": str(model)},
        "served": {"engine": "openai", "model": "org/served"},
        "pinned": {"engine": "vllm", "model": "org/pinned", "engine_args": {"revision": "abc"}},
        "dry": {"engine": "scripted"},
        "own": "MyAgent",
    }
    known = {
        "about": {"license": "cc-by-4.0", "language": ["en", "de"]},
        "prompts": {"prompts": str(tmp_path / "prompts.jsonl"), "prompts_split": "train"},
        "agents": {"local": AgentCounts(1234, 5, 6, 7, 8.0)},
        "cost": 12.5,
        "picture": "rewards.png",
    }
    text = card(tmp_path, known, agents=agents)
    assert "| local | `tiny`, a local folder | none | tiny-licence | 1,234 | 5 |" in text
    assert "| served | `org/served` | not known | not known | 0 | 0 |" in text
    assert "| pinned | `org/pinned` | abc | not known | 0 | 0 |" in text
    assert "| dry | none, scripted | not known | not known | 0 | 0 |" in text
    assert "| own | not known | not known | not known | 0 | 0 |" in text
    assert "| prompts | 4 of `prompts.jsonl`; licence: not known |" in text
    assert "| cost | 12.5, of agents and rewards with a price, in their currency |" in text
    assert "![The rewards of every agent's plays](rewards.png)" in text
    assert "This data set: cc-by-4.0." in text
    assert str(tmp_path) not in text
    data = DatasetCard.load(tmp_path / "README.md").data
    assert (data.license, data.language, data.size_categories) == (
        "cc-by-4.0",
        ["en", "de"],
        ["n<1K"],
    )
    bare = card(tmp_path)
    assert "| cost |" not in bare
    assert "rewards.png" not in bare
    assert "No licence is stated for this data set." in bare
    assert "their source was not recorded" in bare
    assert not {"license", "language"} & yaml.safe_load(bare.split("---")[1]).keys()


def test_prompts_of_the_hub_are_named(tmp_path: Path) -> None:
    text = card(
        tmp_path,
        {
            "prompts": {
                "prompts": "org/prompts",
                "prompts_config": "main",
                "prompts_split": "test",
            },
            "about": {"language": "fr"},
        },
    )
    assert (
        "| prompts | 4 of `org/prompts`, configuration main, split test; licence: not known |"
        in text
    )
    header = yaml.safe_load(text.split("---")[1])
    assert (header["source_datasets"], header["language"]) == (["org/prompts"], ["fr"])


def test_a_folder_of_any_name_has_a_card_that_is_yaml(tmp_path: Path) -> None:
    for name in ("1: [2", "on", "ünï", "'"):
        folder = tmp_path / name
        folder.mkdir()
        card(folder)
        assert (
            yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["pretty_name"]
            == name
        )


def test_the_lines_on_loading_name_the_data_set(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert f'load_dataset("OWNER/{tmp_path.name}", "dpo", split="train")' in text
    for name in ("me/first", "me/second"):
        text = named_on_hub(text, name)
        assert f'load_dataset("{name}", "dpo", split="train")' in text
    assert f'load_dataset("{tmp_path.name}/dpo", split="train")' in text


@pytest.mark.parametrize(
    ("name", "said", "hub"),
    [
        ("org/model", "org/model", True),
        ("gpt-4", "gpt-4", False),
        ("/home/ann/models/mine", "mine", False),
        ("~/mine", "mine", False),
        ("../x/mine", "mine", False),
        ("runs/of/mine", "mine", False),
        ("tests/data", "data", False),  # is there
        ("data/secret.jsonl", "secret.jsonl", False),  # was there
        ("runs/secret", "secret", False),
        ("http://host:1/v1", "v1", False),
    ],
)
def test_names_and_no_places(name: str, said: str, hub: bool) -> None:
    assert (public_name(name), on_hub(name)) == (said, hub)


def test_licences_and_revisions_that_are_not_known(tmp_path: Path) -> None:
    assert licence_of("org/nowhere") is None
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    licence_of.cache_clear()
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    licence_of.cache_clear()
    assert licence_of(str(tmp_path)) == "mit, apache-2.0"
    assert revision_of({"engine": "transformers", "model": "org/nowhere"}) is None
    assert revision_of({"engine": "openai", "model": "m", "revision": "v1"}) == "v1"
