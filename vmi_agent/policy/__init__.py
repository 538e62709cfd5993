"""Judging a request: its DER, its key, its wishes."""
