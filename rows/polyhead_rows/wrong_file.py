"""Recognises files that are not what their name says, and says what to do with them."""

from __future__ import annotations

from polyhead_rows.byte_source import UTF8_BOM, ByteSource
from polyhead_rows.errors import TableError

WORKBOOK = 'is a workbook or an archive; save its sheet as CSV ("CSV UTF-8" in Excel)'
MAGIC = {
    b"PAR1\x15": 'holds Parquet; name it .parquet or set format = "parquet"',
    b"ARROW1\0\0": 'holds Arrow; name it .arrow or set format = "arrow"',
    b"\x1f\x8b": "is compressed with gzip; name it with .gz at the end",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; name it with .zst at the end",
    b"BZh91AY&SY": "is compressed with bzip2; name it with .bz2 at the end",
    b"\xfd7zXZ\0": "is compressed with xz; name it with .xz at the end",
    b"PK\x03\x04": WORKBOOK,
    b"\xd0\xcf\x11\xe0": WORKBOOK,
    b"\x89HDF": "holds HDF5; write it as Parquet",
    b"SQLite format 3\0": "is a SQLite database; write its table as CSV",
}
WORKBOOK_NAMES = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".zip")
SAMPLE = 4096


def check_content(source: ByteSource, kind: str) -> None:
    """Refuses a file whose first bytes do not suit its format.

    Raises:
        TableError: with what it seems to be.
    """
    head = source.head
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise TableError(f"{source.name}: {_seems(head)}, not Parquet")
        return
    if kind == "arrow":
        if not head.startswith(b"ARROW1") and found_in(head) is not None:
            raise TableError(f"{source.name}: {found_in(head)}")
        return
    if source.encoding is None and (found := found_in(head)) is not None:
        raise TableError(f"{source.name}: {found}")
    if source.encoding is None and (order := _utf16_order(head[:SAMPLE])) is not None:
        raise TableError(f'{source.name}: looks like UTF-16 without a byte order mark; set encoding = "utf-16-{order}"')
    text = source.head_text.removeprefix(UTF8_BOM).decode("utf-8", "replace").lstrip(" \t\r\n")
    if kind == "jsonl" and (text.startswith("[{") or text.split("\n", 1)[0].rstrip() == "["):
        raise TableError(
            f"{source.name}: holds one JSON array; one object per line is wanted; "
            'for an array name it .json or set format = "json"'
        )
    if kind == "json" and not text.startswith("["):
        seen = 'for one object per line name it .jsonl or set format = "jsonl"' if text else "it is empty"
        raise TableError(f"{source.name}: must hold one array of objects; {seen}")


def found_in(head: bytes) -> str | None:
    """What a file that begins so is; None if it is none of the known ones."""
    return next((what for magic, what in MAGIC.items() if head.startswith(magic)), None)


def _seems(head: bytes) -> str:
    found = found_in(head)
    return found if found is not None else "is empty" if not head else f"begins with {head[:8]!r}"


def _utf16_order(head: bytes) -> str | None:
    """Nearly every second byte of Latin text in UTF-16 is zero, also at the ends of lines."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) < 8 or min(even, odd) or max(even, odd) < 0.4 * len(head):
        return None
    order = "le" if odd else "be"
    lines = head.decode(f"utf-16-{order}", "ignore").count("\n")
    return order if lines == head.count(b"\n") else None
