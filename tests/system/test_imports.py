"""The walls between the packages, read from the imports themselves (docs/decisions.md says why they stand)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "runtime", "bmc_proxy", "vmi_agent")
# Where Twisted may appear: where a reactor is needed, for its log, and for what twisted.cred defines.
TWISTED_AT = {
    "runtime.endpoints",
    "runtime.lifecycle",
    "runtime.logging",
    "runtime.reload",
    "runtime.tls",
    "runtime.transport",
    "runtime.unix_peer",
    "runtime.threads",
    "bmc_proxy.auth.account_service",
    "bmc_proxy.agents.balancer",
    "bmc_proxy.agents.pool",
    "bmc_proxy.agents.connection",
    "bmc_proxy.agents.retry",
    "bmc_proxy.auth.backends",
    "bmc_proxy.auth.client_status",
    "bmc_proxy.agents.queue",
    "bmc_proxy.cli",
    "bmc_proxy.agents.deadline",
    "bmc_proxy.auth.services",
    "bmc_proxy.auth.login_service",
    "bmc_proxy.frontend",
    "bmc_proxy.listeners",
    "bmc_proxy.notices",
    "bmc_proxy.auth.own_crls",
    "bmc_proxy.app",
    "bmc_proxy.auth.login",
    "bmc_proxy.pki_cache",
    "bmc_proxy.agents.fair_slots",
    "bmc_proxy.agents.fetch_queue",
    "bmc_proxy.auth.known_sources",
    "bmc_proxy.auth.work_queue",
    "bmc_proxy.workers.pool",
    "bmc_proxy.workers.supervisor",
    "bmc_proxy.workers.shared_log",
    "bmc_proxy.workers.ipc",
    "bmc_proxy.workers.worker",
    "bmc_proxy.workers.process",
    "bmc_proxy.server.connection",
    "bmc_proxy.server.context",
    "bmc_proxy.server.body_producer",
    "bmc_proxy.server.request",
    "bmc_proxy.server.site",
    "vmi_agent.cli.serve",
    "vmi_agent.server",
    "vmi_agent.app",
    "vmi_agent.maintenance",
}


def modules() -> dict[str, set[str]]:
    """Return what each module of ours imports, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = imports_of(path)
    return found


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file imports, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = modules()


def top(name: str) -> str:
    """Return a dotted name's first part."""
    return name.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "may_import"),
    [
        ("protocol", {"protocol"}),
        ("runtime", {"protocol", "runtime"}),
        ("bmc_proxy", {"protocol", "runtime", "bmc_proxy"}),
        ("vmi_agent", {"protocol", "runtime", "vmi_agent"}),
    ],
)
def test_packages_import_no_stranger(package: str, may_import: set[str]) -> None:
    """The two processes never import each other, and nobody below imports them."""
    found = {top(each) for name, imported in IMPORTS.items() if top(name) == package for each in imported}

    assert found & set(PACKAGES) <= may_import


def test_protocol_imports_the_standard_library_only() -> None:
    """The protocol stands on the standard library, and on nothing of it that does I/O or tells the time."""
    found = {top(each) for name, imported in IMPORTS.items() if top(name) == "protocol" for each in imported}

    assert found <= {*sys.stdlib_module_names, "protocol"}
    assert not found & {"socket", "select", "selectors", "asyncio", "threading", "time", "datetime", "os", "random"}


def test_twisted_stays_at_the_edges() -> None:
    """Twisted is imported only where a reactor or its log is needed."""
    found = {name for name, imported in IMPORTS.items() if "twisted" in map(top, imported)}

    assert found == TWISTED_AT


def test_proxy_knows_no_certificates() -> None:
    """The proxy issues no certificate and has no database: X.509 is there for HTTPS and for the CRLs of its clients."""
    judging = {"cryptography", "OpenSSL", "sqlalchemy", "sqlite3"}
    found = {
        name for name, imported in IMPORTS.items() if top(name) == "bmc_proxy" and judging & set(map(top, imported))
    }

    assert found == {"bmc_proxy.https", "bmc_proxy.auth.client_crls"}


def test_crl_reading_is_imported_where_clients_have_certificates() -> None:
    """A proxy without --client-ca reads no CRL: the modules that do are imported inside functions alone."""
    readers = {"bmc_proxy.auth.client_status", "bmc_proxy.auth.client_crls", "bmc_proxy.auth.own_crls"}
    text = "import sys, bmc_proxy.app, bmc_proxy.workers.worker, bmc_proxy.workers.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=ROOT)

    assert not readers & set(done.stdout.split())


def test_one_process_knows_nothing_of_workers() -> None:
    """What several processes need is imported by the command line alone, where there are to be several."""
    found = {
        name
        for name, imported in IMPORTS.items()
        if any(each.startswith("bmc_proxy.workers") for each in imported) and not name.startswith("bmc_proxy.workers")
    }

    assert found == {"bmc_proxy.cli"}


def test_imports_have_no_cycle() -> None:
    """No module is reached from itself."""
    edges = {
        name: {each for each in imported if each in IMPORTS and each != name} for name, imported in IMPORTS.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for each in edges[name]:
                visit(each, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def package_of(name: str) -> str:
    """Return the package that a module stands in."""
    path = ROOT.joinpath(*name.split("."))
    return name if path.is_dir() else name.rpartition(".")[0]


def is_apart(one: str, other: str) -> bool:
    """Return whether neither of two packages holds the other."""
    return not f"{one}.".startswith(f"{other}.") and not f"{other}.".startswith(f"{one}.")


def test_packages_have_no_cycle() -> None:
    """No two packages, of which neither holds the other, import each other."""
    edges = {
        (package_of(name), package_of(each))
        for name, imported in IMPORTS.items()
        for each in imported
        if each in IMPORTS
    }
    mutual = {(one, other) for one, other in edges if one < other and is_apart(one, other) and (other, one) in edges}

    # Heads that cannot be read are refused in the words of the dialects, until http1 has errors of its own.
    assert mutual == {("bmc_proxy.api", "bmc_proxy.http1")}


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("vmi_agent.ledger", "vmi_agent.revocation"),
        ("vmi_agent.ledger", "vmi_agent.ca"),
        ("vmi_agent.policy", "vmi_agent.ledger"),
        ("vmi_agent.keys", "vmi_agent.ca"),
        ("bmc_proxy.auth", "bmc_proxy.api"),
        ("bmc_proxy.agents", "bmc_proxy.api"),
        ("bmc_proxy.api", "bmc_proxy.server"),
    ],
)
def test_package_never_imports(package: str, never: str) -> None:
    """What stands lower does not know what stands on it."""
    found = {
        (name, each)
        for name, imported in IMPORTS.items()
        if f"{name}.".startswith(f"{package}.")
        for each in imported
        if f"{each}.".startswith(f"{never}.")
    }

    assert found == set()


@pytest.mark.parametrize("app", ["bmc_proxy.app", "vmi_agent.app"])
def test_nothing_below_imports_the_app(app: str) -> None:
    """The composition root is imported by the command line alone."""
    found = {name for name, imported in IMPORTS.items() if app in imported}

    assert all(".cli" in name for name in found), found
