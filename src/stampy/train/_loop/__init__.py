"""Training loop of both stages: steps, checkpoints, logs, ranks of a distributed run, and signals."""
