"""Backups: their archive and its signature, restoring, and what was revoked since."""
