"""The exchange between real processes, with curl as the HMC and openssl as the judge."""

import base64
import hashlib
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from support.csrs import OPENSSL_KEYS, make_csr, openssl_csr, outdated, pem, resign
from support.judges import assert_is_leaf, assert_openssl_accepts, assert_same_subject_and_key, split_chain
from support.processes import (
    IBM_ROOT,
    IBM_SIGN_CSR,
    SIGN_CSR,
    Answer,
    Pair,
    Process,
    curl,
    port_of,
    post,
    run,
    running_pair,
    start_agent,
    start_proxy,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield an agent and a proxy that many tests share."""
    with running_pair(tmp_path_factory.mktemp("pair")) as running:
        yield running


def chain_in(answer: Answer) -> str:
    """Return the chain of a phosphor answer, which must be well-formed."""
    assert answer.status == 200, answer.body
    assert answer.json == {"data": [answer.json["data"][0]], "message": "200 OK", "status": "ok"}
    return str(answer.json["data"][0])


# What is signed


@pytest.mark.parametrize("key", OPENSSL_KEYS)
def test_sign_csr_for_each_key(pair: Pair, tmp_path: Path, key: str) -> None:
    """A CSR of each kind of key comes back with its subject and its key, in a chain that openssl accepts."""
    csr = openssl_csr(tmp_path, key)

    chain = chain_in(post(pair.url + SIGN_CSR, json.dumps({"data": [csr.read_text()]})))

    leaf, root = split_chain(chain)
    assert_openssl_accepts(chain, tmp_path)
    assert_same_subject_and_key(csr, leaf)
    certificates = [x509.load_pem_x509_certificate(each.encode()) for each in (leaf, root)]
    assert_is_leaf(*certificates, rsa=key.startswith("rsa"))


def test_sign_csr_with_the_designs_own_curl(pair: Pair, tmp_path: Path) -> None:
    """The first design's command, to the letter, run by a shell."""
    openssl_csr(tmp_path, "rsa2048")
    command = (
        'curl -s -c cjar -k -X POST -H "Content-Type: application/json" '
        '-d "{\\"data\\":[CsrString:\\"$(cat rsa2048.csr)\\"]  }" ' + pair.url + SIGN_CSR
    )

    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)

    answer = json.loads(done.stdout)
    assert answer == {"data": answer["data"], "message": "200 OK", "status": "ok"}
    assert_openssl_accepts(answer["data"][0], tmp_path)


FORMS = {
    "phosphor": '{"data":["%s"]}',
    "phosphor, literal reader": '{"data":[{"CsrString":"%s"}]}',
    "phosphor, object": '{"data":{"CsrString":"%s"}}',
    "firmware": '{"CsrString":"%s"}',
    "the design's letters": '{"data":[CsrString:"%s"]  }',
}
BREAKS = {
    "escaped": "\\n",
    "real": "\n",
    "escaped CRLF": "\\r\\n",
    "real CRLF": "\r\n",
    "lost": "",
}


@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("line_break", BREAKS.values(), ids=BREAKS.keys())
def test_sign_csr_in_each_form(pair: Pair, route: str, form: str, line_break: str) -> None:
    """Each body form is understood on both routes, whatever became of its line breaks."""
    csr = make_csr()
    text = pem(csr).replace("\n", line_break)

    answer = post(pair.url + route, form % text)

    assert answer.status == 200, answer.body
    chain = answer.json["data"][0] if route == SIGN_CSR else answer.json["Certificate"]
    leaf = x509.load_pem_x509_certificate(split_chain(chain)[0].encode())
    assert leaf.public_key() == x509.load_der_x509_csr(csr).public_key()
    assert "\\" not in chain
    assert '\\"' not in answer.body


def test_sign_csr_as_curl_reads_a_file(pair: Pair, tmp_path: Path) -> None:
    """`curl -d @file` strips the line breaks of a whole body."""
    (tmp_path / "body").write_text('{"data":["' + pem(make_csr()) + '"]}')

    answer = curl(pair.url + SIGN_CSR, "-H", "Content-Type: application/json", "-d", f"@{tmp_path / 'body'}")

    assert len(split_chain(chain_in(answer))) == 2


def test_sign_csr_as_base64_of_der(pair: Pair) -> None:
    """Base64 of DER, without armour, is a CSR as well."""
    answer = post(pair.url + SIGN_CSR, json.dumps({"data": [base64.b64encode(make_csr()).decode()]}))

    assert len(split_chain(chain_in(answer))) == 2


def test_sign_csr_with_text_and_the_old_label(pair: Pair, tmp_path: Path) -> None:
    """Text before the armour, and the label of older tools, as `openssl req -newhdr -text` writes them."""
    csr = openssl_csr(tmp_path, extra=["-newhdr", "-text"])
    assert "BEGIN NEW CERTIFICATE REQUEST" in csr.read_text()

    answer = post(pair.url + SIGN_CSR, json.dumps({"data": [csr.read_text()]}))

    assert len(split_chain(chain_in(answer))) == 2


def test_sign_csr_on_the_ibm_route_gives_the_leaf(pair: Pair, tmp_path: Path) -> None:
    """Shipped firmware's route answers the client certificate; the root has its own route, and the two go together."""
    csr = openssl_csr(tmp_path)
    leaf = post(pair.url + IBM_SIGN_CSR, json.dumps({"CsrString": csr.read_text()})).json
    root = curl(pair.url + IBM_ROOT, "-H", "Content-Type: application/json")

    assert list(leaf) == list(root.json) == ["Certificate"]
    assert "age" not in root.headers
    assert len(split_chain(leaf["Certificate"])) == 1
    assert_openssl_accepts(leaf["Certificate"] + root.json["Certificate"], tmp_path)


def test_sign_csr_again_gives_the_same_certificate(pair: Pair) -> None:
    """A repeated CSR gets the same certificate; so does one with an Idempotency-Key."""
    body = json.dumps({"data": [pem(make_csr())]})

    answers = [post(pair.url + SIGN_CSR, body), post(pair.url + SIGN_CSR, body, "-H", "Idempotency-Key: 1")]

    assert chain_in(answers[0]) == chain_in(answers[1])


def test_logs_of_both_processes_can_be_joined(pair: Pair) -> None:
    """The CSR's hash leads from the HTTP request id to the agent's line, which has the serial number."""
    csr = make_csr()
    body = json.dumps({"data": [pem(csr)]})
    answers = [post(pair.url + SIGN_CSR, body) for _ in range(2)]
    csr_sha256 = hashlib.sha256(csr).hexdigest()
    leaf = x509.load_pem_x509_certificate(split_chain(chain_in(answers[0]))[0].encode())

    for answer, word in zip(answers, ("signed", "signed before"), strict=True):
        request_id = answer.headers["x-request-id"]
        assert pair.proxy.wait_for("request", request_id=request_id)["csr_sha256"] == csr_sha256
        assert pair.agent.wait_for(word, csr_sha256=csr_sha256)["serial"] == f"{leaf.serial_number:034x}"


def test_answers_carry_the_fixed_headers(pair: Pair) -> None:
    """Every answer says that it is JSON, not to be kept and not to be guessed at, and nothing about the server."""
    for answer in (curl(pair.url + IBM_ROOT), curl(pair.url + "/nothing")):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
        assert "server" not in answer.headers


# What is refused

GOOD = make_csr()
CSR_PROBLEMS = {
    "no PKCS#10": (base64.b64encode(b"0123456789").decode(), 400, "csr.malformed"),
    "a wrong character": (pem(GOOD)[:100] + "!" + pem(GOOD)[101:], 400, "csr.malformed"),
    "empty": ("", 400, "csr.malformed"),
    "two CSRs": (pem(GOOD) * 2, 400, "csr.malformed"),
    "trailing text": (pem(GOOD) + "and more", 400, "csr.malformed"),
    "trailing DER": (base64.b64encode(GOOD + b"\0").decode(), 400, "csr.malformed"),
    "too large": (base64.b64encode(bytes(16 * 1024 + 1)).decode(), 413, "csr.too_large"),
    "bad signature": (pem(GOOD[:-1] + bytes((GOOD[-1] ^ 1,))), 400, "csr.bad_signature"),
    "outdated hash": (pem(outdated(hashes.SHA1(), "2a864886f70d010105")), 400, "csr.bad_signature"),
    "weak key": (pem(make_csr(key="rsa1024")), 400, "csr.weak_key"),
    "CA:TRUE": (pem(make_csr(x509.BasicConstraints(True, None))), 400, "csr.policy"),
    "empty subject": (pem(make_csr(subject=x509.Name([]))), 400, "csr.policy"),
    "version 2": (base64.b64encode(resign(GOOD, version=b"\x02\x01\x01")).decode(), 400, "csr.malformed"),
}
BODY_PROBLEMS = {
    "no JSON": "hello",
    "empty body": "",
    "no CSR": "{}",
    "null": '{"data":null}',
    "no string": '{"data":[1]}',
    "two in the list": json.dumps({"data": [pem(GOOD), pem(GOOD)]}),
    "a member twice": '{"CsrString":"a","CsrString":"b"}',
    "trailing data": json.dumps({"data": [pem(GOOD)]}) + "x",
    "deep": "[" * 30_000,
    "not UTF-8": b'{"CsrString":"\xff"}',
    "NaN": '{"CsrString":NaN}',
}


def assert_problem(answer: Answer, route: str, status: int, code: str, *, in_body: bool = False) -> None:
    """Check an error's status, its code and request id in its dialect's shape, and that it leaks nothing."""
    assert answer.status == status, answer.body
    if route == SIGN_CSR:
        data = answer.json["data"]
        assert answer.json["status"] == "error"
        assert answer.json["message"].startswith(f"{status} ")
        found, text, request_id = data["code"], data["description"], data["request_id"]
    else:
        found, text, request_id = answer.json["Code"], answer.json["Message"], answer.json["RequestId"]
        if in_body:
            assert answer.json["error"]["@Message.ExtendedInfo"][0]["Message"] == text
        elif code.startswith("csr."):
            assert answer.json["Description"] == "Bad CSR"
    assert (found, request_id) == (code, answer.headers["x-request-id"])
    assert text.endswith(".") or "Send" in text
    assert not re.search('Traceback|File "|vmi_agent|bmc_proxy|twisted', answer.body)


@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
@pytest.mark.parametrize(("text", "status", "code"), CSR_PROBLEMS.values(), ids=CSR_PROBLEMS.keys())
def test_sign_csr_refuses(pair: Pair, route: str, text: str, status: int, code: str) -> None:
    """Each flaw of a CSR has its status and code, in both dialects."""
    assert_problem(post(pair.url + route, json.dumps({"CsrString": text})), route, status, code)


@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
@pytest.mark.parametrize("body", BODY_PROBLEMS.values(), ids=BODY_PROBLEMS.keys())
def test_sign_csr_refuses_a_body(pair: Pair, route: str, body: str | bytes) -> None:
    """Each flaw of a body is malformed, in both dialects."""
    assert_problem(post(pair.url + route, body), route, 400, "csr.malformed", in_body=True)


@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
def test_sign_csr_with_another_method_or_type(pair: Pair, route: str) -> None:
    """405 with Allow, 415, and a charset parameter is no other type."""
    wrong_method = curl(pair.url + route)
    wrong_type = curl(pair.url + route, "-d", "{}")
    with_charset = curl(pair.url + route, "-H", "Content-Type: application/json; charset=utf-8", "-d", "{}")

    assert_problem(wrong_method, route, 405, "http.method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"
    assert_problem(wrong_type, route, 415, "http.unsupported_media_type")
    assert_problem(with_charset, route, 400, "csr.malformed", in_body=True)


@pytest.mark.parametrize("chunked", [[], ["-H", "Transfer-Encoding: chunked"]], ids=["announced", "chunked"])
@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
def test_body_over_its_limit_is_cut_off(pair: Pair, route: str, chunked: list[str]) -> None:
    """A body over 64 KiB is refused while it streams, and the client sees the answer."""
    at_limit = post(pair.url + route, b" " * 65_536, *chunked)
    over = post(pair.url + route, b" " * 65_537, *chunked)
    far_over = post(pair.url + route, b" " * 5_000_000, "-H", "Expect:", *chunked)

    assert_problem(at_limit, route, 400, "csr.malformed", in_body=True)
    for answer in (over, far_over):
        assert_problem(answer, route, 413, "csr.too_large")
        assert answer.headers["connection"] == "close"


def test_header_over_its_limit_is_refused(pair: Pair) -> None:
    """8 KiB of header are read, more get 431."""
    assert curl(pair.url + IBM_ROOT, "-H", "X: " + "x" * 7_900).status == 200
    for header in (["-H", "X: " + "x" * 8_192], [word for n in range(90) for word in ("-H", f"X-{n}: " + "x" * 90)]):
        answer = curl(pair.url + IBM_ROOT, *header)
        assert answer.status == 431
        assert answer.json["Code"] == "http.header_too_large"


# The agent away and back


def test_agent_away_and_back(tmp_path: Path) -> None:
    """503 at once while the agent is away, the root all the same, then 200 again without touching the proxy."""
    with running_pair(tmp_path) as pair:
        root = curl(pair.url + IBM_ROOT).json
        body = json.dumps({"data": [pem(make_csr())]})
        first = chain_in(post(pair.url + SIGN_CSR, body))
        assert pair.agent.stop() == 0
        pair.proxy.wait_for("agent lost")

        pair.proxy.wait_for("agent not there, trying on")
        away = post(pair.url + SIGN_CSR, body)
        away_ibm = post(pair.url + IBM_SIGN_CSR, body)
        kept = curl(pair.url + IBM_ROOT)

        assert_problem(away, SIGN_CSR, 503, "agent.unavailable")
        assert_problem(away_ibm, IBM_SIGN_CSR, 503, "agent.unavailable")
        assert away_ibm.json["Description"] == "Host is not ready to serve the request"
        assert int(away.headers["retry-after"]) > 0
        assert kept.json == root
        assert int(kept.headers["age"]) >= 0
        with start_agent(pair.agent_state, pair.agent_port) as again:
            again.wait_for("ready")
            pair.proxy.wait_for("agent connected")
            assert chain_in(post(pair.url + SIGN_CSR, body)) == first
            assert "age" not in curl(pair.url + IBM_ROOT).headers
            assert again.stop() == 0
        assert pair.proxy.stop() == 0


def test_root_is_kept_over_a_restart_of_the_proxy(tmp_path: Path) -> None:
    """A proxy that starts while the agent is away tells the last root, with its age; a new root replaces it."""
    with running_pair(tmp_path) as pair:
        root = curl(pair.url + IBM_ROOT).json
        pair.agent.stop()
        pair.proxy.stop()
    agent_at = f"tcp:127.0.0.1:{pair.agent_port}"
    with start_proxy(tmp_path / "proxy", [agent_at]) as proxy:
        url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}"
        kept = curl(url + IBM_ROOT)
        assert kept.json == root
        assert "age" in kept.headers
        with start_agent(tmp_path / "another agent", pair.agent_port):
            proxy.wait_for("agent connected")
            renewed = curl(url + IBM_ROOT)
            assert renewed.status == 200
            assert renewed.json != root
    assert renewed.json["Certificate"] == (tmp_path / "proxy" / "root.pem").read_text()


def test_root_that_was_never_received(tmp_path: Path) -> None:
    """Without an agent, ever, there is no root to tell."""
    with start_proxy(tmp_path, ["tcp:127.0.0.1:1"]) as proxy:
        answer = curl(f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}{IBM_ROOT}")

    assert (answer.status, answer.json["Code"]) == (503, "agent.unavailable")


def test_unix_sockets(tmp_path: Path) -> None:
    """Both listeners may be unix sockets."""
    channel, http = tmp_path / "a.sock", tmp_path / "h.sock"
    agent_command = ["vmi-agent", "serve", "--state-dir", str(tmp_path / "a"), "--listen", f"unix:{channel}"]
    proxy_command = ["bmc-proxy", "serve", "--state-dir", str(tmp_path / "p"), "--agent", f"unix:{channel}"]
    with Process(*agent_command) as agent:
        assert agent.wait_for("ready")["listen"] == [f"unix:{channel}"]
        with Process(*proxy_command, "--http", f"unix:{http}", "--anonymous-loopback") as proxy:
            proxy.wait_for("agent connected")
            body = json.dumps({"data": [pem(make_csr())]})
            answer = post(f"http://bmc{SIGN_CSR}", body, "--unix-socket", str(http))
            assert len(split_chain(chain_in(answer))) == 2


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"])
def test_stop_with_a_connection_open(tmp_path: Path, with_signal: int, sent: bytes) -> None:
    """Both end with status 0 on SIGTERM and on SIGINT, without waiting for a client that is not being answered."""
    with running_pair(tmp_path) as pair, socket.create_connection(("127.0.0.1", port_of(pair.url))) as idle:
        idle.sendall(sent)
        assert curl(pair.url + IBM_ROOT).status == 200  # by now the proxy has read what was sent
        assert pair.proxy.stop(with_signal) == 0
        assert pair.agent.stop(with_signal) == 0
        assert not any("abandoned" in line for line in pair.proxy.lines + pair.agent.lines)


def test_certificates_are_listed_and_shown(pair: Pair, tmp_path: Path) -> None:
    """`certs list` and `certs show` tell what was issued, to whom, while the agent runs; `ca show` the root."""
    csr = openssl_csr(tmp_path)
    leaf, root = split_chain(chain_in(post(pair.url + SIGN_CSR, json.dumps({"data": [csr.read_text()]}))))
    certificate = x509.load_pem_x509_certificate(leaf.encode())
    serial = f"{certificate.serial_number:034x}"
    state = ["--state-dir", str(pair.agent_state)]

    listed = json.loads(run("vmi-agent", "certs", "list", *state, "--json").stdout)
    shown = json.loads(run("vmi-agent", "certs", "show", serial, *state, "--json").stdout)
    as_text = run("vmi-agent", "certs", "show", serial.upper(), *state).stdout
    ca = json.loads(run("vmi-agent", "ca", "show", *state, "--json").stdout)

    [entry] = [entry for entry in listed if entry["serial"] == serial]
    assert entry | {"certificate": leaf} == shown
    assert (entry["user"], entry["method"], entry["address"]) == ("anonymous", "anonymous-loopback", "127.0.0.1")
    assert entry["subject"] == certificate.subject.rfc4514_string()
    assert as_text.endswith(leaf)
    assert ca["certificate"] == root
    assert serial in run("vmi-agent", "certs", "list", *state).stdout
    assert run("vmi-agent", "certs", "show", serial.lstrip("0"), *state).returncode == 0
    unknown = run("vmi-agent", "certs", "show", "00", *state)
    assert (unknown.returncode, unknown.stderr) == (
        1,
        "Error: no certificate with the serial number 00 was issued here\n",
    )


def test_logs_hold_no_body(pair: Pair) -> None:
    """After all of the above no log line holds a piece of a CSR or of a certificate."""
    text = "".join(pair.agent.lines + pair.proxy.lines)
    assert '"event": "signed"' in text
    assert not re.search("MII[A-Za-z0-9+/]{20}|BEGIN|PRIVATE", text)
