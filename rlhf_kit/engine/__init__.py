"""The machinery around the algorithms: gradients, optimizers, checkpoints, records."""
