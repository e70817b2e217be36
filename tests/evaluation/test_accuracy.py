"""What a model answered, and how good that is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import wait
from toa_trl.agents import Agent
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import AgentError, RewardError, Unavailable
from toa_trl.evaluation.accuracy import Measurement, Scores, corpus_scores, measure_model
from toa_trl.evaluation.intervals import wilson
from toa_trl.evaluation.outputs import Output, Outputs, respond
from toa_trl.evaluation.votes import majority
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.tasks import make_task
from toa_trl.types import Completion, Message, Prompt, Sampling

PROMPTS = [Prompt(f"p{i}", f"{i}?", {"answer": str(i % 3)}) for i in range(10)]  # type: ignore[arg-type]
TASK = make_task("alignment")


def exact(completions: Any, answer: Any, **columns: Any) -> list[float]:
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer, strict=True)]


VERIFIER = make_reward({"kind": "function", "function": exact})


class Knows(Agent):
    """Greedily answers 1; sampled, the seed decides."""

    name = "knows"

    def __init__(self) -> None:
        self.asked: list[tuple[str, Sampling, int]] = []

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        self.asked.append((messages[-1].content, sampling, seed))
        if sampling.temperature == 0:
            return Completion("1", "length" if messages[-1].content == "0?" else "stop")
        return Completion(str(seed % 3))


class Constant(RewardModel):
    """The number of the prompt, and an error for those in `fails`."""

    def __init__(self, *fails: str) -> None:
        self._fails = fails

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        if prompt.id in self._fails:
            raise RewardError("no score")
        return [float(prompt.id[1:]) for _ in responses]


def measured(
    agent: Any, sampling: Sampling, num_samples: int, seed: int, **judges: Any
) -> tuple[Measurement, Scores]:
    async def both() -> tuple[Measurement, Scores]:
        outputs = await respond(
            agent, PROMPTS, TASK, sampling, num_samples=num_samples, seed=seed, progress=False
        )
        return await measure_model(PROMPTS, outputs, TASK, **judges)

    return wait(both())


def test_accuracy_greedy_and_sampled() -> None:
    agent, way = Knows(), Sampling(0.9, 0.8, 50, ("END",))
    result, scores = measured(agent, way, 3, 4, verifier=VERIFIER, reward_model=Constant())
    assert result.accuracy == 0.3  # 1, 4 and 7 of 0 to 9
    assert result.interval == wilson(3, 10)
    assert result.mean_reward == 4.5
    assert scores.reward == [float(i) for i in range(10)]
    assert scores.verifier == [float(i % 3 == 1) for i in range(10)]
    assert (result.num_problems, result.num_truncated, result.mean_length) == (10, 1, 1.0)
    assert result.sampled_accuracy == pytest.approx(
        1 / 3
    )  # seeds 4, 5 and 6: one of three is right, for every problem
    assert result.sampled_interval == pytest.approx((1 / 3, 1 / 3))
    assert (result.k, result.pass_at_k, result.maj_at_k) == (3, 1.0, None)
    greedy = [each for each in agent.asked if each[1].temperature == 0]
    assert len(greedy) == 10
    assert all(sampling == Sampling(0.0, 0.8, 50, ("END",)) for _, sampling, _ in greedy)
    assert sorted(
        seed for text, sampling, seed in agent.asked if text == "5?" and sampling == way
    ) == [4, 5, 6]


def test_what_was_not_measured_is_not_told() -> None:
    result, _ = measured(Knows(), Sampling(), 0, 0, verifier=VERIFIER)
    assert set(result.as_json()) == {
        "accuracy",
        "interval",
        "mean_length",
        "num_problems",
        "num_truncated",
        "num_unjudged",
    }


def test_a_missing_answer_is_an_error_and_no_wrong_answer(tmp_path: Path) -> None:
    class Refuses(Knows):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if messages[-1].content in ("3?", "4?"):
                raise AgentError("too long")
            await asyncio.sleep(0.01)
            return await super().generate(messages, sampling=sampling, seed=seed)

    path = tmp_path / "outputs.jsonl"
    with pytest.raises(
        AgentError, match="2 of 10 responses are missing; the first: prompt 'p3': too long"
    ):
        wait(respond(Refuses(), PROMPTS, TASK, Sampling(), path=path, progress=False))
    assert len(path.read_text().splitlines()) == 8  # what the others answered is kept
    assert len(wait(respond(Knows(), PROMPTS, TASK, Sampling(), path=path, progress=False))) == 10


def test_an_answer_that_ended_in_its_reasoning_is_empty() -> None:
    class Thinks(Knows):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            raise AgentError("nothing but reasoning", Completion("", "length", 5, 5, None, "well"))

    result, _ = measured(Thinks(), Sampling(), 0, 0, verifier=VERIFIER)
    assert (result.accuracy, result.num_truncated) == (0.0, 10)


def test_servers_that_are_gone_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toa_trl.agents.completions.LOOK_S", 0.01)

    class Back(Knows):
        num_gone = 30

        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            self.num_gone -= 1
            if self.num_gone >= 0:
                raise Unavailable("no server")
            return await super().generate(messages, sampling=sampling, seed=seed)

    assert len(wait(respond(Back(), PROMPTS, TASK, Sampling(), progress=False))) == 10
    with pytest.raises(Unavailable):
        wait(respond(Back(), PROMPTS, TASK, Sampling(), patience_s=0.0, progress=False))


def test_half_a_surrogate_pair_is_written_as_what_a_file_can_hold(tmp_path: Path) -> None:
    class Cut(Knows):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            return Completion("a \ud83d")

    found = wait(
        respond(Cut(), PROMPTS[:1], TASK, Sampling(), path=tmp_path / "o.jsonl", progress=False)
    )
    assert found == [Outputs(Output("a ?"))]


@pytest.mark.parametrize(
    ("text", "num_words"),
    [("", 0), ("two words", 2), ("天空是蓝色的。", 7), ("vLLM 很快 now", 4), ("그는 빠르다", 2)],
)
def test_where_no_spaces_are_written_a_character_is_a_word(text: str, num_words: int) -> None:
    assert Output(text).num_words == num_words


def test_samples_that_nobody_can_judge_are_left_out_and_counted() -> None:
    class Picky(RewardModel):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            if responses == ["2"]:
                raise RewardError("never heard of it")
            return [float(response == prompt.metadata["answer"]) for response in responses]

    result, _ = measured(Knows(), Sampling(), 3, 4, verifier=Picky())  # samples are 1, 2 and 0
    assert result.num_unjudged_samples == 10
    assert result.sampled_accuracy == pytest.approx(
        7 / 20
    )  # of 1 and 0; 2 is the answer to three problems
    assert result.pass_at_k == 0.7


def test_a_score_that_is_no_number_is_no_score() -> None:
    class Broken(RewardModel):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            return [float("nan")] if prompt.id == "p0" else [1.0]

    result, scores = measured(Knows(), Sampling(), 0, 0, reward_model=Broken())
    assert (result.mean_reward, result.num_unjudged, scores.reward[0]) == (1.0, 1, None)


def test_a_graded_verifier_gives_no_accuracy_even_where_all_is_wrong() -> None:
    prompts = [Prompt("p", "x", {"reference": "abc def"})]  # type: ignore[arg-type]
    outputs = [Outputs(Output("zzz"), (Output("zzz"),))]
    result, _ = wait(measure_model(prompts, outputs, TASK, verifier=make_reward({"kind": "chrf"})))
    assert (result.accuracy, result.mean_verifier_score, result.sampled_accuracy) == (
        None,
        0.0,
        None,
    )


@pytest.mark.parametrize("language", ["Chinese", "zh", "Japanese", "zho_Hans", "chinois"])
def test_bleu_knows_languages_without_spaces(language: str) -> None:
    text, reference = "天空是蓝色的海是绿色的", "天空是蓝色的海也是绿色的"
    prompts = [Prompt("p", "x", {"reference": reference, "target_language": language})]  # type: ignore[arg-type]
    assert corpus_scores(prompts, [text])["bleu"] > 40
    (score,) = wait(make_reward({"kind": "bleu"}).score(prompts[0], [text]))
    assert score > 40


def test_a_corpus_may_have_several_references() -> None:
    rows: list[Any] = [["The sky is blue.", "Blue is the sky."], "The sea is green."]
    prompts = [Prompt(str(i), "x", {"reference": row}) for i, row in enumerate(rows)]  # type: ignore[arg-type]
    assert corpus_scores(prompts, ["Blue is the sky.", "The sea is green."])[
        "chrf"
    ] == pytest.approx(100)
    assert corpus_scores([*prompts, Prompt("2", "x")], ["a", "b", "c"]) == {}  # type: ignore[arg-type]


def test_a_response_without_a_score_is_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result, scores = measured(Knows(), Sampling(), 0, 0, reward_model=Constant("p0", "p9"))
    assert (result.mean_reward, result.num_unjudged) == (4.5, 2)
    assert scores.reward[0] is scores.reward[9] is None
    assert "failed on 2 of 10 responses, most often with: no score" in caplog.text
    with pytest.raises(RewardError, match="failed on 10 of 10"):
        measured(
            Knows(), Sampling(), 0, 0, reward_model=Constant(*(prompt.id for prompt in PROMPTS))
        )


def test_translations_are_measured_as_a_corpus() -> None:
    rows = [
        ("Ja.", "Yes.", '"Yes."'),
        ("Nein, danke.", "No, thank you.", "Here is the translation:\nNo thanks."),
    ]
    languages = {"source_language": "German", "target_language": "English"}
    prompts = [
        Prompt(source, source, {"source": source, "reference": reference, **languages})  # type: ignore[arg-type]
        for source, reference, _ in rows
    ]
    task, answers = make_task("translation"), {source: answer for source, _, answer in rows}

    class Translator(Agent):
        name = "translator"

        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            return Completion(answers[messages[-1].content])

    async def both() -> tuple[Measurement, Scores]:
        outputs = await respond(Translator(), prompts, task, Sampling(), progress=False)
        return await measure_model(prompts, outputs, task, verifier=make_reward({"kind": "chrf"}))

    result, scores = wait(both())
    texts, references = ["Yes.", "No thanks."], [[reference for _, reference, _ in rows]]
    assert result.chrf == sacrebleu.corpus_chrf(texts, references).score
    assert result.bleu == sacrebleu.corpus_bleu(texts, references).score
    assert scores.verifier[0] == 100.0
    assert result.accuracy is None
    assert result.mean_verifier_score == pytest.approx(
        sum(s for s in scores.verifier if s is not None) / 2
    )


def test_what_was_answered_is_never_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"

    def outputs(agent: Any, num_samples: int = 1) -> list[Outputs]:
        return wait(
            respond(
                agent,
                PROMPTS,
                TASK,
                Sampling(),
                num_samples=num_samples,
                seed=1,
                path=path,
                progress=False,
            )
        )

    first = Knows()
    complete = outputs(first)
    assert complete[0] == Outputs(Output("1", "length"), (Output("1"),))
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == len(first.asked) == 20
    path.write_text("".join(lines[:7]) + lines[7][:25])  # killed in the middle of a line
    second = Knows()
    assert outputs(second) == complete
    assert len(second.asked) == 13
    assert len(path.read_text().splitlines()) == 20
    third = Knows()
    assert [each.samples[:1] for each in outputs(third, 3)] == [each.samples for each in complete]
    assert len(third.asked) == 20  # two more samples of each


async def same(a: str, b: str) -> bool:
    await asyncio.sleep(0)
    return a.replace(".0", "") == b.replace(".0", "")


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        (["1", "2", "2.0"], 1),
        (["1", "2"], 0),  # as many: the first
        ([None, "3", None], 1),
        ([None, None], None),
        ([], None),
        (["5", "6.0", "5.0", "6", "6.0"], 1),
    ],
)
def test_the_majority_is_of_answers_that_say_the_same(
    answers: list[str | None], place: int | None
) -> None:
    texts = [
        "I do not know" if answer is None else rf"So it is \boxed{{{answer}}}."
        for answer in answers
    ]
    assert wait(majority(texts, same)) == place


@given(st.lists(st.sampled_from(["1", "1.0", "2", "3"]), min_size=1))
def test_the_majority_has_at_least_as_many_votes_as_any(answers: list[str]) -> None:
    place = wait(majority([rf"\boxed{{{answer}}}" for answer in answers], same))
    assert place is not None
    votes = [answer.replace(".0", "") for answer in answers]
    assert votes.count(votes[place]) == max(map(votes.count, votes))
    assert votes.index(votes[place]) == place


def test_math_is_measured_by_the_final_answer() -> None:
    rows = [
        {"prompt": "1/2 of 8?", "answer": "4"},
        {"prompt": "Half of 1?", "answer": r"\frac{1}{2}"},
    ]
    task = make_task("math")
    prompts = as_prompts([(str(i), row) for i, row in enumerate(rows)], read=task.read)
    verifier: Any = make_reward({"kind": "math"})
    said = [
        Outputs(Output(r"\boxed{4}"), tuple(Output(rf"\boxed{{{x}}}") for x in ("3", "4", "4.0"))),
        Outputs(Output("no idea"), tuple(Output(rf"\boxed{{{x}}}") for x in ("2", "2", "0.5"))),
    ]

    async def both() -> Measurement:
        try:
            return (await measure_model(prompts, said, task, verifier=verifier))[0]
        finally:
            await verifier.aclose()

    result = wait(both())
    assert (result.accuracy, result.maj_at_k, result.pass_at_k, result.k) == (0.5, 0.5, 1.0, 3)
    assert result.sampled_accuracy == 0.5
    assert json.loads(json.dumps(result.as_json()))["maj_at_k_interval"] == [0.0, 1.0]
