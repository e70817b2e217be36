"""A search as a system: it answers conversations as one model does."""
