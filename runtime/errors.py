"""Why a process does not start."""


class StartError(Exception):
    """The process cannot start; the text says what to change."""


class ConfigError(Exception):
    """A setting is refused; the text names it, its value and what is accepted."""
