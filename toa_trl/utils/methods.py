"""The names of the training methods."""

BY_RECIPE = {"preference": ("kto", "orpo", "simpo"), "grpo": ("grpo", "rloo")}
"""Methods that a recipe can train with, for the recipes with the option --method."""
METHODS = ("sft", "dpo", *BY_RECIPE["preference"], *BY_RECIPE["grpo"])
"""Methods that train a student."""
