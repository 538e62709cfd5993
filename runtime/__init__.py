"""What the two processes share beside the protocol: settings, logs, life cycle, and the Twisted half of a connection.

Imports neither `bmc_proxy` nor `vmi_agent`.
"""
