"""Reference log-probs that are computed in advance and cached: of which weights they are."""

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
SETTINGS = ("max_length", "truncation_mode", "ld_alpha")  # what else a reference depends on


def tie_references(data: Any, training: Any, model: str, revision: str | None = None) -> None:
    """Have cached reference log-probs computed again when the weights have changed.

    TRL 1.16 finds its cache by a hash of the module's parameters (`hash_module`). To be reported
    upstream: DeepSpeed ZeRO-3 leaves empty tensors in their place, so that two models of one shape
    have one hash, and a model that was trained again into the same folder gets the references of
    the earlier one; `max_length` and `truncation_mode` are not part of the hash either. The cache
    also depends on the fingerprint of the dataset, which is made to depend on all of them here.

    Args:
        data: a `TrainingData`; the fingerprints of its datasets are replaced.
        training: configuration of the trainer.
        model: folder or Hub name.
        revision: of a Hub repository.
    """
    if not getattr(training, "precompute_ref_log_probs", False):
        return
    from accelerate.utils import broadcast_object_list
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    # one process reads the weights: they may be many gigabytes, on a disk that all share
    reads = training.process_index == 0
    digest = [digest_of_weights(model, revision) if reads else None]
    broadcast_object_list(digest, from_process=0)
    settings = [getattr(training, name, None) for name in SETTINGS]
    for rows in (data.train, data.test):
        if isinstance(rows, Dataset):
            rows._fingerprint = Hasher.hash((rows._fingerprint, digest[0], settings))


def digest_of_weights(model: str, revision: str | None = None) -> str:
    """Return a digest of a folder's weight files, or the commit of a model on the Hub.

    Args:
        model: folder or Hub name.
        revision: of a Hub repository.
    """
    folder = Path(model)
    if not folder.is_dir():
        from transformers.utils import cached_file
        from transformers.utils.hub import extract_commit_hash

        config = cached_file(model, "config.json", revision=revision)
        return f"{model} {extract_commit_hash(config, None)}"
    whole = hashlib.sha256()
    for path in sorted(chain.from_iterable(map(folder.glob, WEIGHTS))):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return whole.hexdigest()
