"""Looking at optimizers: pictures."""
