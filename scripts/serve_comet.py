"""Serve CometKiwi and COMET by the JSON contract of toa_trl.rewards.http.

bash scripts/comet_environment    # comet needs an environment of its own
.venv-comet/bin/python scripts/serve_comet.py --model Unbabel/wmt22-cometkiwi-da
# reward: {kind: http, name: wmt22-cometkiwi-da, url: "http://localhost:8022/score"}

The translation is the response. The source is metadata.source or, if that column is missing, the
last user message. Models that compare with a reference take metadata.reference. The score of an
input is null, never a number, if one of these is missing, empty, or longer than the model reads.
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

Sample = dict[str, str]  # comet's keys: "src", "mt" and optionally "ref"
Scores = list["float | None"]  # None: the sample cannot be scored


class Comet:
    """Score samples with a checkpoint, in float32.

    comet's `predict` gives the same scores, but each call creates a trainer and moves the model to
    the GPU and back.

    Args:
        path: a .ckpt file; hparams.yaml is one folder above the file's folder.
        batch_size: maximum number of samples in a batch.
        device: "cpu" or "cuda".

    Raises:
        ValueError: the encoder of the checkpoint cannot be loaded.
    """

    def __init__(self, path: Path, batch_size: int, device: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            from comet import load_from_checkpoint

            # Weights that the checkpoint lacks would stay random; strict=True would also refuse
            # the extra weights of older checkpoints.
            warnings.filterwarnings(
                "error", "Found keys that are in the model state dict but not in the checkpoint"
            )
            try:
                # hparams.yaml, not the checkpoint's copy of it, so that it can name a local encoder
                model = load_from_checkpoint(str(path), reload_hparams=True)
            except (AttributeError, OSError) as error:  # transformers found no tokenizer
                raise ValueError(
                    f"its encoder cannot be loaded ({first_line(error)}); pretrained_model in "
                    "hparams.yaml must be a Hub name that can be reached, or a folder with the "
                    "encoder's configuration and tokenizer"
                ) from error
        self._model = model.eval().to(device)
        self._batch_size, self._device = batch_size, device
        referenced = self._model.requires_references()
        self.needs = ("src", "mt", "ref") if referenced else ("src", "mt")
        segments = self._model.hparams.get("input_segments")  # read as one sequence
        self._joint = segments is not None
        self._reads = set(segments or self.needs)

    def __call__(self, samples: list[Sample]) -> Scores:
        """Return a score per sample, the same in every batch; None for one that is too long."""
        import torch

        inputs = []
        for sample in samples:
            inputs.append({part: text for part, text in sample.items() if part in self._reads})
        lengths = self._lengths(inputs)
        scores: Scores = [None] * len(inputs)
        fitting = sorted((i for i in range(len(inputs)) if lengths[i]), key=lengths.__getitem__)
        with torch.inference_mode():
            # comet takes the format of a batch's first sample (with or without reference) for all
            for has_reference in (False, True):
                indices = [i for i in fitting if ("ref" in inputs[i]) is has_reference]
                for start in range(0, len(indices), self._batch_size):
                    batch = indices[start : start + self._batch_size]
                    predicted = self._predict([inputs[i] for i in batch])
                    for i, score in zip(batch, predicted, strict=True):
                        scores[i] = score
        return scores

    def _predict(self, batch: list[Sample]) -> list[float]:
        import torch

        inputs = self._model.prepare_for_inference(batch)
        inputs = self._model.transfer_batch_to_device(inputs, torch.device(self._device), 0)
        scores: list[float] = self._model.predict_step(inputs)["scores"].tolist()
        return scores

    def _lengths(self, samples: list[Sample]) -> list[int]:
        """Return tokens of each sample's longest sequence; 0 if a text is empty or too long."""
        encoder = self._model.encoder
        texts = [text for sample in samples for text in sample.values()]
        counts = iter([len(ids) for ids in encoder.tokenizer(texts, verbose=False)["input_ids"]])
        num_special = encoder.tokenizer.num_special_tokens_to_add()
        # comet cuts a text to two tokens less than the positions, a joint sequence to the positions
        total = sum if self._joint else max
        limit = encoder.max_positions if self._joint else encoder.max_positions - 2
        lengths = []
        for sample in samples:
            tokens = list(islice(counts, len(sample)))
            is_readable = min(tokens) > num_special and total(tokens) <= limit
            lengths.append(total(tokens) if is_readable else 0)
        return lengths


class Queue:
    """Collect the requests that arrive while a batch is scored into the next batch.

    Args:
        predict: returns the scores of samples; it runs in a thread of its own.
    """

    def __init__(self, predict: Callable[[list[Sample]], Scores]) -> None:
        self._predict = predict
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[list[Sample], asyncio.Future[Scores]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, samples: list[Sample]) -> Scores:
        """Return the scores of one request.

        Raises:
            Exception: what `predict` raises for this request alone.
        """
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
        samples = [sample for request, _ in taken for sample in request]
        loop = asyncio.get_running_loop()
        try:
            scores = iter(await loop.run_in_executor(self._thread, self._predict, samples))
        except Exception as error:
            if len(taken) > 1:  # an invalid request must not fail the others
                for request in taken:
                    await self._answer([request])
            elif not taken[0][1].done():
                taken[0][1].set_exception(error)
        else:
            for request_samples, future in taken:
                part = list(islice(scores, len(request_samples)))
                if not future.done():
                    future.set_result(part)


def sample_of(place: str, given: Any) -> Sample:
    """Return source, translation and reference of an input, as far as it has them.

    Raises:
        ValueError: the input violates the contract.
    """
    if not isinstance(given, dict):
        given = {}
    messages, response = given.get("prompt"), given.get("response")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise ValueError(f'{place}: "prompt" must be a list of messages')
    if not isinstance(response, str):
        raise ValueError(f'{place}: "response" must be a text')
    metadata = given.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f'{place}: "metadata" must be an object')
    source = metadata.get("source")
    if source is None:
        of_user = [item.get("content") for item in messages if item.get("role") == "user"]
        source = of_user[-1] if of_user else None
    parts = {"src": source, "mt": response, "ref": metadata.get("reference")}
    return {part: text for part, text in parts.items() if isinstance(text, str) and is_text(text)}


def is_text(text: str) -> bool:
    """Return whether a tokenizer accepts the text: not blank, and no unpaired surrogates."""
    return bool(text.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in text)


def make_app(
    name: str, predict: Callable[[list[Sample]], Scores], needs: Sequence[str]
) -> web.Application:
    """Return the server.

    Args:
        name: the model's name, which a GET returns.
        predict: returns the scores of samples that have all parts in `needs`.
        needs: parts without which a sample cannot be scored.
    """
    queue = Queue(predict)

    async def alive(request: web.Request) -> web.Response:
        return web.json_response({"model": name})

    async def score(request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.read())
            if not isinstance(body, dict) or not isinstance(body.get("inputs"), list):
                raise ValueError('the body must be {"inputs": [...]}')
            samples = [sample_of(f"inputs[{i}]", given) for i, given in enumerate(body["inputs"])]
        except (ValueError, RecursionError) as error:
            return web.Response(status=400, text=f"{error}\n")
        complete = [sample for sample in samples if set(needs) <= sample.keys()]
        try:
            predicted = iter(await queue.submit(complete) if complete else [])
        except Exception as error:
            return web.Response(status=500, text=f"{first_line(error)}\n")
        scores: Scores = []
        for sample in samples:
            value = next(predicted) if set(needs) <= sample.keys() else None
            scores.append(value if value is not None and math.isfinite(value) else None)
        return web.json_response({"scores": scores})

    app = web.Application(client_max_size=2**28)
    app.add_routes([web.get("/", alive), web.get("/score", alive), web.post("/score", score)])
    return app


def find_checkpoint(model: str) -> Path:
    """Return the .ckpt of a file, a folder with the Hub's layout, or a Hub name.

    Raises:
        ValueError: it does not exist, or there are several.
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
                f"not a file, a folder, or a model that can be downloaded ({first_line(error)}); "
                "if the model has a licence, accept it on the model's page and set HF_TOKEN"
            ) from error
    checkpoints = sorted(path.glob("checkpoints/*.ckpt"))
    if len(checkpoints) != 1:
        raise ValueError(f"exactly one file checkpoints/*.ckpt is needed, not {len(checkpoints)}")
    return checkpoints[0]


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
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
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to accept other machines")
    parser.add_argument("--port", type=int, default=8022)
    parser.add_argument(
        "--batch-size", type=int, default=32, help="maximum number of translations in a batch (32)"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        choices=(0, 1),
        help="default: 1 if there is a GPU; for more, start one server per GPU "
        "(CUDA_VISIBLE_DEVICES) and list all their URLs in the run",
    )
    options = parser.parse_args()
    if options.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    # Exit at once: there is nothing to save, and a graceful shutdown would wait for the batch.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
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
