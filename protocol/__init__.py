"""The channel between bmc_proxy and vmi_agent: frames, records and the rules of one connection.

Standard library only and sans-I/O: nothing here opens a socket or reads a clock. Octets go in, events come out, and the
same `Connection` serves both roles. docs/protocol.md is the byte-level specification.
"""
