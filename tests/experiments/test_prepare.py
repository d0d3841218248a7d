"""The data of the real experiment. Needs the source package of vaderSentiment: downloaded by pip, once for all tests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from rlhf_lab_experiments.movie_reviews import prepare

from rlhf_lab.errors import DataError

PARTS = ("demonstrations", "prompts", "comparisons", "rankings")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "movie_reviews"

# last two decimal digits of the hash, from coreutils' sha256sum
PLACES = {"1": 15, "3": 78, "10145": 40, "6416": 37}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    given = os.environ.get("VADER_SDIST")
    try:
        return Path(given) if given else prepare.download(tmp_path_factory.mktemp("sdist"))
    except DataError as error:
        pytest.skip(f"the source package of vaderSentiment cannot be had here ({error}); VADER_SDIST=FILE names one")


@pytest.fixture(scope="module")
def source(package) -> dict[str, tuple[float, list[int], str]]:
    """id → (mean as the source prints it, ratings, text), read a second way: no code of prepare.py."""
    with tarfile.open(package) as outer:
        inner_name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner_name).read())) as inner:
            read = {
                kind: inner.extractfile(f"hutto_ICWSM_2014/movieReviewSnippets_{kind}.txt").read().decode().splitlines()
                for kind in ("GroundTruth", "anonDataRatings")
            }
    texts = {line.split("\t")[0]: line.split("\t")[2] for line in read["GroundTruth"] if line.count("\t") == 2}
    rated = {}
    for line in read["anonDataRatings"]:
        id, mean, _, ratings = line.split("\t")
        rated[id] = (float(mean), json.loads(ratings), texts[id])
    return rated


@pytest.fixture(scope="module")
def made(package, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    prepare.prepare(package, folder)
    return folder


@pytest.fixture(scope="module")
def ids(source) -> dict[str, str]:
    """Text → id."""
    return {" ".join(text.replace("''", '"').split()): id for id, (_, _, text) in source.items()}


@pytest.mark.parametrize(("id", "place"), PLACES.items())
def test_a_sentence_is_in_the_split_that_sha256_of_its_id_says(id, place):
    expected = "test" if place < 25 else "validation" if place < 38 else "train"
    assert prepare.split_of(id) == expected


def test_split_borders_lie_at_25_and_38(source):
    """The last two decimal digits of the hash, by big-integer text rather than by modulo."""
    seen = set()
    for id in source:
        place = int(str(int.from_bytes(hashlib.sha256(id.encode()).digest(), "big"))[-2:])
        seen.add((place, prepare.split_of(id)))
    assert seen == {(p, "test" if p <= 24 else "validation" if p <= 37 else "train") for p in range(100)}


def test_counts(made):
    """7,719 demonstrations and 6,157 prompts: the numbers of the files that were handed round."""
    counts = {path.name: len(lines(path)) for path in made.iterdir()}
    assert set(counts) == {f"{part}.{split}.jsonl" for part in PARTS for split in ("train", "validation")}
    assert counts["demonstrations.train.jsonl"] == 6402 and counts["demonstrations.validation.jsonl"] == 1317
    assert counts["prompts.train.jsonl"] == 5112 and counts["prompts.validation.jsonl"] == 1045
    assert 945 < counts["rankings.train.jsonl"] < 1025  # 6402 / 6.5 = 985, standard deviation √985 · 1.71 / 6.5 = 8


def test_demonstrations_are_the_rated_sentences_of_their_split(made, source, ids):
    for split in ("train", "validation"):
        records = lines(made / f"demonstrations.{split}.jsonl")
        found = [ids[record["completion"]] for record in records]
        assert len(set(found)) == len(found)
        assert {prepare.split_of(id) for id in found} == {split}
        assert all(25 <= len(record["completion"]) <= 240 for record in records)
        for id, record in zip(found, records, strict=True):
            assert set(record) == {"prompt", "completion", "rating"}
            assert record["rating"] == pytest.approx(source[id][0], abs=5.1e-4)


def test_no_sentence_of_the_test_split_and_none_in_two_splits(made, ids):
    for path in made.iterdir():
        split = path.name.split(".")[1]
        for record in lines(path):
            texts = [record[key] for key in ("completion", "chosen", "rejected") if key in record]
            assert {prepare.split_of(ids[text]) for text in texts + record.get("completions", [])} <= {split}
    openings = {split: {r["prompt"] for r in lines(made / f"prompts.{split}.jsonl")} for split in ("train", "validation")}
    long = [p for p in openings["validation"] if len(p.split()) >= 4 + 6]
    assert not set(long) & openings["train"]


def test_prompts_are_openings_of_4_to_7_words_of_demonstrations_in_their_order(made):
    for split in ("train", "validation"):
        texts = iter(r["completion"] for r in lines(made / f"demonstrations.{split}.jsonl"))
        lengths = Counter()
        for record in lines(made / f"prompts.{split}.jsonl"):
            opening = record["prompt"].removeprefix("Continue this movie review: ")
            text = next(text for text in texts if text.startswith(opening + " ") and len(text.split()) >= 12)
            lengths[len(opening.split())] += 1
            assert len(text.split()) - len(opening.split()) >= 5
        assert sorted(lengths) == [4, 5, 6, 7]
        assert min(lengths.values()) > 0.2 * lengths.total()


def test_rankings_are_disjoint_groups_of_4_to_9_with_mean_ratings(made, source, ids):
    for split in ("train", "validation"):
        records = lines(made / f"rankings.{split}.jsonl")
        assert {len(r["completions"]) for r in records} == {4, 5, 6, 7, 8, 9}
        flat = [text for r in records for text in r["completions"]]
        assert len(set(flat)) == len(flat)
        for r in records:
            expected = [source[ids[text]][0] for text in r["completions"]]
            assert r["ratings"] == pytest.approx(expected, abs=5.1e-4)


def test_comparisons_are_verdicts_that_some_rater_gave(made, source, ids):
    """Nine in ten agree with the mean: the noise of one rater, seen in the files that were handed round (.90 and .88)."""
    agree = []
    for split in ("train", "validation"):
        for r in lines(made / f"comparisons.{split}.jsonl"):
            chosen, rejected = source[ids[r["chosen"]]], source[ids[r["rejected"]]]
            assert max(chosen[1]) > min(rejected[1])
            assert r["mean_rating_chosen"] == pytest.approx(chosen[0], abs=5.1e-4)
            assert r["mean_rating_rejected"] == pytest.approx(rejected[0], abs=5.1e-4)
            agree.append(chosen[0] > rejected[0])
    assert 0.86 < sum(agree) / len(agree) < 0.94
    assert 3150 < len(agree) < 3410  # 3859 pairs, about 15 % of them ties


def test_the_same_bytes_again(package, made, tmp_path):
    prepare.prepare(package, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in made.iterdir()}


def test_the_files_that_were_handed_round(made):
    """Demonstrations are the same lines in another order; prompts the same sentences; the rest the same kind of records."""
    if not SHARED.is_dir():
        pytest.skip(f"the files that this experiment was designed with are not at {SHARED}")
    for split in ("train", "validation"):
        ours, theirs = (sorted((f / f"demonstrations.{split}.jsonl").read_bytes().splitlines()) for f in (made, SHARED))
        assert ours == theirs
        first = [sorted(r["prompt"].split()[:8] for r in lines(f / f"prompts.{split}.jsonl")) for f in (made, SHARED)]
        assert first[0] == first[1]
        for part in PARTS:
            fields = [{tuple(record) for record in lines(f / f"{part}.{split}.jsonl")} for f in (made, SHARED)]
            assert fields[0] == fields[1]


def test_another_archive_is_refused(tmp_path):
    other = tmp_path / "other.tar.gz"
    with tarfile.open(other, "w:gz") as archive:
        archive.add(__file__, arcname="x/setup.py")
    out = tmp_path / "out"
    with pytest.raises(DataError, match="not the source package of vaderSentiment"):
        prepare.prepare(other, out)
    with pytest.raises(DataError, match="not the source package"):
        prepare.prepare(tmp_path / "missing.tar.gz", out)
    assert not out.exists()


def test_an_edited_source_is_refused(package, tmp_path):
    """One rating changed inside the nested archive: other data, and so another experiment."""
    with tarfile.open(package) as outer:
        name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = outer.extractfile(name).read()
    edited, forged = io.BytesIO(), tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(fileobj=io.BytesIO(inner)) as old, tarfile.open(fileobj=edited, mode="w:gz") as new:
        for member in (m for m in old.getmembers() if "movieReview" in m.name):
            content = old.extractfile(member).read().replace(b"[3, 2,", b"[4, 2,", 1)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    with tarfile.open(forged, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(edited.getvalue())
        archive.addfile(info, io.BytesIO(edited.getvalue()))
    with pytest.raises(DataError, match="is not the file that this experiment was made with"):
        prepare.prepare(forged, tmp_path / "out")
