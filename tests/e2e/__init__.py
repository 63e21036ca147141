"""Tests that talk to a real tritonserver."""
