"""Tests of polyhead-serve and model.py without Triton."""
