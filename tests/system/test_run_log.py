"""What all tests together left in the logs: no password, token, cookie, key or body."""

from pathlib import Path

import pytest
from support.csrs import make_csr, pem
from support.processes import PASSWORDS, SIGN_CSR, basic, running_secure_pair
from support.run_log import LINES, SECRETS, secrets_in


@pytest.mark.last
def test_logs_of_the_whole_run_hold_no_secret(tmp_path: Path) -> None:
    """After every test, and a login in each way at least, no log line holds a secret, or what looks like one."""
    with running_secure_pair(tmp_path) as pair:
        body = {"CsrString": pem(make_csr())}
        assert pair.post("/login", {"data": ["root", PASSWORDS["root"]]}).status == 200
        assert pair.post("/login", {"data": ["root", "wrong-" + PASSWORDS["oper"]]}).status == 401
        assert pair.post("/login", {"data": [PASSWORDS["oper"], "root"]}).status == 401
        assert pair.post(SIGN_CSR, body, *pair.token()).status == 200
        assert pair.post(SIGN_CSR, body, *basic()).status == 200

    text = "".join(LINES)
    for word in ("logged in", "login failed", "signed", "request"):
        assert f'"event": "{word}"' in text
    assert len(SECRETS) >= len(PASSWORDS) + 3  # session and XSRF cookies, a token
    assert secrets_in(text) == []
