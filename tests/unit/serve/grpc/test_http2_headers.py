"""Compressed headers: the examples of RFC 7541, and what must be refused."""

from __future__ import annotations

import pytest

from millpond.serve.grpc.http2.hpack import HeaderDecoder, HpackError, literal


def test_the_requests_of_the_standard_are_read() -> None:
    decoder = HeaderDecoder(list)
    first = decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    assert first == [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ]
    second = decoder.decode(bytes.fromhex("828684be5886a8eb10649cbf"))
    assert second == [*first, (b"cache-control", b"no-cache")]
    third = decoder.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert third[1:3] == [(b":scheme", b"https"), (b":path", b"/index.html")]
    assert third[3:] == [(b":authority", b"www.example.com"), (b"custom-key", b"custom-value")]


def test_entries_leave_a_table_that_is_full() -> None:
    decoder = HeaderDecoder(list)
    for number in range(100):
        decoder.decode(b"\x40\x03abc\x7f\x00" + b"%0127d" % number)
    assert decoder.decode(b"\xbe")[0][1].endswith(b"99")
    with pytest.raises(HpackError, match="no header 100"):
        decoder.decode(b"\xe4")


def test_a_remembered_block_is_read_anew_after_the_table_changed() -> None:
    decoder = HeaderDecoder(list)
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    decoder.decode(b"\x40\x01c\x01d")
    assert decoder.decode(b"\xbe") == [(b"c", b"d")]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 255, 5000])
def test_what_is_written_is_read(size: int) -> None:
    assert HeaderDecoder(list).decode(literal(b"grpc-message", b"x" * size)) == [(b"grpc-message", b"x" * size)]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (b"\x80", "no header 0"),
        (b"\xff\xff\xff\xff\xff\xff", "too large"),
        (b"\x00\x05ab", "cut off"),
        (b"\x00", "cut off"),
        (b"\x3f\xff\xff\x03", "larger than it may be"),
        (b"\x00\x81\xff\x00", "does not end"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "end of the code"),
        (b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 20, "too many"),
    ],
)
def test_a_broken_block_is_refused(block: bytes, words: str) -> None:
    with pytest.raises(HpackError, match=words):
        HeaderDecoder(list).decode(block)
