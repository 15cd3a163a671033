"""A run on disk: its folder and state, checkpoints, metrics, evaluations, and the one index of runs."""
