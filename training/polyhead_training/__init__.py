"""Training of Polyhead classifiers: from texts and labels to a self-describing checkpoint."""
