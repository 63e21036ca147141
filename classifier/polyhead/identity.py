"""What tells checkpoints and texts from others in logs and notes, without their content."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from polyhead.checkpoint_files import NGRAMS, OPTIONAL

ANSWERING = ("config.json", "model.safetensors", NGRAMS, "tokenizer.json")  # the files that decide the answers


def checkpoint_id(path: Path) -> str:
    """16 digits of a SHA-256 of what decides a checkpoint's answers: config, weights, n-grams and tokenizer."""
    digest = hashlib.sha256()
    for name in ANSWERING:
        if name in OPTIONAL and not (path / name).exists():
            continue
        with (path / name).open("rb") as file:
            digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def text_hash(text: str, key: bytes) -> str:
    """HMAC-SHA256 (RFC 2104) of the text's UTF-8, in hexadecimal."""
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()
