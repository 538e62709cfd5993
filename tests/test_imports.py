"""The walls between the packages, read from the imports themselves (docs/decisions.md says why they stand)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocol", "runtime", "bmc_proxy", "vmi_agent")
# Where Twisted may appear: where a reactor is needed, for its log, and for what twisted.cred defines.
TWISTED_AT = {
    "runtime.endpoints",
    "runtime.lifecycle",
    "runtime.logs",
    "runtime.reload",
    "runtime.tls",
    "runtime.transport",
    "runtime.unix_peer",
    "runtime.workers",
    "bmc_proxy.administration",
    "bmc_proxy.agent_choice",
    "bmc_proxy.agent_client",
    "bmc_proxy.agent_link",
    "bmc_proxy.attempts",
    "bmc_proxy.checkers",
    "bmc_proxy.client_status",
    "bmc_proxy.door",
    "bmc_proxy.cli",
    "bmc_proxy.deadline",
    "bmc_proxy.desk",
    "bmc_proxy.entrance",
    "bmc_proxy.front",
    "bmc_proxy.listeners",
    "bmc_proxy.notices",
    "bmc_proxy.own_crls",
    "bmc_proxy.service",
    "bmc_proxy.logins",
    "bmc_proxy.publications",
    "bmc_proxy.fair_slots",
    "bmc_proxy.fetch_queue",
    "bmc_proxy.known_sources",
    "bmc_proxy.work_queue",
    "bmc_proxy.workers.crew",
    "bmc_proxy.workers.first",
    "bmc_proxy.workers.lines",
    "bmc_proxy.workers.pipe",
    "bmc_proxy.workers.worker",
    "bmc_proxy.workers.worker_process",
    "bmc_proxy.http.channel",
    "bmc_proxy.http.edge",
    "bmc_proxy.http.pouring",
    "bmc_proxy.http.request",
    "bmc_proxy.http.site",
    "vmi_agent.cli.serve",
    "vmi_agent.server",
    "vmi_agent.service",
    "vmi_agent.upkeep",
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

    assert found == {"bmc_proxy.https", "bmc_proxy.client_crls"}


def test_crl_reading_is_imported_where_clients_have_certificates() -> None:
    """A proxy without --client-ca reads no CRL: the modules that do are imported inside functions alone."""
    readers = {"bmc_proxy.client_status", "bmc_proxy.client_crls", "bmc_proxy.own_crls"}
    text = "import sys, bmc_proxy.service, bmc_proxy.workers.worker, bmc_proxy.workers.first; print(*sys.modules)"
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
