"""Servers of others around the same model, one a file; each runs in .venv-peers and imports none of ours."""
