"""scripts/slurm: what they ask of SLURM, and what they start, with an srun of our own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts/slurm"
# runs the command once for every node, as srun does with one task on each
SRUN = """#!/bin/bash
echo "srun $*" >> "$SEEN"
nodes=1
while [[ $1 == --* ]]; do
    case $1 in --nodes=*) nodes=${1#--nodes=} ;; esac
    shift
done
for ((rank = 0; rank < nodes; rank++)); do SLURM_NODEID=$rank "$@" || exit; done
"""
SCONTROL = (
    '#!/bin/bash\necho "scontrol $*" >> "$SEEN"\n[ "$1" = show ] && printf "n1\\nn2\\n" || true\n'
)
PYTHON = '#!/bin/bash\necho "python $*" >> "$SEEN"\nexit ${CODE:-0}\n'


def options_of(script: str) -> dict[str, str]:
    lines = (FOLDER / script).read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"#SBATCH --([\w-]+)(?:=(\S+))?", line) for line in lines]
    return {match[1]: match[2] or "" for match in found if match}


def start(folder: Path, *command: str, code: int = 0) -> tuple[int, str, list[str]]:
    """Run a script; returns its exit code, its errors, and what it started."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
    seen = folder / "seen"
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SEEN": str(seen),
        "CODE": str(code),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    done = subprocess.run(
        ["bash", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr, seen.read_text().splitlines() if seen.exists() else []


@pytest.mark.parametrize(("script", "nodes"), [("one_node.sbatch", 1), ("two_nodes.sbatch", 2)])
def test_what_is_asked_of_slurm(script: str, nodes: int) -> None:
    options = options_of(script)
    lines = (FOLDER / script).read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("#SBATCH") for line in lines) == len(options)
    assert options["nodes"] == str(nodes)
    assert options["ntasks-per-node"] == "1"
    assert options["gpus-per-node"] == "8"
    assert options["signal"].endswith("TERM@120")  # so that a pipeline stops before it is killed
    assert "requeue" in options


@pytest.mark.parametrize("script", ["one_node.sbatch", "two_nodes.sbatch"])
def test_a_job_runs_a_pipeline_and_is_queued_again_if_its_time_is_over(
    script: str, tmp_path: Path
) -> None:
    file = f"scripts/slurm/{script}"
    code, errors, seen = start(tmp_path, file, "p.yaml", "--seed", "3")
    assert (code, errors) == (0, "")
    assert "python -m toa_trl run p.yaml --seed 3" in seen
    assert "scontrol requeue 7" not in seen
    for stopped, queued in ((130, True), (1, False)):
        (tmp_path / "seen").unlink()
        code, _, seen = start(tmp_path, file, "p.yaml", code=stopped)
        assert (code, "scontrol requeue 7" in seen) == (stopped, queued)
    code, errors, _ = start(tmp_path, file)
    assert code == 1
    assert "name a pipeline" in errors


def test_a_training_starts_on_every_node_with_its_rank(tmp_path: Path) -> None:
    training = ("python", "-m", "toa_trl", "sft", "--config", "a b.yaml")
    code, errors, seen = start(tmp_path, "scripts/slurm/every_node", *training)
    assert (code, errors) == (0, "")
    trained = [line for line in seen if line.startswith("python")]
    assert trained == [
        "python -m toa_trl sft --config a b.yaml --num_machines 2 "
        f"--machine_rank {rank} --main_process_ip n1"
        for rank in (0, 1)
    ]
