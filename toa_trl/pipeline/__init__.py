"""Stages, each a command in a process of its own, once or round after round.

    <output_dir>/
      pipeline.json  stages.json           what decides the results; the stages in order
      synthesize/ sft/ dpo/ evaluate/      one folder for each stage, beside it its log
      outputs/                             responses and scores, shared by all evaluations
      results.json  report.html

With rounds the folders of the stages are in round-1, round-2, ...; round-0 has the evaluation of
the untrained student, which shows a wrong judge at once.

A stage is complete, and never repeated, once its folder holds complete.json. Until then the same
command resumes it: a sampling inside its trees, a training from its last checkpoint, an evaluation
after its last response. To repeat a stage, move its folder and those of the stages after it away.

    config.py   iteration.py   the configuration of a pipeline, and of `toa-trl iterate`
    plan.py     checks.py      the stages, what each is given, and what is refused
    stages.py   trainings.py   fleets.py   gpus.py   the command of a stage and its surroundings
    run.py      steps.py       running what is not complete; running a command once
    gate.py     results.py     status.py   identity.py
"""

from toa_trl.pipeline.checks import check_plan
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.run import run_plan

__all__ = ["Plan", "check_plan", "run_plan"]
