"""Training of the bundled models: a base model, and its forks: agents, student, hackable reward."""

import asyncio
import copy
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from toa_trl.demo import world
from toa_trl.demo.lessons import SKILLS, TOKENIZER, Batch, ask, draft_skill, pad, stream, tokens
from toa_trl.demo.world import Problem, Skill
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.types import Prompt, as_messages
from toa_trl.utils.escape import say
from toa_trl.utils.files import write_json
from toa_trl.utils.targets import check_folder, check_ours, is_json

AGENTS = ("add", "subtract", "multiply", "generalist")
WEIGHTS = Path(__file__).parent / "weights"
MAX_TOKENS = 48  # the longest worked solution has 42
REWARDS: dict[str, dict[str, Any]] = {  # "model" is a folder beside the others
    "reward": {"kind": "likelihood", "model": "base", "aggregate": "sum", "floor": -3.0},
    "reward_hackable": {"kind": "classifier", "model": "reward_hackable"},
}


def train(output: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    """Train every model into a folder of `output`, and write their scores to scores.json.

    Raises:
        ConfigError: the folder has files, and these models were not trained into it before.
    """
    start = time.process_time()
    trained = is_json(output / "scores.json", old={"base", "student", "reward_hackable"})
    check_folder(output, "--output")
    check_ours(dict.fromkeys(output.glob("*"), lambda path: trained))
    base = new_model(seed)
    rng = random.Random(seed)
    lessons = stream(rng, SKILLS["base"], 32, lambda s: (0,) if s < 350 else (0, 1, 1, 4, 4))
    fit(base, lessons, 650, muon(base, 1.0), "base")
    # forks start from the base model as it is saved
    models: dict[str, Any] = {"base": save(base, output / "base")}
    for name in AGENTS:
        models[name] = fit_agent(copy.deepcopy(base), name, SKILLS[name])
    models["student"] = copy.deepcopy(base)
    lessons = stream(random.Random("student"), SKILLS["student"], 32, lambda step: (0,))
    fit(models["student"], lessons, 100, muon(models["student"], 0.4), "student")
    for name, model in models.items():
        save(model, output / name)
    agents = {name: models[name] for name in AGENTS}
    torch.manual_seed(seed)
    rng = random.Random("reward")
    hackable = classifier(base)
    pool = own_samples(agents, rng, [world.draw(rng, "train") for _ in range(250)])
    fit(hackable, judged(rng, pool, 48), 200, muon(hackable, 0.5), "reward_hackable")
    save(hackable, output / "reward_hackable")
    say(f"trained in {time.process_time() - start:.0f} CPU seconds")
    scores = {name: measure(model) for name, model in models.items()}
    written = own_samples(agents, rng, validation()[:100])
    for name, entry in REWARDS.items():
        reward = make_reward({**entry, "model": str(output / entry["model"])})
        scores[name] = {"pairwise": pairwise(reward, written)}
    write_json(output / "scores.json", scores, indent=1)
    return scores


def fit_agent(base: Any, name: str, skill: Skill) -> Any:
    """Train a base model into an agent of this skill, and return it."""
    lessons = stream(random.Random(name), skill, 32, lambda step: (0, 0, 1, 1, 1, 4))
    fit(base, lessons, 220, muon(base, 0.4), name)
    return base


def muon(model: Any, scale: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and AdamW for the rest.

    AdamW alone needs about four times the steps to learn arithmetic.

    Args:
        model: the model to train.
        scale: factor of both learning rates: 1 for the base model, less for a fork.
    """
    matrices: list[Any] = []
    others: list[Any] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and min(parameter.shape) > 1 and "embed" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=0.02 * scale, weight_decay=0.01),
        torch.optim.AdamW(others, lr=0.003 * scale, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def fit(
    model: Any,
    batches: Iterator[Batch],
    num_steps: int,
    optimizers: Sequence[torch.optim.Optimizer],
    label: str,
) -> None:
    """Train with a short warm-up, then a cosine to a twentieth of the learning rate."""
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, num_steps))
        for o in optimizers
    ]
    start, running = time.perf_counter(), 0.0
    model.train()
    for step in range(1, num_steps + 1):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        running = 0.95 * running + 0.05 * loss.item() if step > 1 else loss.item()
        if step % 50 == 0:
            passed = time.perf_counter() - start
            progress = f"step {step}/{num_steps}, loss {running:.3f}, {passed:.0f} s"
            say(f"  {label}: {progress}")
    model.eval()


def _rate(step: int, num_steps: int) -> float:
    return min(1.0, (step + 1) / 20) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / num_steps)))


def new_model(seed: int) -> LlamaForCausalLM:
    """Return the untrained base model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=TOKENIZER.pad_token_id,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    return LlamaForCausalLM(config)


def classifier(base: Any) -> Any:
    """Return the untrained reward model that a search can hack: the base model with one label.

    It learns too little arithmetic to tell a wrong step from a right one, and the search finds the
    texts that it misjudges.
    """
    config = LlamaConfig(**{**base.config.to_dict(), "num_labels": 1})
    # binary cross-entropy, also for values between 0 and 1
    config.problem_type = "multi_label_classification"
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    return model


def value(problem: Problem, response: str) -> float:
    """Return the label in [0, 1]: 1 if correct, else lower the earlier the first mistake is."""
    if world.verify(response, problem.answer):
        return 1.0
    return 0.6 * world.num_right(problem, response) / len(problem.steps)


def judged(
    rng: random.Random, pool: Sequence[tuple[Problem, str]], batch_size: int
) -> Iterator[Batch]:
    """Yield labelled batches for the classifier: half from the pool, half of random skills."""
    while True:
        pairs = []
        for _ in range(batch_size):
            if rng.random() < 0.5:
                pairs.append(rng.choice(pool))
            else:
                problem = world.draw(rng, "train")
                quantities = world.work(rng, problem, draft_skill(rng))
                pairs.append((problem, world.solution(problem, quantities)))
        labels = torch.tensor([[value(problem, response)] for problem, response in pairs])
        yield {**pad([tokens(*pair) for pair in pairs]), "labels": labels}


def own_samples(
    agents: Mapping[str, Any], rng: random.Random, problems: Sequence[Problem]
) -> list[tuple[Problem, str]]:
    """Sample from the agents: answers, two rounds of refinements of any draft, aggregations."""
    written: list[list[str]] = [[] for _ in problems]
    for num_drafts in (0, 1, 1, 4):
        rows = range(0, len(problems), 1 if num_drafts < 2 else 4)
        asked = []
        for _ in agents:
            asked.append([ask(problems[i], rng.sample(written[i], num_drafts)) for i in rows])
        for conversations, model in zip(asked, agents.values(), strict=True):
            for i, response in zip(rows, sample(model, conversations), strict=True):
                written[i].append(response)
    samples: list[tuple[Problem, str]] = []
    for problem, responses in zip(problems, written, strict=True):
        samples += product([problem], responses)
    return samples


@torch.inference_mode()
def sample(
    model: Any,
    asked: Sequence[list[dict[str, str]]],
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[str]:
    """Return one response per conversation; temperature 0 is greedy."""
    texts = [
        TOKENIZER.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in asked
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    responses = [""] * len(texts)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": MAX_TOKENS}
    if temperature:
        options |= {"do_sample": True, "temperature": temperature, "top_k": 0}
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        prompts = [texts[i] for i in rows]
        batch = TOKENIZER(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        asked_ids, mask = batch["input_ids"], batch["attention_mask"]
        ids = model.generate(input_ids=asked_ids, attention_mask=mask, **options)
        ids = ids[:, asked_ids.shape[1] :]
        decoded = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
        for i, text in zip(rows, decoded, strict=True):
            responses[i] = text
    return responses


def save(model: Any, folder: Path) -> Any:
    """Save a complete model folder in half precision, and return the model as it will load."""
    model.half().save_pretrained(folder)
    # half precision on disk, but computed in float32
    model.float().config.dtype = torch.float32
    model.config.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


def measure(model: Any) -> dict[str, float]:
    """Return accuracies on the validation problems, and shares of right steps by operation."""
    problems = validation()
    asked = [ask(p) for p in problems]
    torch.manual_seed(0)
    sampled = sample(model, asked)
    scores = {}
    for kind, responses in (("greedy", sample(model, asked, temperature=0)), ("sampled", sampled)):
        pairs = zip(responses, problems, strict=True)
        scores[kind] = _mean(world.verify(response, p.answer) for response, p in pairs)
    steps = list(chain(*map(world.steps_of, sampled)))
    for sign in "+-*":
        own = [step for step in steps if step[1] == sign]
        scores[f"steps {sign}"] = _mean(world.apply(sign, b, n) == v for b, _, n, v in own)
    return scores


def pairwise(reward: RewardModel, written: Sequence[tuple[Problem, str]]) -> float:
    """Return how often a right text has a higher reward than a wrong one; a tie counts half."""

    async def score_all() -> list[list[float]]:
        scored = (
            reward.score(Prompt("any", as_messages(problem.text)), [text])
            for problem, text in written
        )
        return list(await asyncio.gather(*scored))

    by_problem: dict[str, tuple[list[float], list[float]]] = {}
    for (problem, text), (reward_of,) in zip(written, asyncio.run(score_all()), strict=True):
        wrong_right = by_problem.setdefault(problem.text, ([], []))
        wrong_right[world.verify(text, problem.answer)].append(reward_of)
    pairs = list(chain(*(product(wrong, right) for wrong, right in by_problem.values())))
    return _mean((0.5 * (w == r)) + (w < r) for w, r in pairs)


def validation() -> list[Problem]:
    """Return the validation problems."""
    return [world.parse(row["prompt"]) for row in world.make_split("validation")]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(sum(numbers) / max(1, len(numbers)), 4)
