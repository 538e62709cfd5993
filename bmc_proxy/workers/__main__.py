"""Starts a worker: `python -m bmc_proxy.workers`, for the first process alone."""

from bmc_proxy.workers.worker import main

main()
