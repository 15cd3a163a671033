"""Where a run's records go beside its folder: Weights & Biases, trackio, files for other programs."""
