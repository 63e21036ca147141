"""The tokenizer: a byte-level BPE trained on the corpus, or that of pretrained weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from polyhead.errors import one_line
from polyhead_training.errors import ConfigError
from polyhead_training.model.hub import check_pretrained

END_OF_TEXT = "<|endoftext|>"
TRANSFORMS: dict[str, list[normalizers.Normalizer]] = {
    "strip": [normalizers.Strip()],
    "collapse_whitespace": [normalizers.Replace(Regex(r"\s+"), " ")],
    "lowercase": [normalizers.Lowercase()],
    "strip_accents": [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()],
    "nfc": [normalizers.NFC()],
    "nfkc": [normalizers.NFKC()],
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, transforms: Sequence[str] = ()) -> Tokenizer:
    """GPT-2's kind of byte-level BPE (Radford et al. 2019), trained on `texts`; every text has an encoding.

    Args:
        transforms: as for `with_transforms`. They are set before training, so that no useless token is learned.
    """
    tokenizer = with_transforms(Tokenizer(models.BPE()), transforms)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pretrained_tokenizer(name: str) -> Tokenizer:
    """The fast tokenizer of a local path or hub name, without padding and truncation.

    Raises:
        ConfigError: there is none, or the hub cannot be reached.
    """
    path = Path(name) / "tokenizer.json"
    only_local = check_pretrained(name)
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            from transformers import AutoTokenizer  # this takes seconds, and a mistake in the rows is reported before

            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=only_local).backend_tokenizer
    except Exception as error:  # the libraries raise many kinds, plain Exception among them
        raise ConfigError(f"model.pretrained {name!r}: has no tokenizer that loads ({one_line(error)})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def with_transforms(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """Makes the tokenizer apply the named transforms first, in this order; then serving applies them too.

    Args:
        names: as in ``data.text_transforms``. Functions, ``package.module:function``, are skipped: they ran when the
            rows were read.

    Raises:
        ConfigError: a name is neither.
    """
    if unknown := [name for name in names if name not in TRANSFORMS and ":" not in name]:
        raise ConfigError(
            f"data.text_transforms {unknown[0]!r}: must be one of {', '.join(TRANSFORMS)}, 'package.module:function'"
        )
    if (first := named_normalizer(names)) is not None:
        own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([first, *own])
    return tokenizer


def named_normalizer(names: Sequence[str]) -> normalizers.Normalizer | None:
    """The named transforms in this order; None if there are none."""
    steps = [step for name in names for step in TRANSFORMS.get(name, ())]
    return normalizers.Sequence(steps) if steps else None
