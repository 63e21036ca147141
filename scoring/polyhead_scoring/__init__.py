"""Scores data sets with a checkpoint on Ray: the engine without a server, on one machine or a cluster."""
