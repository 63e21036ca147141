"""The guard and Triton read the same JSON: however a request is written, Triton sees what the guard has checked."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.local_server import LocalServer
from tests.e2e.plain_json import infer_json, json_body
from tests.e2e.proxied import Proxied

INFER = "/v2/models/gpt2_classifier/infer"
REQUEST = json_body(["Rain.", "Snow."], ["SCORES", "TOKEN_COUNT"], top_k=2)
GOOD = json.dumps(REQUEST).encode()
TEXTS = b"".join(struct.pack("<I", len(text)) + text for text in (b"Rain.", b"Snow."))


def with_more(more: bytes) -> bytes:
    """GOOD with more members at its end."""
    return GOOD[:-1] + b", " + more + b"}"


def swapped(old: bytes, new: bytes) -> bytes:
    """GOOD with one part in the place of another."""
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


CRASH = b'{"name": "PREDICTION", "parameters": {"classification": 3}}'
# Ways to write JSON that two parsers may read differently.
WRITTEN: dict[str, bytes] = {
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD.decode().encode("utf-16-le"),
    "NUL before": b"\0" + GOOD,
    "NUL after": GOOD + b"\0",
    "NUL and another request after": GOOD + b"\0" + GOOD,
    "NUL in a name": swapped(b'"outputs"', b'"outputs\0"'),
    "NUL in a string": swapped(b'"SCORES"', b'"SCORES\0"'),
    "a control character in a text": swapped(b"Rain.", b"Ra\x01in."),
    "a line end in a text": swapped(b"Rain.", b"Ra\nin."),
    "DEL in a text": swapped(b"Rain.", b"Ra\x7fin."),
    "a comment": b"/* */" + GOOD,
    "a comment to the line's end": b"//\n" + GOOD,
    "a comma at the end": GOOD[:-1] + b",}",
    "a comma at the end of a list": swapped(b"]", b",]"),
    "two values": GOOD + GOOD,
    "a brace too many": GOOD + b"}",
    "spaces": b" \t\r\n" + GOOD + b"\n\r\t ",
    "a vertical tab": b"\v" + GOOD,
    "a form feed": GOOD + b"\f",
    "a no-break space": "\u00a0".encode() + GOOD,
    "single quotes": GOOD.replace(b'"', b"'"),
    "names without quotes": swapped(b'"outputs"', b"outputs"),
    "a name in capitals": with_more(b'"OUTPUTS": [' + CRASH + b"]"),
    "a name with a space": with_more(b'"outputs ": [' + CRASH + b"]"),
    "outputs twice": with_more(b'"outputs": [' + CRASH + b"]"),
    "outputs twice, first the other": b'{"outputs": [' + CRASH + b"], " + GOOD[1:],
    "outputs with an escape": with_more(b'"\\u006futputs": [' + CRASH + b"]"),
    "outputs, overlong": with_more(b'"\xc1\xafutputs": [' + CRASH + b"]"),
    "outputs and an overlong NUL": with_more(b'"outputs\xc0\x80": [' + CRASH + b"]"),
    "outputs and half a character": with_more(b'"outputs\xc3": [' + CRASH + b"]"),
    "a quote, overlong": swapped(b"Rain.", b'\xc0\xa2, "x": 1'),
    "half a character before a quote": swapped(b"Rain.", b"Rain.\xe2\x82"),
    "half a character before a backslash": swapped(b"Rain.", b"Rain.\xf0\x9f\\n"),
    "a name that is no UTF-8": with_more(b'"\xff\xfe": 1'),
    "two names that are no UTF-8": with_more(b'"\xff": 1, "\xfe": 2'),
    "__proto__ with outputs": with_more(b'"__proto__": {"outputs": [' + CRASH + b"]}"),
    "__proto__ for outputs": swapped(b'"outputs"', b'"__proto__"'),
    "constructor": with_more(b'"constructor": {"name": "x"}, "toString": 1, "hasOwnProperty": 1'),
    "a name twice, deep inside": with_more(b'"more": [{"a": [{"b": 1, "b": 2}]}]'),
    "a name twice in an input": swapped(b'"datatype"', b'"datatype": "BYTES", "datatype"'),
    "a name twice in parameters": swapped(b'"top_k"', b'"top_k": 1, "top_k"'),
    "parameters twice in an output": swapped(
        b'{"name": "SCORES"', b'{"parameters": {}, "parameters": {"classification": 1}, "name": "SCORES"'
    ),
    "the empty name twice": with_more(b'"": 1, "": 2'),
    "1.0 for a shape": swapped(b"[2, 1]", b"[2.0, 1]"),
    "1e0 for a shape": swapped(b"[2, 1]", b"[2, 1e0]"),
    "20e-1 for a shape": swapped(b"[2, 1]", b"[20e-1, 1]"),
    "-0 in a shape": swapped(b"[2, 1]", b"[-0, 1]"),
    "02 for a shape": swapped(b"[2, 1]", b"[02, 1]"),
    "+2 for a shape": swapped(b"[2, 1]", b"[+2, 1]"),
    "0x2 for a shape": swapped(b"[2, 1]", b"[0x2, 1]"),
    "2^53 + 2 for a shape": swapped(b"[2, 1]", b"[9007199254740994, 1]"),
    "2^64 + 2 for a shape": swapped(b"[2, 1]", b"[18446744073709551618, 1]"),
    "spaces in a shape": swapped(b"[2, 1]", b"[ 2\n,\t1 ]"),
    "a shape with an escape": swapped(b'"shape"', b'"sh\\u0061pe"'),
    **{
        f"{number} for a timeout": swapped(b'"top_k": 2', b'"timeout": ' + number.encode())
        for number in ("1.0", "1e1", "-0", "-1", "1e400", "9007199254740993", "18446744073709551616", "9" * 31)
    },
    **{
        f"{number} for something": with_more(b'"more": ' + number.encode())
        for number in ("1.0", "-0", "-0.0", "1e22", "1E+22", "1e299", "1e301", "1e308", "1.8e308", "1e-400", "5e-324",
                       "9" * 30, "9" * 31, "0." + "3" * 28, "0." + "3" * 40, "1.", ".5", "1e", "1e+", "--1", "1_0",
                       "NaN", "Infinity", "-Infinity", "nan", "TRUE", "None", "undefined", "1e0000000000000000000001")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def proxied(served: LocalServer) -> Iterator[Proxied]:
    """A proxy before the server."""
    places = {"INFERENCE": served.url("http"), "METRICS": served.url("metrics"), "PROBE": served.url("probe")}
    with Proxied(**places) as running:
        yield running


def as_binary(body: bytes) -> bytes:
    """The JSON of the same request with binary tensors."""
    return body.replace(b'"data": ["Rain.", "Snow."]', b'"parameters": {"binary_data_size": %d}' % len(TEXTS))


def read_strictly(body: bytes) -> Any:
    """The request as a third reader sees it, which takes no name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(body.decode("utf-8", "replace"), object_pairs_hook=once, strict=True)


@pytest.mark.parametrize("body", WRITTEN.values(), ids=WRITTEN)
def test_triton_reads_what_the_guard_read(served: LocalServer, proxied: Proxied, body: bytes) -> None:
    """However JSON is written, it is refused, or Triton answers exactly what a strict reader sees in it."""
    status, _, said = proxied.ask(INFER, body)
    assert status in (200, 400), said
    if status == 200:
        assert (status, json.loads(said)) == infer_json(served.url("http"), body)
        outputs = [output["name"] for output in json.loads(said)["outputs"]]
        wanted = read_strictly(body).get("outputs")
        assert wanted is None or outputs == [output["name"] for output in wanted]
    binary = as_binary(body)
    status, _, said = proxied.ask(INFER, binary + TEXTS, Inference_Header_Content_Length=str(len(binary)))
    assert status in (200, 400), said
    assert infer_json(served.url("http"), GOOD)[0] == 200
    assert sum("ready http=" in line for line in served.lines) == 1, "the server was restarted"


def test_what_is_written_in_an_ordinary_way_passes(proxied: Proxied) -> None:
    """The strict reader takes what JSON libraries write."""
    for name in (
        "spaces",
        "spaces in a shape",
        "a name in capitals",
        "constructor",
        "DEL in a text",
        "1.0 for something",
    ):
        assert proxied.ask(INFER, WRITTEN[name])[0] == 200, name
    for separators in ((",", ":"), (" , ", " : ")):
        body = json.dumps(REQUEST | {"parameters": {"threshold": 0.0, "top_k": 2}}, separators=separators, indent=3)
        assert proxied.ask(INFER, body.encode())[0] == 200
