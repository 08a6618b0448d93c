"""Connections to remote systems."""
