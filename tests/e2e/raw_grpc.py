"""A gRPC call over hand-made HTTP/2 frames, with metadata that no gRPC library would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x9
END_STREAM, END_HEADERS, ACKNOWLEDGE = 0x1, 0x4, 0x1
FRAME_BYTES = 16_384


def is_answered(place: str, method: str, metadata: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a unary call with an empty request is answered with a message, and not with an error."""
    host, _, port = place.rpartition(":")
    names = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/inference.GRPCInferenceService/{method}".encode()),
        (b":authority", place.encode()), (b"te", b"trailers"), (b"content-type", b"application/grpc"), *metadata,
    ]  # fmt: skip
    block = b"".join(
        b"\x00" + _string(name) + _string(value) for name, value in names
    )  # literal, without Huffman codes
    parts = [block[start : start + FRAME_BYTES] for start in range(0, len(block), FRAME_BYTES)]
    frames = [_frame(SETTINGS, 0, 0, b"")]
    for number, part in enumerate(parts):
        flags = END_HEADERS if number == len(parts) - 1 else 0
        frames.append(_frame(CONTINUATION if number else HEADERS, flags, 1, part))
    frames.append(_frame(DATA, END_STREAM, 1, bytes(5)))  # one message of no bytes
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(PREFACE + b"".join(frames))
        return _has_message(connection)


def _has_message(connection: socket.socket) -> bool:
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            size, kind, flags, number = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
            content = stream.read(size)
            if kind == SETTINGS and not flags & ACKNOWLEDGE:
                connection.sendall(_frame(SETTINGS, ACKNOWLEDGE, 0, b""))
            elif kind == PING and not flags & ACKNOWLEDGE:
                connection.sendall(_frame(PING, ACKNOWLEDGE, 0, content))
            elif kind == DATA and number == 1:
                return True
            elif kind in (GOAWAY, RESET) or (kind == HEADERS and flags & END_STREAM):
                return False
    return False


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + content


def _string(text: bytes) -> bytes:
    """A string as HPACK writes it: its length as an integer with a prefix of 7 bits, then its bytes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = b"", len(text) - 127
    while length >= 128:
        rest += bytes([length % 128 + 128])
        length //= 128
    return bytes([127]) + rest + bytes([length]) + text
