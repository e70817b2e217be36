"""Models in this process, and endpoints that serve models."""
