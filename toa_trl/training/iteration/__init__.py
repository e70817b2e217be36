"""A student that works among the agents and learns from what all of them find, round after round.

    <output_dir>/
      iteration.json                       what decides the rounds; another configuration is refused
      round-0/evaluation/                  of the untrained student: a mistake in what judges it shows at once
      round-1/synthesis/ sft/ dpo/ ...     a run's folder, and the student after each training
      round-1/evaluation/results.json      of the student of this round and of all before it
      outputs/                             responses and scores, which all evaluations share
      results.json  report.html            after the last round that is complete

Every stage is a command in a process of its own, so that its memory is free for the next one. It is complete, and never
done again, once its folder holds complete.json. Until then the same command goes on with it: a sampling inside its trees,
a training from its last checkpoint, an evaluation behind its last response. To do a round anew, delete its folder and those
of the rounds after it.

    plan.py     what happens in every round        rounds.py   doing what is not done yet
"""

from toa_trl.training.iteration.plan import Plan, Stage
from toa_trl.training.iteration.rounds import run_rounds

__all__ = ["Plan", "Stage", "run_rounds"]
