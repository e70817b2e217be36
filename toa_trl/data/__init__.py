"""Prompts in, training data out: rollouts become SFT rows, preference rows and parquet files that TRL and datasets read."""
