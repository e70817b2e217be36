"""Prompts in; SFT rows, preference pairs and parquet files out, as TRL and datasets read them."""
