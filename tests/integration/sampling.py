"""Sample as `toa-trl synthesize` does, without datasets at the end: python -m ... CONFIG."""

import sys
from pathlib import Path

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.config import SynthesisConfig
from toa_trl.utils.config import validate
from toa_trl.utils.files import read_yaml

if __name__ == "__main__":
    with user_errors():
        config = validate(SynthesisConfig, read_yaml(Path(sys.argv[1])))
        config.new_sampler().sample(config.load_prompts(), config.output_dir, export=False)
