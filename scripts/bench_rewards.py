"""The rewards of this process.

Texts per second, batched against one by one, and how far their scores lie apart.

    python scripts/bench_rewards.py [--only classifier,process] [--device cuda]

OMP_NUM_THREADS is the number of free cores.

Batched: every text is asked for at once, each with its own prompt, as a run with many prompts in
flight does. One by one: the same reward, the same texts, each asked for when the one before is
scored. Both in this process, on the same threads, after a few texts to warm up, in turns; the best
of three rounds. The last column is the largest difference between the two scores of a text, in
float32.

Texts: chat is AlpacaEval's prompts with the outputs of five systems (for chrf and bleu, that of the
first is the reference), math is GSM8K's problems with their solutions; both from ../shared/data
where it is, else they are the problems of the bundled world, as short always is. On a CPU a text of
hundreds of tokens keeps a thread busy by itself: batches help the short ones.

The models are random and small (64 wide, 2 layers), with the architecture and the interface of the
one that is named. They read tokens that are learned from the texts; Math-Shepherd's reads letters,
some four times as many.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from toa_trl.rewards import make_reward
from toa_trl.types import Prompt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

Text = tuple[Prompt, str]
ROUNDS = 3

# what is measured, its entry, its small model (see tests/rewards/tiny.py), and its texts
ROWS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("classifier (Llama, one logit)", {"kind": "classifier"}, "classifier", "chat"),
    ("classifier (Llama, one logit)", {"kind": "classifier"}, "classifier", "short"),
    ("classifier (ArmoRM)", {"kind": "classifier", "trust_remote_code": True}, "armo", "chat"),
    (
        "classifier (InternLM2-reward)",
        {"kind": "classifier", "trust_remote_code": True},
        "internlm2",
        "chat",
    ),
    (
        "classifier (Qwen2.5-Math-RM)",
        {"kind": "classifier", "trust_remote_code": True},
        "qwen",
        "math",
    ),
    (
        "process (Qwen2.5-Math-PRM)",
        {"kind": "process", "trust_remote_code": True},
        "qwen_prm",
        "math",
    ),
    ("process (Math-Shepherd)", {"kind": "process"}, "shepherd", "math"),
    ("likelihood", {"kind": "likelihood"}, "causal", "chat"),
    ("likelihood", {"kind": "likelihood"}, "causal", "short"),
    ("math", {"kind": "math"}, None, "math"),
    ("chrf", {"kind": "chrf"}, None, "chat"),
    ("bleu", {"kind": "bleu"}, None, "chat"),
    ("length", {"kind": "length"}, None, "chat"),
]


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def chat(num_texts: int) -> Iterator[Text]:
    """AlpacaEval's prompts, answered by five systems."""
    for row in rows_of(ROOT / "../shared/data/alpaca_eval/outputs.jsonl"):
        outputs = [output for output in row["outputs"].values() if output]
        prompt = Prompt(row["id"], row["prompt"], {"reference": outputs[0]})
        for output in outputs:
            if num_texts > 0:
                yield prompt, output
            num_texts -= 1


def mathematics(num_texts: int) -> Iterator[Text]:
    """GSM8K's problems and solutions."""
    for row, _ in zip(
        rows_of(ROOT / "../shared/data/math/gsm8k_test.jsonl"), range(num_texts), strict=False
    ):
        metadata = {"answer": row["answer"], "reference": row["solution"]}
        yield Prompt(row["id"], row["prompt"], metadata), f"{row['solution']}\n#### {row['answer']}"


def bundled(num_texts: int) -> Iterator[Text]:
    """The problems of the bundled world."""
    for row, _ in zip(
        rows_of(ROOT / "toa_trl/demo/data/synthesis.jsonl"), range(num_texts), strict=False
    ):
        answer = f"{row['prompt']}\nSo the answer is {row['answer']}.\n#### {row['answer']}"
        yield (
            Prompt(row["id"], row["prompt"], {"answer": row["answer"], "reference": answer}),
            answer,
        )


async def measure(reward: Any, texts: list[Text]) -> tuple[float, float, float]:
    """Texts per second batched and one by one, and the largest difference of the scores."""
    await asyncio.gather(*(reward.score(prompt, [text]) for prompt, text in texts[:8]))
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        together = await asyncio.gather(*(reward.score(prompt, [text]) for prompt, text in texts))
        middle = time.perf_counter()
        alone = [await reward.score(prompt, [text]) for prompt, text in texts]
        times.append((middle - begin, time.perf_counter() - middle))
    if hasattr(reward, "aclose"):
        await reward.aclose()
    apart = max(abs(a - b) for (a,), (b,) in zip(together, alone, strict=True))
    batched, one_by_one = map(min, zip(*times, strict=True))
    return len(texts) / batched, len(texts) / one_by_one, apart


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = list(dict.fromkeys(entry["kind"] for _, entry, *_ in ROWS))
    parser.add_argument("--only", default=",".join(kinds), help="comma list of kinds")
    parser.add_argument("--num-texts", type=int, default=100, help="of each kind of text")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(kinds):
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}; known: {', '.join(kinds)}")

    import torch
    import transformers

    from tests.rewards import tiny

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    here = (ROOT / "../shared/data/alpaca_eval/outputs.jsonl").is_file()
    sources = {"chat": chat, "math": mathematics, "short": bundled}
    texts = {
        name: list((source if here else bundled)(options.num_texts))
        for name, source in sources.items()
    }
    corpus = [
        f"{prompt.messages[0].content}\n{text}" for each in texts.values() for prompt, text in each
    ]
    print(f"{torch.get_num_threads()} thread(s), {options.device}\n")
    print(
        "| reward | texts | mean length, characters | batched, texts/s | one by one, texts/s | "
        "ratio | largest difference |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with TemporaryDirectory() as folder:
        for name, entry, model, kind_of_text in ROWS:
            if entry["kind"] not in chosen:
                continue
            if model is not None:
                tiny.build(
                    model,
                    Path(folder) / model,
                    num_positions=16_384,
                    hidden_size=64,
                    spread=0.1,
                    corpus=corpus,
                )
                entry = {**entry, "model": str(Path(folder) / model), "device": options.device}
            given = texts[kind_of_text]
            length = fmean(len(prompt.messages[0].content) + len(text) for prompt, text in given)
            together, alone, apart = asyncio.run(measure(make_reward(entry), given))
            rates = f"{together:,.0f} | {alone:,.0f} | {together / alone:.1f} x"
            print(
                f"| {name} | {kind_of_text} | {length:,.0f} | {rates} | {apart:.1e} |", flush=True
            )


if __name__ == "__main__":
    main()
