"""One run: runner, journal, identity, limits, progress, status and reward checks."""
