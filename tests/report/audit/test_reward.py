"""Signs of a hacked reward, against figures that are worked out another way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.helpers import play, rollout
from tests.report.audit.conftest import real
from toa_trl.data.tables import ROLLOUTS
from toa_trl.errors import ConfigError
from toa_trl.report import audit, rollout_tables
from toa_trl.report.audit import read_audit
from toa_trl.report.audit import reward as rewards
from toa_trl.report.audit.best import holds, nearly_same
from toa_trl.report.audit.correlation import Correlating
from toa_trl.report.audit.findings import LENGTH_CORRELATION, describe_second_reward, warnings
from toa_trl.report.audit.text import words_of
from toa_trl.types import Action, Play, Rollout

Save = Callable[..., Path]
LONG = (
    "Take the two largest of the four numbers that were given, add them, and write down what you "
    "get. "
)


def second(it: Play, value: float | None) -> Play:
    return replace(it, second_reward=value)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=9),
        max_size=6,
    ),
    st.sampled_from([1.0, 1e-200, 1e200]),
)
def test_correlations_are_those_of_scipy(
    prompts: list[list[tuple[int, int]]], scale: float
) -> None:
    correlating = Correlating()
    everything = [(x * scale, float(y)) for plays in prompts for x, y in plays]
    expected = []
    for plays in prompts:
        x, y = np.array(plays, dtype=np.float64).T
        correlating.add(x * scale, y)
        if len(plays) >= 3 and len(set(x)) > 1 and len(set(y)) > 1:
            expected.append((stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0]))
    result = correlating.result()
    assert (result.num_plays, result.num_prompts) == (len(everything), len(expected))
    within = np.mean(expected, axis=0) if expected else [None, None]
    assert [result.within_pearson, result.within_spearman] == pytest.approx(list(within), abs=1e-9)
    x, y = np.array(everything).T if everything else (np.zeros(0), np.zeros(0))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert result.pearson == pytest.approx(stats.pearsonr(x / scale, y)[0], abs=1e-9)
        assert result.spearman == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
    else:
        assert (result.pearson, result.spearman) == (None, None)


def test_chance_alone_rarely_passes_for_a_correlation() -> None:
    rng, beyond = np.random.default_rng(0), 0
    for _ in range(400):
        correlating = Correlating()
        for _ in range(8):
            correlating.add(rng.normal(size=6), rng.normal(size=6))
        beyond += correlating.result().beyond_chance != 0
    assert 0.02 < beyond / 400 < 0.09  # of 400 that are 0.05 each


def test_every_play_of_a_run_is_counted(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_tables, "BATCH_ROWS", 7)  # prompts go over the ends of batches
    rng = random.Random(0)
    runs = []
    for number in range(20):
        plays = [
            play(i, rng.choice([None, 0.0, 1.0, rng.random()]), "x" * rng.randrange(50))
            for i in range(9)
        ]
        runs.append(
            rollout(
                *(
                    p if p.reward is None else second(p, rng.choice([None, rng.random()]))
                    for p in plays
                ),
                id=str(number),
            )
        )
    found = read_audit(save(runs)).reward
    scored = [p for run in runs for p in run.scored]
    length = [len(p.completion.text) for p in scored if p.completion]
    assert found.length.num_plays == len(scored)
    assert found.length.pearson == pytest.approx(
        stats.pearsonr([p.reward for p in scored], length)[0]
    )
    assert found.best.num_prompts == sum(bool(run.scored) for run in runs)
    both = [p for p in scored if p.second_reward is not None]
    picks = [
        run.ranked[0].second_reward
        for run in runs
        if run.scored and run.ranked[0].second_reward is not None
    ]
    assert found.second is not None
    assert found.second.correlation.num_plays == len(both)
    assert found.second.all_plays == pytest.approx(np.mean([p.second_reward for p in both]))
    assert found.second.num_prompts == len(picks)
    assert found.second.picks == pytest.approx(np.mean(picks))


def test_the_second_reward_is_asked_about_the_picks(save: Save) -> None:
    def prompt(id: str, *pairs: tuple[float, float | None]) -> Rollout:
        return rollout(*(second(play(i, x), y) for i, (x, y) in enumerate(pairs)), id=id)

    agrees, differs = (
        prompt("a", (1.0, 5.0), (0.0, 1.0)),
        prompt("b", (1.0, 0.0), (0.0, 4.0), (0.5, 2.0)),
    )
    found = read_audit(
        save([agrees, differs, prompt("c", (1.0, None), (0.0, 7.0)), prompt("d", (1.0, None))])
    ).reward.second
    assert found is not None
    assert (found.num_prompts, found.picks, found.random, found.best) == (2, 2.5, 2.5, 4.5)
    assert found.all_plays == pytest.approx((6 + 6 + 7) / 6)
    assert found.agreement == 0.5
    assert found.agreement_by_chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.gain_interval is not None
    assert sum(found.gain_interval) == pytest.approx(0)  # gains of 2 and of -2


def test_best_plays_that_are_wrong_are_counted(save: Save) -> None:
    def refined(id: str, prompt: str, draft: str, text: str, **changes: Any) -> Rollout:
        it = rollout(play(0, 0.0, draft), play(1, 1.0, text, parent=0, **changes), id=id)
        return replace(it, prompt=replace(it.prompt, messages=prompt))  # type: ignore[arg-type]

    copy = LONG * 5
    found = read_audit(
        save(
            [
                refined("good", "What?", copy, "Quite another text, and it is the better one."),
                refined("equal", "What?", "A draft.", " a DRAFT"),
                refined("nearly", "What?", copy, copy.replace("largest", "LARGE", 1)),
                refined(
                    "half",
                    "What?",
                    copy,
                    LONG + "Then divide it by the number of all your fingers and toes. " * 4,
                ),
                refined("cut", "What?", "A draft.", "A better", finish_reason="length"),
                refined("parrot", LONG, "A draft.", f"You said: {LONG}"),
                refined("short parrot", "What is it?", "A draft.", "What is it? It is a cat."),
                rollout(play(0, 1.0, "What?"), id="answer"),
                rollout(play(0, None), id="none"),
            ]
        )
    ).reward.best
    assert (found.num_prompts, found.num_with_draft, found.num_truncated) == (8, 7, 1)
    assert (found.num_repeat_draft, found.num_repeat_prompt) == (2, 2)


def test_of_a_translation_copying_the_source_is_repeating_the_prompt(save: Save) -> None:
    row = real("wmt22/de-en.jsonl")[4]
    it = rollout(play(0, 1.0, row["source"]), source=row["source"], target_language="English")
    found = read_audit(save([it])).reward.best
    assert (found.num_repeat_prompt, found.num_other_language, found.languages) == (
        1,
        1,
        (("en", "de", 1),),
    )


def test_columns_of_a_prompt_are_found_from_any_of_its_plays(save: Save) -> None:
    row = real("wmt22/de-en.jsonl")[4]
    columns = {"source": row["source"], "target_language": "English"}
    plays = (play(0, 0.0), play(1, 1.0, row["source"]))
    run = save([rollout(play(0, 0.0), id="a"), rollout(*plays, id="b", **columns)])
    assert read_audit(run).reward.best.num_repeat_prompt == 1
    file = next((run / "rollouts").glob("*.parquet"))
    rows = pq.read_table(file).to_pylist()
    assert [bool(json.loads(row["metadata"] or "{}")) for row in rows] == [False, True, False]
    rows[2]["metadata"] = rows[1]["metadata"]  # as earlier versions wrote it
    pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUTS), file)
    assert audit.audit_reward(run).best.num_repeat_prompt == 1


def test_of_a_problem_the_words_around_it_are_not_its_own(save: Save) -> None:
    it = rollout(play(0, 1.0, "What is it"), problem="What is it?")
    text = "What is it? Put the answer in a box."
    it = replace(it, prompt=replace(it.prompt, messages=text))  # type: ignore[arg-type]
    assert read_audit(save([it])).reward.best.num_repeat_prompt == 1


@pytest.mark.parametrize(
    ("draft", "text", "same"),
    [
        ("The answer is -5.", "The answer is 5.", 0),
        ("x + y = 3.5", "x - y = 35", 0),
        ("2*3", "23", 0),
        ("की", "का", 0),  # Hindi: of, of
        ("Well, 3.5 it is!", "well 3.5 it is", 1),
    ],
)
def test_a_sign_makes_another_response(draft: str, text: str, same: int, save: Save) -> None:
    found = read_audit(save([rollout(play(0, 0.0, draft), play(1, 1.0, text, parent=0), id="p")]))
    assert found.reward.best.num_repeat_draft == same
    said = [text for text in warnings(found) if "drafts" in text]
    assert (
        said
        == ["100 % of the best plays that saw drafts repeat one of them, exactly or nearly."] * same
    )


def test_texts_that_are_nearly_the_same() -> None:
    text = words_of(LONG * 3)
    assert nearly_same(text, text)
    assert nearly_same([], [])
    assert not nearly_same(text, [])
    assert not nearly_same(["a"], ["b"])
    assert not nearly_same(
        text, words_of(LONG + "Another sentence that has nothing of the first, at all, in it. " * 5)
    )
    assert holds(text, words_of(LONG))
    assert not holds(words_of(LONG)[:13], words_of(LONG))
    assert not holds([], [])


def test_a_run_without_anything_to_say(save: Save) -> None:
    folder = save([rollout(play(0, None), id="a"), rollout(id="b")])
    found = read_audit(folder)
    assert (found.reward.length.pearson, found.reward.second, found.reward.pairs) == (
        None,
        None,
        None,
    )
    assert list(warnings(found)) == []
    file = next((folder / "rollouts").glob("*.parquet"))
    pq.write_table(pq.read_table(file).select(["prompt_id", "play", "reward"]), file)
    (folder / "audit.json").unlink()
    assert read_audit(folder) == found  # an old run's rollouts lack columns


def test_numbers_that_are_none_are_no_rewards(save: Save) -> None:
    folder = save([rollout(play(0, 1.0, "a"), play(1, 0.5, "bb"), id="a")])
    file = next((folder / "rollouts").glob("*.parquet"))
    table = pq.read_table(file)
    broken = pa.array([float("nan"), 0.5]), pa.array([float("inf"), float("nan")])
    for name, values in zip(("reward", "second_reward"), broken, strict=True):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, file)
    found = rewards.audit_reward(folder)
    assert (found.length.num_plays, found.best.num_prompts, found.second) == (1, 1, None)


def test_the_warnings(save: Save) -> None:
    rng = random.Random(0)
    runs = []
    for number in range(30):
        plays = [
            second(play(i, i + rng.random(), "x" * (i + 1), finish_reason="length"), rng.random())
            for i in range(5)
        ]
        runs.append(rollout(*plays, id=str(number)))
    found = read_audit(save(runs))
    said = list(warnings(found))
    assert found.reward.length.within_spearman == 1.0 > LENGTH_CORRELATION
    assert [text.split(" ")[0] for text in said] == ["Within", "By", "100"]
    assert "with longer responses (Spearman 1)" in said[0]
    assert "not measurably better than random plays" in said[1]
    assert "cut short" in said[2]


@pytest.mark.parametrize(("num_prompts", "gain"), [(19, 1.0), (30, 0.0)])
def test_nothing_is_said_of_a_gain_that_is_not_there_or_not_known(
    num_prompts: int, gain: float, save: Save
) -> None:
    runs = [
        rollout(*(second(play(i, 0.1 + gain * i, "x"), 1.0) for i in range(3)), id=str(number))
        for number in range(num_prompts)
    ]
    found = read_audit(save(runs))
    assert found.reward.second is not None
    assert found.reward.second.gain_interval == (0.0, 0.0)
    assert list(warnings(found)) == []


@pytest.mark.parametrize(
    ("seconds", "said", "also"),
    [
        (
            [None, None, None],
            "No second reward was recorded",
            "if the run has one, it failed on every play.",
        ),
        (
            [None, None, 1.0],
            "The second reward failed on every selected response",
            "4 of 6 scored plays have no second reward",
        ),
        (
            [1.0, None, 2.0],
            "gives the selected responses of 2 prompts a mean of 1,",
            "2 of 6 scored plays have no second reward",
        ),
    ],
)
def test_a_second_reward_that_failed_is_no_second_reward(
    seconds: list[float | None], said: str, also: str, save: Save
) -> None:
    runs = [
        rollout(*(second(play(i, -float(i)), x) for i, x in enumerate(seconds)), id=id)
        for id in "ab"
    ]
    text = describe_second_reward(read_audit(save(runs)).reward)
    assert said in text
    assert also in text


def test_prompts_that_the_second_reward_failed_on_are_counted(save: Save) -> None:
    runs = [rollout(second(play(0, 1.0), None if id == "a" else 1.0), id=id) for id in "abc"]
    assert "gives the selected responses of 2 of 3 prompts a mean of 1," in describe_second_reward(
        read_audit(save(runs)).reward
    )


def test_good_runs_have_no_warning(save: Save) -> None:
    rng = random.Random(0)
    runs = []
    for number in range(30):
        plays = [(i, rng.random()) for i in range(9)]
        runs.append(
            rollout(
                *(second(play(i, x, "x" * rng.randrange(99)), x + 0.1) for i, x in plays),
                id=str(number),
            )
        )
    assert list(warnings(read_audit(save(runs)))) == []


def test_it_is_written_and_read(save: Save, tmp_path: Path) -> None:
    folder = save(
        [
            rollout(*(second(play(i, i / 3, "x" * i), float(i)) for i in range(4)), id=id)
            for id in "abc"
        ]
    )
    measured = audit.measure(folder)
    assert read_audit(folder) == measured
    value = json.loads((folder / "audit.json").read_text())
    assert value.keys() == {"toa_trl", "reward", "contamination"}
    for wrong in ("{", "[]", "{}", '{"contamination": null, "reward": {}}'):
        (folder / "audit.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"audit\.json: not an audit"):
            read_audit(folder)
    with pytest.raises(ConfigError, match="no rollouts/"):
        read_audit(tmp_path)


def test_a_fresh_arm_saw_no_draft(save: Save) -> None:
    fresh = replace(play(1, 1.0, "text 0"), action=Action("a", "answer", (), 0, 1))
    assert read_audit(save([rollout(play(0, 0.5), fresh)])).reward.best.num_with_draft == 0


def test_rows_of_a_prompt_that_are_apart_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    rows = [{"prompt_id": prompt, "play": 0, "reward": 0.0} for prompt in ("a", "b", "a")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rollouts/plays.parquet")
    with pytest.raises(ConfigError, match="'a' are not consecutive"):
        rewards.audit_reward(tmp_path)
