"""How the budget is divided among the prompts of a run."""
