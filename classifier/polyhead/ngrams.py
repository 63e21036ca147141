"""N-grams: a linear model beside the network. Its logits are added to the network's, and it reads the text itself.

It weighs three kinds of terms by TF-IDF: words, pairs of neighbouring words, and the characters in words, which know
parts of words and misspellings. Unlike the network it also reads what is behind ``max_length``, up to
`MOST_CHARACTERS`. Training fits it and decides per head how much it counts. A checkpoint whose heads it does not help
has none.
See docs/decisions/0029-ngrams.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from polyhead.checkpoint_files import check_is_file
from polyhead.errors import CheckpointError, one_line, shortened

MOST_CHARACTERS = 4_000  # of a text
MOST_OF_A_TOKEN = 40  # characters of a piece between blanks whose n-grams are read
SIZES = (2, 3, 4, 5)  # of n-grams of characters
MOST_KNOWN = 50_000  # pieces between blanks that a reader remembers
MOST_WEIGHTS = 64_000_000  # that are read: 256 MB
MOST_TERM_BYTES = 64_000_000
MOST_TERMS = 1_000_000  # that are read: a short one takes 200 bytes of memory, and training makes at most 120,000
CHARACTERS = "~"  # begins the spelling of a term that is characters: "~ lo" begins a word, "~ve " ends one

# A word; or one character of a script that has no blanks between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

Ids = NDArray[np.int64]
UNKNOWN = -1


class TermReader:
    """Finds the terms of texts.

    Args:
        terms: the known ones. A word is spelled as it is, a pair with a blank between, characters behind `CHARACTERS`.
        learns: whether unknown terms are added to `ids`; otherwise they are left out.

    Attributes:
        ids: the number of each term.
    """

    def __init__(self, terms: Sequence[str] = (), *, learns: bool = False) -> None:
        self.ids: dict[str, int] = {term: number for number, term in enumerate(terms)}
        self.learns = learns
        self._known: dict[str, tuple[list[str], list[int]]] = {}  # piece: its words, and the ids of all but pairs

    def read(self, text: str) -> list[int]:
        """The numbers of the text's terms, each as often as it occurs."""
        found: list[int] = []
        words: list[str] = []
        for piece in text[:MOST_CHARACTERS].lower().split():
            its_words, ids = self._known.get(piece) or self._read_piece(piece)
            words += its_words
            found += ids
        number = self._number
        for first, second in pairwise(words):
            if (pair := number(f"{first} {second}")) != UNKNOWN:
                found.append(pair)
        return found

    def _read_piece(self, piece: str) -> tuple[list[str], list[int]]:
        words = _WORD.findall(piece)
        padded = f" {piece[:MOST_OF_A_TOKEN]} "
        terms = words + [
            CHARACTERS + padded[start : start + size]
            for size in SIZES
            for start in range(max(len(padded) - size + 1, 0))
        ]
        read = words, [number for number in map(self._number, terms) if number != UNKNOWN]
        if len(piece) <= MOST_OF_A_TOKEN:  # longer ones are rare, and would take much memory
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[piece] = read
        return read

    def _number(self, term: str) -> int:
        if self.learns:
            return self.ids.setdefault(term, len(self.ids))
        return self.ids.get(term, UNKNOWN)


@dataclass(frozen=True)
class Weighted:
    """The TF-IDF weights of texts, as rows of a sparse matrix.

    Attributes:
        starts: ``(texts + 1,)``: where each text begins in the others.
        terms: int64, ascending in each text.
        weights: float32.
    """

    starts: Ids
    terms: Ids
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Vocabulary:
    """The terms and how rare each is.

    Words with pairs, and characters, have length 1 each in every text, so neither drowns the other.

    Attributes:
        terms: as `TermReader` spells them.
        rarity: inverse document frequency of each, float32.
    """

    terms: Sequence[str]
    rarity: NDArray[np.float32]
    _reader: TermReader = field(init=False, repr=False)
    _is_characters: NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_reader", TermReader(self.terms))
        is_characters = np.fromiter((term.startswith(CHARACTERS) for term in self.terms), bool, len(self.terms))
        object.__setattr__(self, "_is_characters", is_characters)

    def weigh(self, texts: Sequence[str]) -> Weighted:
        """The weights of the terms of each text: (1 + ln(count)) * rarity, over the length of its kind."""
        read = [self._reader.read(text) for text in texts]
        size = max(len(self.terms), 1)
        rows = np.repeat(np.arange(len(texts)), [len(ids) for ids in read])
        ids = np.fromiter((number for ids in read for number in ids), np.int64, len(rows))
        places, counts = np.unique(rows * size + ids, return_counts=True)
        rows, ids = places // size, places % size
        weights = (1 + np.log(counts)) * self.rarity[ids]
        kinds = 2 * rows + self._is_characters[ids]
        lengths = np.sqrt(np.bincount(kinds, weights**2, 2 * len(texts)))
        starts = np.searchsorted(rows, np.arange(len(texts) + 1))
        return Weighted(starts, ids, (weights / lengths[kinds]).astype(np.float32))


@dataclass(frozen=True)
class NGrams:
    """A fitted model over the terms of a vocabulary.

    Attributes:
        weights: float32 ``(terms, schema.width)``.
        bias: float32 ``(schema.width,)``.
    """

    vocabulary: Vocabulary
    weights: torch.Tensor
    bias: torch.Tensor

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(n, schema.width)``. The logits of a text are the same bits alone and beside other texts."""
        found = self.vocabulary.weigh(texts)
        with torch.inference_mode():
            summed = torch.nn.functional.embedding_bag(
                torch.from_numpy(found.terms),
                self.weights,
                torch.from_numpy(found.starts[:-1]),
                mode="sum",
                per_sample_weights=torch.from_numpy(found.weights),
            )
            logits: NDArray[np.float32] = (summed + self.bias).numpy()
        return logits


def write_ngrams(path: Path, ngrams: NGrams) -> None:
    """Writes them as one file of tensors; the terms are UTF-8, with line breaks between."""
    spelled = "\n".join(ngrams.vocabulary.terms).encode()
    tensors = {
        "terms": torch.frombuffer(bytearray(spelled), dtype=torch.uint8),
        "rarity": torch.from_numpy(ngrams.vocabulary.rarity),
        "weights": ngrams.weights.contiguous(),
        "bias": ngrams.bias.contiguous(),
    }
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors creates the file with mode 0600


def read_ngrams(path: Path, width: int) -> NGrams:
    """Reads and validates what `write_ngrams` wrote.

    Args:
        width: of the schema.

    Raises:
        CheckpointError: the file is missing, damaged, or fits no schema of this width.
    """
    check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_shapes(path, shapes, width)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged ({one_line(error)})") from error
    for name, tensor in tensors.items():
        wanted = torch.uint8 if name == "terms" else torch.float32
        if tensor.dtype != wanted:
            raise CheckpointError(f"{path}: {name}: must be {wanted}, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name}: has numbers that are not finite")
    try:
        terms = tensors["terms"].numpy().tobytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: terms: is not UTF-8") from error
    if len(terms) != len(tensors["rarity"]) or len(set(terms)) != len(terms):
        raise CheckpointError(f"{path}: terms: must be {len(tensors['rarity'])} different lines")
    if not bool((tensors["rarity"] > 0).all()):
        raise CheckpointError(f"{path}: rarity: must be above 0")
    return NGrams(Vocabulary(terms, tensors["rarity"].numpy()), tensors["weights"], tensors["bias"])


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]], width: int) -> None:
    if set(shapes) != {"terms", "rarity", "weights", "bias"}:
        raise CheckpointError(
            f"{path}: must hold the tensors terms, rarity, weights and bias, got {shortened(sorted(shapes))}"
        )
    count, size = (math.prod(shapes[name]) for name in ("rarity", "terms"))
    wanted = {"rarity": (count,), "weights": (count, width), "bias": (width,), "terms": (size,)}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise CheckpointError(f"{path}: {name}: must have the shape {shape}, got {shapes[name]}")
    if not 0 < count <= MOST_TERMS or not 0 < count * width <= MOST_WEIGHTS or not 0 < size <= MOST_TERM_BYTES:
        raise CheckpointError(
            f"{path}: is empty, or larger than what is read ({MOST_TERMS:,} terms, {MOST_WEIGHTS:,} weights)"
        )
