"""Builds the data of this experiment: sentences of movie reviews, each rated by 15 to 29 people from −4 to 4.

    python experiments/movie_reviews/prepare.py [SDIST] [--out FOLDER]

Source: the source package of vaderSentiment on PyPI (MIT licence), which carries the ratings of Hutto & Gilbert, "VADER: A
Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014; the sentences are from Pang & Lee
2004. SDIST is that package where it has been downloaded before.

Everything is a function of the source: a sentence is in the split that sha256 of its id says, and every other choice (order,
group, rater, length of an opening) is read off sha256 of a purpose and the id. The test split is written nowhere.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.errors import DataError, LabError

PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
TEXTS, RATINGS = "movieReviewSnippets_GroundTruth.txt", "movieReviewSnippets_anonDataRatings.txt"
SHA256 = {
    TEXTS: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    RATINGS: "658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4",
}
SPLITS = ("train", "validation")
WRITE, CONTINUE = "Write one sentence of a movie review.", "Continue this movie review: "
SHORTEST, LONGEST = 25, 240  # characters: fragments below, sentences that the source cut off above
OPENING_WORDS = (4, 5, 6, 7)
WORDS_TO_OPEN = 12  # so that an opening leaves at least five words to write
RANKED = (4, 5, 6, 7, 8, 9)  # completions per prompt, as in Ouyang et al. 2022, section 3.5


class Sentence(NamedTuple):
    id: str
    text: str
    ratings: tuple[int, ...]

    @property
    def mean_rating(self) -> float:
        return round(sum(self.ratings) / len(self.ratings), 3)


# Reading


def download(folder: Path) -> Path:
    """The source package of vaderSentiment, fetched by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "vaderSentiment", PACKAGE]
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise DataError(f"pip could not download {PACKAGE} ({last}); download its .tar.gz elsewhere and give its path")
    return found[0]


def members(package: Path) -> dict[str, bytes]:
    """The two files of the source package that matter, checked to be the ones this experiment was made with."""
    try:
        with tarfile.open(package) as outer:
            archive = io.BytesIO(member(outer, ARCHIVE))
        with tarfile.open(fileobj=archive) as inner:
            found = {name: member(inner, name) for name in SHA256}
    except (OSError, tarfile.TarError, KeyError) as error:
        raise DataError(f"{package} is not the source package of vaderSentiment: {error}") from None
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != SHA256[name]:
            raise DataError(f"{name} in {package} is not the file that this experiment was made with; use {PACKAGE}")
    return found


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of the file of that name, in whatever folder of the archive."""
    paths = [path for path in archive.getnames() if Path(path).name == name]
    if len(paths) != 1:
        raise KeyError(f"{len(paths)} files called {name}")
    return archive.extractfile(paths[0]).read()


def sentences(texts: bytes, ratings: bytes) -> list[Sentence]:
    """All rated sentences that are neither fragments nor cut off. Lines: id, mean, text; and id, mean, sd, list of ratings."""
    rated = {row[0]: tuple(ast.literal_eval(row[3])) for row in rows(ratings)}
    read = [Sentence(row[0], clean(row[2]), rated[row[0]]) for row in rows(texts)]
    return [sentence for sentence in read if SHORTEST <= len(sentence.text) <= LONGEST]


def rows(content: bytes) -> Iterator[list[str]]:
    for line in content.decode("utf-8").split("\n"):
        if line.strip():
            yield line.rstrip("\r").split("\t")


def clean(text: str) -> str:
    """Single blanks, and quotation marks for doubled apostrophes."""
    return " ".join(text.replace("''", '"').split())


# Choosing


def split_of(id: str) -> str:
    """A quarter test, an eighth validation, the rest train."""
    place = int(hashlib.sha256(id.encode()).hexdigest(), 16) % 100
    return "test" if place < 25 else "validation" if place < 38 else "train"


def number(purpose: str, id: str) -> int:
    """A large number that looks random and is the same on every machine."""
    return int(hashlib.sha256(f"{purpose}:{id}".encode()).hexdigest(), 16)


def pick(options: Sequence[Any], purpose: str, id: str) -> Any:
    return options[number(purpose, id) % len(options)]


def shuffled(members: Iterable[Sentence], purpose: str) -> list[Sentence]:
    return sorted(members, key=lambda sentence: number(purpose, sentence.id))


# Writing


def demonstrations(split: Sequence[Sentence]) -> list[dict[str, Any]]:
    """Every sentence once, with its mean rating."""
    return [{"prompt": WRITE, "completion": s.text, "rating": s.mean_rating} for s in shuffled(split, "demonstrations")]


def prompts(split: Sequence[Sentence]) -> list[dict[str, Any]]:
    """The first 4 to 7 words of the longer sentences, in the order of the demonstrations."""
    long = [(s, s.text.split()) for s in shuffled(split, "demonstrations")]
    return [
        {"prompt": CONTINUE + " ".join(words[: pick(OPENING_WORDS, "opening", s.id)])}
        for s, words in long
        if len(words) >= WORDS_TO_OPEN
    ]


def comparisons(split: Sequence[Sentence]) -> list[dict[str, Any]]:
    """Pairs of sentences as one rater of each saw them, so that labels are as noisy as people are; ties are dropped."""
    order = shuffled(split, "comparisons")
    verdicts = [verdict(*pair) for pair in zip(order[::2], order[1::2], strict=False)]
    return [verdict for verdict in verdicts if verdict is not None]


def verdict(one: Sentence, other: Sentence) -> dict[str, Any] | None:
    """One rating is drawn of each sentence; the higher one is chosen, and None says that they are equal."""
    drawn = [pick(sentence.ratings, "rater", sentence.id) for sentence in (one, other)]
    if drawn[0] == drawn[1]:
        return None
    chosen, rejected = (one, other) if drawn[0] > drawn[1] else (other, one)
    means = {"mean_rating_chosen": chosen.mean_rating, "mean_rating_rejected": rejected.mean_rating}
    return {"prompt": WRITE, "chosen": chosen.text, "rejected": rejected.text} | means


def rankings(split: Sequence[Sentence]) -> list[dict[str, Any]]:
    """The sentences in groups of 4 to 9 with their mean ratings; no sentence is in two groups."""
    return [
        {"prompt": WRITE, "completions": [s.text for s in group], "ratings": [s.mean_rating for s in group]}
        for group in groups(shuffled(split, "rankings"))
        if len({s.mean_rating for s in group}) > 1
    ]


def groups(order: Sequence[Sentence]) -> Iterator[Sequence[Sentence]]:
    """Consecutive groups whose first member says how large they are; what is left is a group if it is large enough."""
    while len(order) >= min(RANKED):
        size = pick(RANKED, "group", order[0].id)
        yield order[:size]
        order = order[size:]


def files(everything: Sequence[Sentence]) -> dict[str, list[dict[str, Any]]]:
    """Name of a file → its records."""
    parts = {"demonstrations": demonstrations, "prompts": prompts, "comparisons": comparisons, "rankings": rankings}
    of = {split: [s for s in everything if split_of(s.id) == split] for split in SPLITS}
    return {f"{part}.{split}.jsonl": make(of[split]) for part, make in parts.items() for split in SPLITS}


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Whole or not at all: the file gets its name when it is complete."""
    unfinished = path.with_suffix(".part")
    with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    os.replace(unfinished, path)


def prepare(package: Path | None, out: Path) -> dict[str, int]:
    """Writes all files into `out`; returns how many records each has."""
    with tempfile.TemporaryDirectory() as temporary:
        found = members(package or download(Path(temporary)))
    made = files(sentences(found[TEXTS], found[RATINGS]))
    out.mkdir(parents=True, exist_ok=True)
    for name, records in made.items():
        write(out / name, records)
    return {name: len(records) for name, records in made.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the movie-review data from the source package of vaderSentiment.")
    parser.add_argument("package", nargs="?", type=Path, help="the package's .tar.gz; default: downloaded by pip")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="default: data/ beside this script")
    arguments = parser.parse_args()
    try:
        counts = prepare(arguments.package, arguments.out)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, n in counts.items():
        print(f"{arguments.out / name}: {n} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
