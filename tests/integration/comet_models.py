"""Run by .venv-comet's Python.

Small random models of the published architectures, as checkpoints in their folders.

Argument: a folder for them. Input: JSON, [{"src": ..., "mt": ..., "ref": ...}, ...]. The folder's
scores.json holds comet's own scores of these, by each model with references ("kiwi referenced")
and, where it can, without ("kiwi free").
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from comet.models import load_from_checkpoint, str2model
from pytorch_lightning import Trainer
from sentencepiece import SentencePieceTrainer
from transformers import XLMRobertaConfig, XLMRobertaTokenizerFast

SHARED = {
    "activations": "Tanh",
    "dropout": 0.1,
    "encoder_model": "XLM-RoBERTa",
    "hidden_sizes": [48, 16],
    "keep_embeddings_frozen": True,
    "layer": "mix",
    "layer_norm": False,
    "nr_frozen_epochs": 0.3,
    "pool": "avg",
}
UNIFIED = {
    "class_identifier": "unified_metric",
    "layer_transformation": "sparsemax_patch",
    "loss_lambda": 0.65,
    "sent_layer": "mix",
    "word_layer": 24,
    "word_level_training": False,
    "word_weights": [0.15, 0.85],
}
# hparams.yaml as on the Hub, but for the sizes: wmt22-cometkiwi-da, wmt22-comet-da, and one that
# takes references or not
MODELS = {
    "kiwi": {**SHARED, **UNIFIED, "input_segments": ["mt", "src"]},
    "comet": {
        **SHARED,
        "class_identifier": "regression_metric",
        "layer_transformation": "sparsemax",
    },
    "unite": {**SHARED, **UNIFIED, "input_segments": ["mt", "src", "ref"]},
}


def save_encoder(folder: Path, texts: list[str]) -> None:
    """Save a small XLM-R without weights: a SentencePiece model and a configuration."""
    folder.mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=4000,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = XLMRobertaTokenizerFast.from_pretrained(folder)
    XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=514,
        type_vocab_size=1,
        initializer_range=0.3,
    ).save_pretrained(folder)


def save_model(folder: Path, hparams: dict[str, Any]) -> Path:
    """Its checkpoint, which remembers the Hub's encoder; hparams.yaml names ours."""
    kind = str2model[hparams["class_identifier"]]
    taken = {
        key: value for key, value in hparams.items() if key in inspect.signature(kind).parameters
    }
    model = kind(**taken, load_pretrained_weights=False)
    for weights in (*model.estimator.parameters(), *model.layerwise_attention.parameters()):
        torch.nn.init.normal_(weights, std=0.3)
    model.hparams["pretrained_model"] = "microsoft/infoxlm-large"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    path = folder / "checkpoints/model.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    (folder / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    return path


def main() -> None:
    torch.manual_seed(0)
    place, rows = Path(sys.argv[1]), json.load(sys.stdin)
    save_encoder(place / "encoder", [text for row in rows for text in (row["src"], row["ref"])])
    expected = {}
    for name, hparams in MODELS.items():
        path = save_model(place / name, {**hparams, "pretrained_model": str(place / "encoder")})
        model = load_from_checkpoint(str(path), reload_hparams=True)
        for kind, parts in (("referenced", ("src", "mt", "ref")), ("free", ("src", "mt"))):
            if kind == "referenced" or not model.requires_references():
                samples = [{part: row[part] for part in parts} for row in rows]
                scores = model.predict(samples, batch_size=8, gpus=0, progress_bar=False)["scores"]
                expected[f"{name} {kind}"] = scores
    (place / "scores.json").write_text(json.dumps(expected))


main()
