"""The ledger's schema as the first version made it."""

# A ledger of version 1, as agents made it that had no audit.
VERSION_1 = """
CREATE TABLE issuance (
    id INTEGER NOT NULL, serial BLOB NOT NULL, status VARCHAR NOT NULL, root_generation INTEGER NOT NULL,
    profile VARCHAR NOT NULL, user VARCHAR NOT NULL, method VARCHAR NOT NULL, address VARCHAR NOT NULL,
    request_digest BLOB NOT NULL, csr_sha256 BLOB NOT NULL, key_sha256 BLOB NOT NULL, subject VARCHAR NOT NULL,
    not_before BIGINT NOT NULL, not_after BIGINT NOT NULL, recorded_ms BIGINT NOT NULL, issued_ms BIGINT,
    tbs BLOB NOT NULL, signature BLOB, PRIMARY KEY (id), UNIQUE (serial)
);
CREATE INDEX issuance_by_request ON issuance (request_digest, recorded_ms);
CREATE TABLE idempotency (
    token BLOB NOT NULL, csr_sha256 BLOB NOT NULL, serial BLOB NOT NULL, PRIMARY KEY (token)
);
PRAGMA user_version = 1;
"""
