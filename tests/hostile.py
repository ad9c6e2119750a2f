"""Damaged and made-up files against a reader: it reads them or says in one line why not, in bounded time and memory."""

import contextlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

from megadna.errors import UserError

SECONDS = 60  # a case takes milliseconds; the machine may be busy
MEGABYTES = 700

_TOKENS = [b"0", b"-1", b"1e999", b"9" * 30, b"null", b"[]", b"{}", b'""', b"true", b"NaN", b'"../x"', b"[" * 60, b"*a"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to eight bytes or stretches changed, removed, repeated, or replaced by what a parser minds."""
    text = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.choice([1, 1, 2, 4, 8, 40]))
        change = rng.randrange(6)
        if change == 0:
            text[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
        elif change == 1:
            del text[at:end]
        elif change == 2:
            text[at:at] = text[at:end] * rng.randint(1, 5)
        elif change == 3:
            text[at:end] = rng.choice(_TOKENS)
        elif change == 4:
            text[at:end] = b"\xff" * (end - at)
        elif at < len(text):
            text[at] ^= 1 << rng.randrange(8)
    return bytes(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text)


def refused(call: Callable[[], Any]) -> str:
    """Run `call`: "" where it succeeds, the message of its UserError otherwise; fails where that is not one line, for
    every other exception, and for what takes long or much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = ""
    with _alarm():
        try:
            call()
        except UserError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 2000, message
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < MEGABYTES, f"{grown} MB more"
    return message


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} seconds")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
