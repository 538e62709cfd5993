"""Limits on what clients and peers make a process spend."""
