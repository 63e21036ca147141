"""Polyhead's server side: what starts, watches, updates and drains a tritonserver."""
