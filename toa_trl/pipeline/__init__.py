"""A student that works among the agents and learns from their best responses, round after round.

    <output_dir>/
      iteration.json                       what decides the rounds; a different one is refused
      round-0/evaluation/                  of the untrained student: shows a wrong judge at once
      round-1/synthesis/ sft/ dpo/ ...     a run's folder, and the student after each training
      round-1/evaluation/results.json      of the student of this round and of all before it
      outputs/                             responses and scores, shared by all evaluations
      results.json  report.html            after the last complete round

Every stage is a command in a process of its own, so that its memory is free for the next one. It is
complete, and never repeated, once its folder holds complete.json. Until then the same command
resumes it: a sampling inside its trees, a training from its last checkpoint, an evaluation after
its last response. To repeat a round, move its folder and those of the rounds after it away.

    iteration.py   the configuration            plan.py    the stages of every round
    rounds.py      one round after the other    steps.py   running a command once
"""

from toa_trl.pipeline.plan import Plan, Stage
from toa_trl.pipeline.rounds import run_rounds

__all__ = ["Plan", "Stage", "run_rounds"]
