"""One run on many machines: shards, and Ray to schedule them."""
