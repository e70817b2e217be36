"""Which search is worth its compute? Every search at every budget, on the same problems and models.

python recipes/compare.py --config recipes/configs/demo/compare.yaml

Prints and writes "searches" of results.json, and draws the paper's figures: reward against FLOPs,
and over N. With `train` also its "data_table": students learn what each search found at equal
budgets. Interrupted, the same command resumes.
"""

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.comparison import compare_searches
from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.cli.options import read_config
from toa_trl.utils.aio import run_until_signal


def main() -> None:
    """Compare searches as the options say."""
    config = read_config(ComparisonConfig, description=__doc__)
    run_until_signal(compare_searches(config))


if __name__ == "__main__":
    with user_errors():
        main()
