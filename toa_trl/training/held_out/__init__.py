"""Evaluation during training: a held-out split by prompt, and responses that are scored."""
