"""Checks before a training: what the template, the tokenizer and max_length do to the data."""
