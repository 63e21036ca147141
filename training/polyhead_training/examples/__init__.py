"""Example data sets: built by ``polyhead-dataset``."""
