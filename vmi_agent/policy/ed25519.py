"""Whether 32 octets are an Ed25519 public key that only its owner can sign for (RFC 8032, 5.1).

The signature check of common libraries takes any 32 octets. Under a point of small order everybody can sign, and
octets that are no point, or another spelling of one, are a key to some readers and none to others.
"""

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_MINUS_ONE_ROOT = pow(2, (_P - 1) // 4, _P)
_SIGN = 1 << 255


def is_sound(octets: bytes) -> bool:
    """Return whether these 32 octets are the one spelling of a point on the curve whose order is not 1, 2, 4 or 8."""
    y = int.from_bytes(octets, "little") & ~_SIGN
    # y = 0 has order 4, ±1 orders 1 and 2; the four points of order 8 share two values of y.
    return y < _P and y not in (0, 1, _P - 1) and y * y % _P not in _ORDER_8_SQUARES and _is_on_curve(y)


def _is_on_curve(y: int) -> bool:
    # x² = (y² - 1) / (d·y² + 1) has a root (Euler's criterion; dividing by z is, for this, multiplying with it).
    square = (y * y - 1) * (_D * y * y + 1) % _P
    return pow(square, (_P - 1) // 2, _P) == 1


def _order_8_squares() -> set[int]:
    """Return y² of the points whose double has order 4, that is y = 0, that is x² = -y².

    The curve's equation -x² + y² = 1 + d·x²·y² then reads d·y⁴ + 2·y² - 1 = 0.
    """
    root = _square_root((1 + _D) % _P)
    return {(-1 + sign * root) * pow(_D, -1, _P) % _P for sign in (1, -1)}


def _square_root(value: int) -> int:
    # One of two candidates (RFC 8032, 5.1.3, 2); for the one value that is asked for, the second.
    root = pow(value, (_P + 3) // 8, _P) * _MINUS_ONE_ROOT % _P
    assert root * root % _P == value
    return root


_ORDER_8_SQUARES = frozenset(_order_8_squares())
