"""The five data sets of the quality benchmark, made up: a few rows, in the formats of the published files."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

THINGS = ("bread", "river", "stone", "cloud", "chair", "lemon", "paper", "glass", "metal", "sugar")
CLASSES = {"Dresses": "Dresses", "Pants": "Bottoms", "Jeans": "Bottoms"}


def write_data_sets(folder: Path, rows: int = 60) -> None:
    """Writes all files; words of each text give its labels away."""
    write_debian(folder, rows)
    write_reviews(folder, rows)
    write_banking(folder, rows)
    write_clinc(folder, rows)
    write_emotions(folder, rows)


def sentence(place: int, *words: str) -> str:
    return " ".join([*words, THINGS[place % 10], THINGS[place // 10 % 10], "number", str(place)])


def write_debian(folder: Path, rows: int) -> None:
    for part in ("train", "validation", "test"):
        lines = []
        for place in range(rows):
            section, tag = ("games", "libs")[place % 2], ("use::play", "role::shared")[place % 2]
            text = sentence(place, section, part)
            lines.append(json.dumps({"text": text, "section": section, "role": section[:3], "tags": [tag]}))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_reviews(folder: Path, rows: int) -> None:
    names = ["", "Clothing ID", "Age", "Title", "Review Text", "Rating", "Recommended IND",
             "Positive Feedback Count", "Division Name", "Department Name", "Class Name"]  # fmt: skip
    with gzip.open(folder / "reviews.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for place in range(rows):
            kind, is_good = list(CLASSES)[place % 3], place % 2
            text = sentence(place, kind.lower(), "good" if is_good else "bad", 'a "quote"\nand a line')
            division = ("General", "General Petite")[place % 2]
            labels: list[Any] = [division, CLASSES[kind], kind] if place != 4 else ["", "", ""]
            title = "" if place % 4 == 0 else "Title, of"
            writer.writerow([place, 1000 + place, 30, title, text, 5 if is_good else 1, is_good, 0, *labels])
        writer.writerow([rows, 1, 30, "", "", 3, 1, 0, "General", "Dresses", "Dresses"])  # a review without a text


def write_banking(folder: Path, rows: int) -> None:
    with (folder / "banking77_train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        for place in sorted(range(rows), key=lambda place: place % 2):  # the file is sorted by label
            intent = ("card_arrival", "top_up")[place % 2]
            writer.writerow([sentence(place, *intent.split("_")), intent])


def write_clinc(folder: Path, rows: int) -> None:
    intents = {"banking": ["transfer", "balance"], "travel": ["visa"]}
    names = [name for each in intents.values() for name in each]

    def pairs(first: int, count: int) -> list[list[str]]:
        return [[sentence(first + place, names[place % 3]), names[place % 3]] for place in range(count)]

    published = {
        "train": pairs(0, rows), "val": pairs(1000, rows // 2),
        "oos_train": [[sentence(place, "zebra"), "oos"] for place in range(5)],
        "oos_val": [[sentence(place, "yacht"), "oos"] for place in range(5)],
    }  # fmt: skip
    (folder / "clinc150.json").write_text(json.dumps(published), encoding="utf-8")
    (folder / "clinc150_domains.json").write_text(json.dumps(intents), encoding="utf-8")


def write_emotions(folder: Path, rows: int) -> None:
    (folder / "goemotions_labels.txt").write_text("joy\nanger\nneutral\n", encoding="utf-8")
    words = {"0": "joyful", "1": "angry", "2": "plain", "0,1": "joyful angry"}
    for name, count in (("train", rows), ("dev", rows // 2)):
        lines = []
        for place in range(count):
            ids = list(words)[place % 4]
            lines.append(f'{sentence(place, words[ids], name)} "half a quote\t{ids}\t{name}{place}\n')
        (folder / f"goemotions_{name}.tsv").write_text("".join(lines), encoding="utf-8")
