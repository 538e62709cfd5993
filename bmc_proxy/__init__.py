"""The HTTP side, on the BMC: takes an HMC's CSR, asks the agent over the channel, and words the answer.

Holds no CA key and never judges a certificate.
"""
