"""Meta-training: the meta-step, the optimizer of φ, validation."""
