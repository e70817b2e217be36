"""The page agrees with the rollouts, loads nothing, and explains what is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toa_trl import TOASampler
from toa_trl.agents import Agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.report import trees
from toa_trl.report.page import write_report
from toa_trl.types import Completion

DATA = re.compile(r'<script type="application/json" id="([^"]*)">(.*?)</script>', re.DOTALL)


def text_of(page: str) -> str:
    """What a reader sees, apart from figures."""
    page = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", DATA.sub("", page), flags=re.DOTALL)
    page = re.sub(r"</?(span|b|small|em)\b[^>]*>", "", page)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def number(value: float, decimals: int = 3) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")


@pytest.fixture(scope="module", name="run")
def _run(
    tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., Any], results: dict[str, Any]
) -> tuple[Path, list[dict[str, Any]], str]:
    folder = tmp_path_factory.mktemp("runs") / "a <run> & more"
    folder.mkdir()
    rows = write_run(folder)
    (folder.parent / "results.json").write_text(json.dumps(results))
    assert write_report(folder) == folder / "report.html"
    return folder, rows, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["uniform", "adaptive"])
def page(request: pytest.FixtureRequest) -> str:
    """The pages of a uniform and of an adaptive run, both with hostile texts."""
    if request.param == "uniform":
        return str(request.getfixturevalue("run")[2])
    folder: Path = request.getfixturevalue("adaptive_run")
    return write_report(folder, results={}).read_text(encoding="utf-8")


def by_prompt(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    prompts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        prompts.setdefault(row["prompt_id"], []).append(row)
    return prompts


def best_of(plays: list[dict[str, Any]]) -> dict[str, Any]:
    return min(
        (p for p in plays if p["reward"] is not None), key=lambda p: (-p["reward"], p["play"])
    )


def test_what_ran_is_counted(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, rows, page = run
    text = text_of(page)
    scored = [row for row in rows if row["reward"] is not None]
    failed, cut = len(rows) - len(scored), sum(row["finish_reason"] == "length" for row in rows)
    totals = f"{len(rows)} plays, of which {len(scored)} have a reward"
    assert f"worked on 40 prompts under the search toa: {totals}" in text
    read, wrote = (
        sum(row[f"{side}_tokens"] for row in scored) for side in ("prompt", "completion")
    )
    assert f"The agents read {read:,} tokens and wrote {wrote:,}, with" in text
    assert f"{cut} responses ({100 * cut / len(scored):.1f} %) ended at the token limit" in text
    assert f"{failed} plays ({100 * failed / len(rows):.1f} %) failed" in text
    timeouts = [row["agent"] for row in rows if row["error"] == "timeout after 60 s"]
    agents = ("adder", "taker", "multiplier", "generalist")
    assert (
        f"timeout after 60 s {' '.join(str(timeouts.count(a)) for a in agents)} {len(timeouts)}"
        in text
    )
    assert "HTTP 503 from <server> … " in text  # addresses do not make reasons differ
    assert "wall time 3 min 20 s" in text
    assert "sk-1" not in page


def test_rewards_and_winners_are_those_of_the_rows(
    run: tuple[Path, list[dict[str, Any]], str],
) -> None:
    _, rows, page = run
    text = text_of(page)
    for agent in ("adder", "taker", "multiplier", "generalist"):
        own = [row["reward"] for row in rows if row["agent"] == agent and row["reward"] is not None]
        assert f"{agent} {len(own)} {number(mean(own))} " in text
    prompts = by_prompt(rows)
    winners = {prompt: best_of(plays) for prompt, plays in prompts.items()}
    wins = Counter(row["agent"] for row in winners.values())
    for agent, num in wins.items():
        assert f"{agent} {num} {100 * num / len(winners):.{0 if num > 3 else 1}f} %" in text
    paths: dict[str, list[float]] = {}
    for prompt, row in winners.items():
        words, at = "", row
        while at["kind"] == "refine":
            words = f", refined by {at['agent']}{words}"
            at = next(r for r in prompts[prompt] if r["play"] == at["refs"][0])
        paths.setdefault(f"answered by {at['agent']}{words}", []).append(row["reward"])
    path, best = max(paths.items(), key=lambda item: len(item[1]))
    assert re.search(rf"{path} {len(best)} [0-9.]+ % {re.escape(number(mean(best)))}", text)
    assert f"of {len(paths)} paths in total" in text


def test_gains_are_those_of_the_rows(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, rows, page = run
    text = text_of(page)
    gains: dict[tuple[str, str], list[float]] = {}
    for plays in by_prompt(rows).values():
        at = {row["play"]: row for row in plays}
        for row in plays:
            if row["kind"] == "refine" and row["reward"] is not None:
                draft = at[row["refs"][0]]
                gains.setdefault((draft["agent"], row["agent"]), []).append(
                    row["reward"] - draft["reward"]
                )
    everything = [gain for some in gains.values() for gain in some]
    better = 100 * sum(gain > 0 for gain in everything) / len(everything)
    assert (
        f"Of {len(everything)} plays that saw drafts {better:.0f} % beat the best of them" in text
    )
    for some in gains.values():
        sign = "+" if mean(some) > -0.0005 else ""
        assert f"{sign}{number(mean(some)).replace('−0.000', '0.000')} {len(some)}" in text


def test_the_curve_begins_and_ends_where_the_rows_do(
    run: tuple[Path, list[dict[str, Any]], str],
) -> None:
    _, rows, page = run
    prompts = by_prompt(rows)
    first = [
        next(p for p in plays if p["reward"] is not None)["reward"] for plays in prompts.values()
    ]
    last = [best_of(plays)["reward"] for plays in prompts.values()]
    spread = (sum((x - mean(last)) ** 2 for x in last) / (len(last) - 1)) ** 0.5
    start = f"the mean best reward is {number(mean(first))} after one play"
    end = f"{number(mean(last))} after 24"
    assert (
        f"Over 40 prompts {start} and {end} (95 % band ±{number(1.96 * spread / len(last) ** 0.5)})"
        in text_of(page)
    )


def test_pairs_and_their_lengths_are_those_of_the_rows(
    run: tuple[Path, list[dict[str, Any]], str],
) -> None:
    folder, _, page = run
    pairs = pq.read_table(folder / "dpo").to_pylist()
    chosen, rejected = (
        [len(pair[side][0]["content"]) for pair in pairs] for side in ("chosen", "rejected")
    )
    longer = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    text = text_of(page)
    assert f"dpo/ holds {len(pairs)} pairs" in text
    assert f"characters {mean(chosen):,.0f} against {mean(rejected):,.0f}" in text
    share = f"{100 * longer / len(pairs):.0f} %"
    assert f"The chosen response is longer in {share} of the {len(pairs)} pairs" in text
    tokens = {(row["prompt_id"], row["play"]): row["completion_tokens"] for row in run[1]}
    sides = [
        mean(tokens[pair["prompt_id"], pair[f"{side}_play"]] for pair in pairs)
        for side in ("chosen", "rejected")
    ]
    assert f"tokens {sides[0]:,.0f} against {sides[1]:,.0f}" in text
    margin = median(pair["chosen_reward"] - pair["rejected_reward"] for pair in pairs)
    assert re.search(rf"The median margin is \+{re.escape(number(margin))[:-1]}", text)


def test_results_are_shown(run: tuple[Path, list[dict[str, Any]], str]) -> None:
    text = text_of(run[2])
    assert "The student's accuracy goes from 0.310 (before) to 0.655 (after DPO)." in text
    assert "After DPO against before: +0.345, and the intervals do not overlap." in text
    best = "At 32 plays toa selects a right answer most often (0.850)"
    assert f"{best}; the intervals of moa and sequential overlap" in text


def test_the_file_refers_to_nothing_outside(page: str) -> None:
    assert "nan" not in re.findall(r"[a-z]+", text_of(page).lower())
    page = DATA.sub("", page)
    page = re.sub(
        r"<option .*?</option>|<dd>.*?</dd>", "", page, flags=re.DOTALL
    )  # texts of the run
    assert not re.search(r"https?:|//[a-z]+\.|@import|<link|<iframe|<object", page)
    assert set(re.findall(r'\b(?:src|href|action)="([^"]?)', page)) == {"#"}
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_the_file_is_well_formed(page: str) -> None:
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.ids += [value for name, value in attrs if name == "id" and value]
            if tag not in ("meta", "input", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.ids += [value for name, value in attrs if name == "id" and value]

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert [i for i, num in Counter(checker.ids).items() if num > 1] == []


def test_responses_are_embedded_unharmed_and_harmless(
    run: tuple[Path, list[dict[str, Any]], str],
) -> None:
    _, rows, page = run
    embedded = {key: json.loads(value) for key, value in DATA.findall(page)}
    prompts = by_prompt(rows)
    assert len(embedded) == 1 + len(prompts)
    for i, (prompt, plays) in enumerate(prompts.items()):
        tree = embedded[f"tree-{i}"]
        assert tree["id"] == prompt
        assert [p["response"] for p in tree["plays"]] == [row["response"] for row in plays]
        assert [p["parent"] for p in tree["plays"]] == [row["parent"] for row in plays]
        ranks = {p["rank"]: p["play"] for p in tree["plays"] if p["reward"] is not None}
        assert ranks[1] == best_of(plays)["play"]
    assert not any("<" in value for _, value in DATA.findall(page))


def test_many_prompts_are_thinned_and_long_responses_cut(
    tmp_path: Path, write_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MAX_CHARS", 600 * 400)
    write_run(tmp_path, num_prompts=250, budget=2, failures=0, dpo=False)
    page = write_report(tmp_path, results={}).read_text()
    shown = [json.loads(value) for key, value in DATA.findall(page) if key.startswith("tree-")]
    assert len({tree["id"] for tree in shown}) == trees.MAX_PROMPTS
    assert "Of the 250 prompts, 200 are here, evenly spaced over the run." in text_of(page)
    assert "responses longer than 600 characters are cut in it" in text_of(page)
    cut = [play for tree in shown for play in tree["plays"] if play["cut"]]
    assert cut
    assert all(len(play["response"]) == 600 and play["cut"] == 20_000 - 600 for play in cut)


def unscored(row: dict[str, Any]) -> None:
    row.update(reward=None, response=None, error="boom")


EMPTY: dict[str, tuple[dict[str, Any], str]] = {
    "no refinements": ({"search": "parallel"}, "Nothing was refined in this run"),
    "all failed": ({"change": unscored, "dpo": False}, "No play of this run has a reward."),
    "one agent": ({"agents": ["adder"], "search": "best_of_n"}, "every play is at depth 0"),
    "equal rewards": (
        {"change": lambda row: row.update(reward=0.5)},
        "rewards equal 0.500: the search had no signal",
    ),
    "one play": (
        {"num_prompts": 1, "budget": 1, "agents": ["adder"], "failures": 0},
        "One scored play per prompt",
    ),
    "not a number": (
        {"change": lambda row: row.update(reward=float("nan")), "dpo": False},
        "no reason recorded",
    ),
    "no costs": (
        {"change": lambda row: row.update(flops=None, reward_flops=None)},
        "their FLOPs are not known",
    ),
    "no plays": ({"num_prompts": 0, "dpo": False}, "The run has no plays"),
    "aggregates": ({"search": "moa"}, "best of several drafts"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_where_there_is_nothing_to_draw_there_are_words(
    case: str, tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    options, words = EMPTY[case]
    write_run(tmp_path, **{"num_prompts": 4, "budget": 8, **options})
    page = write_report(tmp_path, results={}).read_text()
    text = text_of(page)
    assert words in text
    assert "No student was evaluated" in text
    assert "No searches were compared" in text
    assert "nan" not in re.findall(r"[a-z]+", DATA.sub("", page).lower())
    assert "NaN" not in page.split("<script>")[0]


def test_a_bare_folder_and_further_columns_are_enough(
    tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    write_run(tmp_path, num_prompts=3, budget=4, failures=0, dpo=False)
    (tmp_path / "run.yaml").unlink()
    for file in (tmp_path / "rollouts").iterdir():
        table = pq.read_table(file).drop_columns(["error", "reward_flops", "metadata"])
        pq.write_table(table.append_column("more", pa.nulls(len(table))), file)
    output = write_report(
        tmp_path, output=tmp_path / "elsewhere.html", results={"student": {}, "searches": []}
    )
    assert "No play failed." in text_of(output.read_text())
    assert not (tmp_path / "report.html").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_mistakes_are_named(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="no rollouts/"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="nowhere: not a folder; name the folder of a run"):
        write_report(tmp_path / "nowhere")
    write_run(tmp_path, num_prompts=3, budget=4)
    before = write_report(tmp_path).read_text()
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json: not a JSON object"):
        write_report(tmp_path)
    (tmp_path / "results.json").unlink()
    first = min((tmp_path / "rollouts").iterdir())
    pq.write_table(pq.read_table(first).drop_columns(["reward"]), first)
    with pytest.raises(ConfigError, match="the column 'reward' is missing"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == before


def test_importing_it_loads_no_model_library() -> None:
    libraries = ("torch", "trl", "transformers", "datasets")
    code = "import sys, toa_trl.report.page; "
    code += f"print([name for name in {libraries} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_agent_without_a_usable_play_is_named_in_card_and_report(tmp_path: Path) -> None:
    class Broken(Agent):
        name = "broken"

        async def generate(self, *_: Any, **__: Any) -> Completion:
            raise AgentError("out of order")

    agents: list[Any] = [{"name": "works", "engine": "scripted"}, Broken()]
    sampler = TOASampler(agents, {"kind": "length"}, "parallel", 4, progress=False)
    sampler.sample(["What?"], output_dir=tmp_path).save(tmp_path)
    page = text_of(write_report(tmp_path).read_text())
    assert "No usable play of broken: the data have nothing of it." in page
    card = (tmp_path / "README.md").read_text()
    assert "**No usable play of broken: the data set has nothing of it.**" in card
