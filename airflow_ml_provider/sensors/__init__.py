"""Waiting for what was started elsewhere."""
