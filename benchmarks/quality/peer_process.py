"""The process of a peer: ``python -m benchmarks.quality.peer_process PEER DATA OUT.npz`` answers the test rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.quality.methods import FASTTEXT, METHODS, PRODUCT, SPACY
from benchmarks.quality.peer_data import read_peer_data


def main() -> None:
    """Fits on training rows, chooses on validation rows, and writes the answers to the test rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=[name for name in METHODS if name != PRODUCT])
    parser.add_argument("data", type=Path, help="a folder of benchmarks.quality.peer_data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=3600.0, help="the process may take this long")
    options = parser.parse_args()
    data = read_peer_data(options.data)
    # A peer imports only its own libraries, because its memory is measured.
    if options.peer == FASTTEXT:
        from benchmarks.quality import fasttext_peer

        answers = fasttext_peer.answer(data, options.seed)
    elif options.peer == SPACY:
        from benchmarks.quality import spacy_peer

        answers = spacy_peer.answer(data, options.seed, options.limit_s)
    else:
        from benchmarks.quality import linear

        answers = linear.answer(data, options.peer, options.seed)
    answers.write(options.out)


if __name__ == "__main__":
    main()
