"""A run or a search as a system: it answers as one model does."""
