"""Twisted's side of HTTP: connections, requests and their limits."""
