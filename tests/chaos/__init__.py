"""Faults, each injected while a verified load runs. `make chaos` runs them all."""
