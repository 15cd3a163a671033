"""Sweeps: many runs, here or on Slurm; how they begin, and how they end."""
