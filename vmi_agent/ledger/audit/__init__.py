"""The audit: a hash-chained table in the ledger, its check and its anchors."""
