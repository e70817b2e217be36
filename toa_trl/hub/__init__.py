"""Publishing: pushes to the Hugging Face Hub, data set cards, model cards and lineage."""
