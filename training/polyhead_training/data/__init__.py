"""Data: from files and hub data sets to splits of texts and label vectors on disk."""
