"""Serve CometKiwi and COMET by the JSON contract of toa_trl.rewards.http.

bash scripts/comet_environment
.venv-comet/bin/python scripts/serve_comet.py --model Unbabel/wmt22-cometkiwi-da
# reward: {kind: http, name: wmt22-cometkiwi-da, url: "http://localhost:8022/score"}

The translation is the response. The source is metadata.source or, where that column is missing, the
last user message. Models that compare with a reference take metadata.reference. An input is
answered with null, never with a number, where one of these is missing or empty, and where they are
longer than the model reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from aiohttp import web

Sample = dict[str, str]  # "src", "mt" and perhaps "ref", as comet names them
Scores = list["float | None"]  # None: no score


class Comet:
    """A checkpoint's own scores, in float32, of any number of samples.

    comet's `predict` gives the same, but makes a trainer and moves the model to the GPU and back at
    every call.

    Args:
        path: of a .ckpt; hparams.yaml lies one folder above its own.
        batch_size: samples that are scored at once.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, batch_size: int, device: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            from comet import load_from_checkpoint

            # Weights that the checkpoint lacks would stay random; strict=True refuses what older
            # ones have too many.
            warnings.filterwarnings(
                "error", "Found keys that are in the model state dict but not in the checkpoint"
            )
            try:
                # hparams.yaml instead of what the checkpoint remembers: there a person can name a
                # local encoder
                model = load_from_checkpoint(str(path), reload_hparams=True)
            except (
                AttributeError,
                OSError,
            ) as error:  # transformers' ways to say that there is no tokenizer
                raise ValueError(
                    f"its encoder cannot be loaded ({first_line(error)}); pretrained_model in "
                    "hparams.yaml must be a "
                    "Hub name that can be reached, or a folder with the encoder's configuration "
                    "and tokenizer"
                ) from error
        self._model = model.eval().to(device)
        self._batch_size, self._device = batch_size, device
        referenced = self._model.requires_references()
        self.needs = ("src", "mt", "ref") if referenced else ("src", "mt")
        segments = self._model.hparams.get("input_segments")  # read as one sequence
        self._joint = segments is not None
        self._reads = set(segments or self.needs)

    def __call__(self, samples: list[Sample]) -> Scores:
        """A score per sample, whatever the batches; None for one that the model would cut off."""
        import torch

        given = [
            {part: text for part, text in sample.items() if part in self._reads}
            for sample in samples
        ]
        lengths = self._lengths(given)
        scores: Scores = [None] * len(given)
        fit = sorted((i for i in range(len(given)) if lengths[i]), key=lengths.__getitem__)
        with torch.inference_mode():
            # comet takes all samples of a batch for what the first one is: with a reference, or
            # without
            for kind in ([i for i in fit if ("ref" in given[i]) is has] for has in (False, True)):
                for first in range(0, len(kind), self._batch_size):
                    batch = kind[first : first + self._batch_size]
                    inputs = self._model.prepare_for_inference([given[i] for i in batch])
                    inputs = self._model.transfer_batch_to_device(
                        inputs, torch.device(self._device), 0
                    )
                    for i, score in zip(
                        batch, self._model.predict_step(inputs)["scores"].tolist(), strict=True
                    ):
                        scores[i] = score
        return scores

    def _lengths(self, samples: list[Sample]) -> list[int]:
        """Tokens of the longest sequence of each.

        0 where the encoder would get nothing, or not all, of a text.
        """
        encoder = self._model.encoder
        texts = [text for sample in samples for text in sample.values()]
        tokens = map(len, encoder.tokenizer(texts, verbose=False)["input_ids"])
        empty = encoder.tokenizer.num_special_tokens_to_add()
        # comet cuts each text to two less than the positions, and after that a joint sequence to
        # the positions
        count, most = (
            (sum, encoder.max_positions) if self._joint else (max, encoder.max_positions - 2)
        )
        per_sample = [list(islice(tokens, len(sample))) for sample in samples]
        return [
            count(given) if min(given) > empty and count(given) <= most else 0
            for given in per_sample
        ]


class Queue:
    """What is asked for while a batch is under way becomes the next one.

    Args:
        predict: scores of samples; gets a thread of its own.
    """

    def __init__(self, predict: Callable[[list[Sample]], Scores]) -> None:
        self._predict = predict
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[list[Sample], asyncio.Future[Scores]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, samples: list[Sample]) -> Scores:
        """The scores of one request; raises what `predict` raises for it by itself."""
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._waiting.append((samples, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            await self._answer(taken)

    async def _answer(self, taken: list[tuple[list[Sample], asyncio.Future[Scores]]]) -> None:
        samples = [sample for asked, _ in taken for sample in asked]
        try:
            scores = iter(
                await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._predict, samples
                )
            )
        except Exception as error:
            if len(taken) > 1:  # one bad request shall cost no other
                for each in taken:
                    await self._answer([each])
            elif not taken[0][1].done():
                taken[0][1].set_exception(error)
        else:
            for asked, future in taken:
                part = list(islice(scores, len(asked)))
                if not future.done():
                    future.set_result(part)


def sample_of(place: str, given: Any) -> Sample:
    """What there is of source, translation and reference.

    Raises:
        ValueError: the input is not as the contract says.
    """
    asked, response = (
        (given.get(key) for key in ("prompt", "response"))
        if isinstance(given, dict)
        else (None, None)
    )
    if not isinstance(asked, list) or not all(isinstance(message, dict) for message in asked):
        raise ValueError(f'{place}: "prompt" must be a list of messages')
    if not isinstance(response, str):
        raise ValueError(f'{place}: "response" must be a text')
    metadata = given.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f'{place}: "metadata" must be an object')
    source = metadata.get("source")
    if source is None:
        source = next(
            (
                message.get("content")
                for message in reversed(asked)
                if message.get("role") == "user"
            ),
            None,
        )
    parts = {"src": source, "mt": response, "ref": metadata.get("reference")}
    return {part: text for part, text in parts.items() if isinstance(text, str) and is_text(text)}


def is_text(text: str) -> bool:
    """Whether it holds more than space, and no half of a surrogate pair.

    No tokenizer takes those.
    """
    return bool(text.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in text)


def make_app(
    name: str, predict: Callable[[list[Sample]], Scores], needs: Sequence[str]
) -> web.Application:
    """The server.

    Args:
        name: of the model; what a GET answers.
        predict: scores of samples that have all of `needs`.
        needs: parts of a sample without which there is no score.
    """
    queue = Queue(predict)

    async def alive(request: web.Request) -> web.Response:
        return web.json_response({"model": name})

    async def score(request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.read())
            if not isinstance(body, dict) or not isinstance(body.get("inputs"), list):
                raise ValueError('{"inputs": [...]} was needed')
            samples = [sample_of(f"inputs[{i}]", given) for i, given in enumerate(body["inputs"])]
        except (ValueError, RecursionError) as error:
            return web.Response(status=400, text=f"{error}\n")
        whole = [sample for sample in samples if set(needs) <= sample.keys()]
        try:
            found = iter(await queue.submit(whole) if whole else [])
        except Exception as error:
            return web.Response(status=500, text=f"{first_line(error)}\n")
        scores = [next(found) if set(needs) <= sample.keys() else None for sample in samples]
        return web.json_response(
            {"scores": [x if x is not None and math.isfinite(x) else None for x in scores]}
        )

    app = web.Application(client_max_size=2**28)
    app.add_routes([web.get("/", alive), web.get("/score", alive), web.post("/score", score)])
    return app


def find_checkpoint(model: str) -> Path:
    """The .ckpt of a file, of a folder as the Hub has it, or of a Hub name.

    Raises:
        ValueError: it is not there, or there are several.
    """
    path = Path(model)
    if path.is_file():
        return path
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(model))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no file or folder, and no model that the Hub gives ({first_line(error)}); where "
                "it has a licence, "
                "accept that on its page and set HF_TOKEN"
            ) from error
    found = sorted(path.glob("checkpoints/*.ckpt"))
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} files checkpoints/*.ckpt, and one is needed")
    return found[0]


def first_line(error: BaseException) -> str:
    """The kind of an error, and what it says first."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def main() -> None:
    """Load the model, then serve it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        help="Hub name, its folder (hparams.yaml, checkpoints/), or a .ckpt in one",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines"
    )
    parser.add_argument("--port", type=int, default=8022)
    parser.add_argument(
        "--batch-size", type=int, default=32, help="translations that are scored at once (32)"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        choices=(0, 1),
        help="1, where there is one; for more, a server each (CUDA_VISIBLE_DEVICES), and all "
        "their URLs in the run",
    )
    options = parser.parse_args()
    if options.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    for sign in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # nothing is kept here, and an orderly end would wait for the batch
        signal.signal(sign, lambda *_: os._exit(0))
    try:
        path = find_checkpoint(options.model)
        import torch

        gpu = torch.cuda.is_available() if options.gpus is None else options.gpus == 1
        comet = Comet(path, options.batch_size, "cuda" if gpu else "cpu")
        web.run_app(
            make_app(options.model, comet, comet.needs),
            host=options.host,
            port=options.port,
            handle_signals=False,
            access_log=None,
        )
    except Exception as error:
        parser.error(
            f"{options.model}: {error if isinstance(error, ValueError) else first_line(error)}"
        )


if __name__ == "__main__":
    main()
