"""Issuing a certificate: the one path that signs, and the scheduler that drives it."""
