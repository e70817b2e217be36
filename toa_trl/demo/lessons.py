"""Training data of the bundled models: problems with or without drafts, and answers of some skill.

All prompts are rendered by `toa_trl.tasks.base.render` with the templates of this folder, so
that agents are trained on the prompts that a search uses.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from toa_trl.demo import world
from toa_trl.demo.tokenizer import TEMPLATES, make_tokenizer
from toa_trl.demo.world import Problem, Skill
from toa_trl.tasks.base import Templates, render
from toa_trl.types import Action, Completion, Kind, Play, Prompt, as_dicts, as_messages

TOKENIZER = make_tokenizer()
WORDS = Templates.load(str(TEMPLATES))

# token ids of a rendered prompt, and of the response including <eos>
Example = tuple[list[int], list[int]]
Batch = dict[str, Tensor]


def specialist(sign: str) -> Skill:
    """Return the skill of an agent that is good at one operation."""
    return Skill({s: 0.68 if s == sign else 0.04 for s in "+-*"})


SKILLS = {
    "base": Skill(dict.fromkeys("+-*", 1.0)),
    "add": specialist("+"),
    "subtract": specialist("-"),
    "multiply": specialist("*"),
    "generalist": Skill(dict.fromkeys("+-*", 0.25)),
    "student": Skill({"+": 0.8, "-": 0.3, "*": 0.1}),
}


def ask(problem: Problem, drafts: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the messages that an agent gets: the problem without, with one, or several drafts."""
    kind: Kind = "answer" if not drafts else "refine" if len(drafts) == 1 else "aggregate"
    plays = {i: Play(i, Action("any"), Completion(text)) for i, text in enumerate(drafts)}
    action = Action("any", kind, refs=tuple(plays))
    return as_dicts(render(Prompt("x", as_messages(problem.text)), action, plays, WORDS))


def example(rng: random.Random, skill: Skill, num_drafts: int) -> Example:
    """Return a training problem with drafts of all qualities, answered with this skill."""
    problem = world.draw(rng, "train")
    drafts = [world.work(rng, problem, draft_skill(rng)) for _ in range(num_drafts)]
    values = world.work(rng, problem, skill, drafts)
    messages = ask(problem, [world.solution(problem, d) for d in drafts])
    return encode(messages, world.solution(problem, values))


def draft_skill(rng: random.Random) -> Skill:
    """Return a random skill for the author of a draft."""
    return Skill({sign: rng.choice((0.15, 0.5, 0.9, 1.0)) for sign in "+-*"})


def encode(messages: list[dict[str, str]], response: str) -> Example:
    """Return the token ids of a prompt and of a response, which ends in <eos>."""
    prompt = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = TOKENIZER([prompt, response], add_special_tokens=False)["input_ids"]
    return ids[0], [*ids[1], TOKENIZER.eos_token_id]


def tokens(problem: Problem, response: str) -> list[int]:
    """Return the token ids of the whole conversation, as the reward model reads it."""
    asked, answered = encode(ask(problem), response)
    return asked + answered


def collate(examples: Sequence[Example]) -> Batch:
    """Return a right-padded batch with the loss on the responses."""
    batch = pad([prompt + response for prompt, response in examples])
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (prompt, response) in zip(labels, examples, strict=True):
        row[len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    return {**batch, "labels": labels}


def stream(
    rng: random.Random, skill: Skill, batch_size: int, mix: Callable[[int], Sequence[int]]
) -> Iterator[Batch]:
    """Yield batches without end; each has one of the numbers of drafts in `mix(step)`."""
    step = 0
    while True:
        num_drafts = rng.choice(mix(step))
        size = batch_size if num_drafts < 2 else batch_size // 2
        yield collate([example(rng, skill, num_drafts) for _ in range(size)])
        step += 1


def pad(rows: Sequence[list[int]]) -> Batch:
    """Return a batch of right-padded rows of token ids."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([r + [0] * (longest - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows]),
    }
