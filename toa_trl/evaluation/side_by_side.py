"""side_by_side.jsonl: responses of all models to each prompt, with their scores, to be read."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from toa_trl.evaluation.accuracy import Scores
from toa_trl.evaluation.ledger import KeptReward
from toa_trl.evaluation.outputs import Outputs
from toa_trl.tasks import Task
from toa_trl.types import Prompt
from toa_trl.utils.files import without_nan, write_json_lines
from toa_trl.utils.targets import check_ours, is_json_lines, marked

FILE = "side_by_side.jsonl"


def write_side_by_side(
    folder: Path,
    prompts: Sequence[Prompt],
    task: Task,
    outputs: Mapping[str, Sequence[Outputs]],
    scores: Mapping[str, Scores],
    baseline: str = "",
    judge: KeptReward | None = None,
) -> None:
    """Write a line with {models, baseline}, and then one per prompt: {id, messages, responses}.

    A response is {model, text, finish_reason, reward, verifier, judge}; `judge` is the share that a
    judge gave it against the baseline, in [0, 1]. What was not measured is missing.

    Args:
        folder: of the responses.
        prompts: what was asked.
        task: decides what the judge sees of a prompt.
        outputs: of each model, in the order of the prompts; the greedy ones are written.
        scores: of each model's outputs.
        baseline: name of the model that the judge compared the others with.
        judge: its known verdicts are written; it is asked nothing.

    Raises:
        ConfigError: the file is of somebody else.
    """
    check_ours({folder / FILE: partial(is_json_lines, keys={"models"})})
    head = {"models": list(outputs), "baseline": baseline, "num_prompts": len(prompts)}
    lines = [marked(head)]
    for number, prompt in enumerate(prompts):
        responses = []
        for name, of_model in outputs.items():
            output = of_model[number].greedy
            row: dict[str, Any] = {"model": name, "text": output.text}
            row["finish_reason"] = output.finish_reason
            for key, values in (
                ("reward", scores[name].reward),
                ("verifier", scores[name].verifier),
            ):
                if values:
                    row[key] = values[number]
            if judge is not None and name != baseline:
                against = outputs[baseline][number].greedy.text
                verdict = judge.known(task.judged(prompt), output.text, against)
                row["judge"] = None if verdict is None else verdict.value
            responses.append(row)
        messages = [[message.role, message.text] for message in prompt.messages]
        lines.append(without_nan({"id": prompt.id, "messages": messages, "responses": responses}))
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / FILE, lines)
