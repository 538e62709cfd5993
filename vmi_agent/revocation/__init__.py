"""Certificate status: revocation, CRLs and OCSP."""
