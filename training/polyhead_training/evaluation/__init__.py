"""Evaluation: metrics, calibration and the report."""
