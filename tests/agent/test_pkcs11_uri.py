"""What names a key in a token, and the PIN that opens it: PKCS#11 URIs and PIN files, read and refused."""

from pathlib import Path

import pytest

from vmi_agent.keys import CustodyError
from vmi_agent.keys.pkcs11.token import read_pin
from vmi_agent.keys.pkcs11.uri import KeyUri


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("pkcs11:token=vmi;object=ca;id=%01%AB;type=private", KeyUri("vmi", "ca", b"\x01\xab")),
        ("pkcs11:token=vmi;id=%00;type=private", KeyUri("vmi", "", b"\0")),
        ("pkcs11:token=a%20b%3B%3D%25;object=%C3%A9%2F;id=a;type=private", KeyUri("a b;=%", "é/", b"a")),
        ("pkcs11:id=%61;token=vmi", KeyUri("vmi", "", b"a")),
        ("pkcs11:type=private;object=a=b&c;token=[v]:m@i!;id=~%7e", KeyUri("[v]:m@i!", "a=b&c", b"~~")),
    ],
)
def test_uri_is_read_and_written(uri: str, name: KeyUri) -> None:
    """A URI says what it says in whatever order, and what is written is read as the same."""
    assert KeyUri.parse(uri) == name
    assert KeyUri.parse(str(name)) == name
    assert str(name).startswith("pkcs11:token=")
    assert str(name).endswith(";type=private")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pkcs11:",
        "PKCS11:token=vmi;id=%01",
        "pkcs12:token=vmi;id=%01",
        "pkcs11:token=vmi",
        "pkcs11:id=%01",
        "pkcs11:token=;id=%01",
        "pkcs11:token=vmi;id=",
        "pkcs11:token=vmi;id=%01;",
        "pkcs11:token=vmi;;id=%01",
        "pkcs11:token=vmi;id=%01;id=%01",
        "pkcs11:token=vmi;id=%01;type=public",
        "pkcs11:token=vmi;id=%01;type=",
        "pkcs11:token=vmi;id=%1",
        "pkcs11:token=vmi;id=%0g",
        "pkcs11:token=vmi;id=%01;serial=1",
        "pkcs11:token=vmi;id=%01;pin-value=1234",
        "pkcs11:token=vmi;id=%01?pin-value=1234",
        "pkcs11:token=vmi;id=%01?module-path=/m.so",
        "pkcs11:token=v mi;id=%01",
        "pkcs11:token=vmi/;id=%01",
        "pkcs11:token=vmi;id=é",
        "pkcs11:token=vmi;id=%01\n",
        "pkcs11:token=%ff;id=%01",
        "pkcs11:token=vmi;object=%ff;id=%01",
        "pkcs11:Token=vmi;id=%01",
        "pkcs11:token=" + "v" * 33 + ";id=%01",
    ],
)
def test_uri_that_is_refused(uri: str) -> None:
    """Whatever is not the name of a private key is refused, a PIN in it above all, and not repeated."""
    with pytest.raises(CustodyError, match="the key's PKCS#11 URI") as refused:
        KeyUri.parse(uri)

    assert "1234" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (b"", 0o600, "is not one line"),
        (b"\n", 0o600, "is not one line"),
        (b"12345678\n12345678\n", 0o600, "is not one line"),
        (b"\xff\n", 0o600, "is not UTF-8"),
        (b"12345678\n", 0o640, "chmod 600"),
    ],
)
def test_pin_file_that_is_refused(tmp_path: Path, content: bytes, mode: int, told: str) -> None:
    """A PIN file is one line that nobody else reads; what is in it is not repeated."""
    path = tmp_path / "pin"
    path.write_bytes(content)
    path.chmod(mode)

    with pytest.raises(CustodyError, match=told) as refused:
        read_pin(path)
    assert "12345678" not in str(refused.value)


def test_pin_file_is_read(tmp_path: Path) -> None:
    """The line's end is not part of the PIN, other blanks are; a missing file is told of."""
    path = tmp_path / "pin"
    with pytest.raises(CustodyError, match="No such file"):
        read_pin(path)
    path.touch(0o600)
    path.write_text(" 1234 \n")

    assert read_pin(path) == " 1234 "
