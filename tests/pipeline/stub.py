"""Stands for `toa-trl`: every command writes what the real one leaves, from what it is given.

Environment: STUB_HANGS: name of a stage's folder at which it writes a part and waits to be killed.
STUB_FAILS: one that ends with code 1.
STUB_SEEN: a file that gets a line of JSON per command.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def digest(*values: Any) -> str:
    return hashlib.md5(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def content(path: str | Path) -> str:
    """Return what stands for a model or data set; the name of one that is not there."""
    for name in ("model.safetensors", "data"):
        if (Path(path) / name).is_file():
            return (Path(path) / name).read_text()
    return Path(path).name


def without_folder(value: Any, folder: str) -> Any:
    return json.loads(json.dumps(value, default=str).replace(folder, ""))


command, *rest = sys.argv[1:]
if command == "serve-agents":
    os.execv(sys.executable, [sys.executable, "-m", "toa_trl", command, *rest])
options = {
    word[2:]: following
    for word, following in zip(rest, [*rest[1:], ""], strict=True)
    if word.startswith("--")
}
config = yaml.safe_load(Path(options["config"]).read_text()) if "config" in options else {}
if "STUB_SEEN" in os.environ:
    with open(os.environ["STUB_SEEN"], "a") as seen:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen.write(json.dumps({"argv": sys.argv[1:], "config": config, "gpus": gpus}) + "\n")
if command == "evaluate":
    folder = Path(config["results"]).parent
elif command == "merge-adapter":
    folder = Path(rest[1])
elif command == "push":
    folder = Path(rest[0]).parent / "push"
else:
    folder = Path(options.get("output_dir") or options.get("output") or config["output_dir"])
root = str(folder.parent)
folder.mkdir(parents=True, exist_ok=True)
if str(folder).endswith("/" + os.environ.get("STUB_FAILS", "none")):
    sys.exit(1)
if str(folder).endswith("/" + os.environ.get("STUB_HANGS", "none")):
    if command in ("sft", "dpo"):
        (folder / "lineage.json").write_text('{"base_model": null, "data": []}')
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1/trainer_state.json").write_text('{"global_step": 1}')
    (folder / "part").write_text("half")
    time.sleep(600)
(folder / "part").unlink(missing_ok=True)

if command == "synthesize":
    (folder / "data").write_text(digest(without_folder(config, root)))
    (folder / "report.html").write_text("report")
elif command == "data":
    (folder / "data").write_text(digest(content(rest[0]), rest[3:]))
    (folder / "lineage.json").write_text("{}")
elif command == "merge-adapter":
    (folder / "model.safetensors").write_text(content(rest[0]))
elif command == "evaluate":
    scores = os.environ.get("STUB_SCORES", "").split()
    student = {}
    for number, model in enumerate(config["models"]):
        value = (
            float(scores[number]) if scores else int(digest(content(model["model"])), 16) / 2**32
        )
        student[model["name"]] = {"accuracy": value}
    (folder / "results.json").write_text(json.dumps({"student": student}))
elif command != "push":
    data = options.get("dataset_name") or [
        [content(part["path"]), part["fraction"]] for part in config["datasets"]
    ]
    trained = [content(data) if isinstance(data, str) else data, options["seed"]]
    start = options.get("model_name_or_path") or config["model_name_or_path"]
    (folder / "model.safetensors").write_text(digest(content(start), trained))
    if config.get("use_peft"):
        (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": start, "r": 8})
        )
