"""Scoring of whole files: rows in, answers into a journal, then one finished output."""
