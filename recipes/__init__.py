"""The recipes, also as scripts of a clone: accelerate launch recipes/sft.py."""
