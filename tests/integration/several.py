"""Runs of recipes one after the other, in the processes of one launch.

Starting those takes longer than such trainings.
"""

import json
import runpy
import sys

from accelerate import Accelerator

Accelerator.end_training = lambda self: (
    None
)  # it ends what holds the processes together, which the next run needs
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
