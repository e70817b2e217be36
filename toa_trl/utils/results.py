"""Names of results.json that evaluations write, and cards and reports read."""

INTERVALS = {"accuracy": "interval", "sampled_accuracy": "sampled_interval"}


def interval_key(figure: str) -> str:
    """Return the key of a figure's interval, which stands beside it."""
    return INTERVALS.get(figure, f"{figure}_interval")
