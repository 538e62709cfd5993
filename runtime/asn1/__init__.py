"""ASN.1: DER, read and written."""
