"""Descriptors: how many connections this process may have open."""

import resource

# For what is no connection of a client's: listeners, agents, files, and connections that are being closed for others.
RESERVED = 256


def connections_within(wanted: int) -> int:
    """Raise this process's soft limit of open files as far as these connections need and the hard limit allows.

    A process that runs out of descriptors can neither answer nor write its files, so it had better refuse earlier.

    Returns:
        How many connections there may be: `wanted`, or fewer; never less than 2.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(2, min(wanted, soft - RESERVED))
