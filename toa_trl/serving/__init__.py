"""A fleet of vLLM servers: described, kept running, stopped."""
