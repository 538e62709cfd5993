"""From a request target to a route, and to the dialect that answers for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from bmc_proxy.api import errors as api_errors
from bmc_proxy.api.types import Dialect, Problem, Route

_WITH_ARGUMENT = "/{}"
_WITH_REST = "/{*}"


@dataclass(frozen=True, slots=True)
class Found:
    """A route, what its path stands for in the log, and the argument in the path."""

    route: Route
    pattern: str
    argument: str


class Router:
    """All routes of all dialects.

    Args:
        dialects: the first one words what belongs to none of them.
    """

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._dialects = dialects
        self._dialect_at: dict[bytes, Dialect] = {}
        self._routes = {path: methods for dialect in dialects for path, methods in dialect.routes.items()}
        # What most ask for, found at once.
        self._exact = {
            (method.encode(), path.encode()): Found(route, path, "")
            for path, methods in self._routes.items()
            for method, route in methods.items()
        }
        self._dialect_at = {path.encode(): self.dialect_for(path.encode()) for path in self._routes}
        self._before_rest = [path.removesuffix("{*}") for path in self._routes if path.endswith(_WITH_REST)]

    def find(self, method: bytes, path: bytes) -> Found | Problem:
        """Return the route of a path, or the 404 or 405 that it gets."""
        return self._exact.get((method, path)) or self._look(method.decode("latin-1"), path)

    def _look(self, method: str, path: bytes) -> Found | Problem:
        pattern, argument = self._pattern_of(path)
        methods = self._routes.get(pattern)
        if methods is None:
            return api_errors.not_found()
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = [*methods, "HEAD"] if "GET" in methods else [*methods]
            return api_errors.method_not_allowed(", ".join(allowed))
        return Found(route, pattern, argument)

    def pattern_of(self, path: bytes) -> str:
        """Return what a path is called in the log: one of ours, or "-", as anything else is a stranger's text."""
        if path in self._dialect_at:
            return path.decode()
        pattern, _ = self._pattern_of(path)
        return pattern if pattern in self._routes else "-"

    def dialect_for(self, path: bytes) -> Dialect:
        """Return the dialect that answers for a path."""
        if path in self._dialect_at:
            return self._dialect_at[path]
        text = path.decode("latin-1")
        found = (dialect for dialect in self._dialects if text.startswith(dialect.prefixes))
        return next(found, self._dialects[0])

    def _pattern_of(self, path: bytes) -> tuple[str, str]:
        text = path.decode("latin-1")
        if text in self._routes:
            return text, ""
        slash = "/" if text.endswith("/") else ""
        parent, _, last = path.removesuffix(b"/").rpartition(b"/")
        pattern = parent.decode("latin-1") + _WITH_ARGUMENT + slash
        if last and pattern in self._routes:
            return pattern, _unquoted(last)
        for before in self._before_rest:
            rest = path.removeprefix(before.encode())
            if rest and rest != path:
                return before + "{*}", _unquoted(rest)
        return text, ""


def _unquoted(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")
