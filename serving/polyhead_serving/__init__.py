"""Starts, watches, updates and drains a tritonserver that serves Polyhead classifiers."""
