"""The ledger: what was issued, and the audit beside it."""
