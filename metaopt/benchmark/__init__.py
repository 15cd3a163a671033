"""Suites of tasks that judge optimizers, and are never meta-trained on."""
