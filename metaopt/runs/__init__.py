"""A run on disk: configuration, folder, checkpoints, loggers, report."""
