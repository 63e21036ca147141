"""Fitting: the steps from a config to a checkpoint, and all that the Trainer needs."""
