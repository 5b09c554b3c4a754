"""Universal Dependencies: what is read of a file, and what a bad file or a missing network says."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from graphattn.datasets import TREEBANKS, UniversalDependencies, universal_dependencies
from graphattn.datasets.roots import RawFile

REAL = os.environ.get("GRAPHATTN_DATASETS")
COUNTS = {"train": (12544, 204577), "dev": (2001, 25147), "test": (2077, 25094)}
ROWS = [
    "# text = I don't, she does",
    "1 I I PRON PRP Case=Nom|Number=Sing 3 nsubj 3:nsubj _",
    "2-3 don't _ _ _ _ _ _ _ SpaceAfter=No",
    "2 do do AUX VBP _ 0 root 0:root _",
    "3 n't not PART RB _ 2 advmod 2:advmod _",
    "3.1 see see VERB VB _ _ _ 2:conj CopyOf=2",
    "",
    "1 She she PRON PRP _ 2 nsubj:pass 2:nsubj:pass _",
    "2 saw see VERB VBD _ 0 root 0:root _",
    "",
]
TINY = "\n".join(row if row.startswith("#") else row.replace(" ", "\t") for row in ROWS) + "\n"
OTHER = "1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n2\tsleep\tsleep\tVERB\tVBP\t_\t0\troot\t_\t_\n\n"
CONTENTS = (TINY, OTHER, OTHER)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A treebank of a few words, of which the first file has a known checksum."""
    sha256 = hashlib.sha256(TINY.encode()).hexdigest()
    paths = [f"UD/Tiny/raw/tiny-{split}.conllu" for split in COUNTS]
    files = (RawFile(paths[0], sha256, len(TINY)), RawFile(paths[1]), RawFile(paths[2]))
    monkeypatch.setitem(TREEBANKS, "Tiny", files)
    return files


def write(files: tuple[RawFile, ...], root: Path) -> None:
    for file, content in zip(files, CONTENTS, strict=True):
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_text(content, encoding="utf-8")


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_rows_with_an_integer_id_are_the_words(tiny, tmp_path):
    write(tiny, tmp_path)
    dataset = UniversalDependencies(tmp_path, "train", "Tiny")
    first, second = dataset
    assert first.words == ["I", "do", "n't"] and second.words == ["She", "saw"]
    assert dataset.tags == ["AUX", "PART", "PRON", "VERB"] and dataset.num_classes == 4
    assert [dataset.tags[tag] for tag in first.y] == ["PRON", "AUX", "PART"]
    assert first.head.tolist() == [2, -1, 1] and second.head.tolist() == [1, -1]
    assert [dataset.relations[name] for name in second.relation] == ["nsubj:pass", "root"]
    assert dataset.vocabulary == ["<unknown>", "I", "She", "do", "n't", "saw"]
    assert first.edge_index.tolist() == [[1, 0, 2, 1], [0, 1, 1, 2]]
    assert all(first[name].dtype == torch.long for name in ("x", "y", "head", "relation", "edge_index"))


def test_words_that_train_lacks_are_unknown(tiny, tmp_path):
    write(tiny, tmp_path)
    dataset = UniversalDependencies(tmp_path, "dev", "Tiny")
    assert dataset[0].x.tolist() == [dataset.vocabulary.index("I"), 0]
    assert dataset[0].words == ["I", "sleep"]


def test_transforms_and_filters_apply(tiny, tmp_path):
    def reverse(data):
        data.words = data.words[::-1]
        return data

    write(tiny, tmp_path)
    dataset = UniversalDependencies(
        tmp_path, "train", "Tiny", pre_filter=lambda data: data.num_nodes == 2, pre_transform=reverse
    )
    assert [data.words for data in dataset] == [["saw", "She"]]
    assert UniversalDependencies(tmp_path, "train", "Tiny", reverse, force_reload=True)[1].words == ["saw", "She"]


def test_a_changed_file_is_refused(tiny, tmp_path):
    write(tiny, tmp_path)
    path = tmp_path / tiny[0].path
    path.write_text(TINY[:-20])
    with pytest.raises(ValueError, match=r"must be the published file, sha256 \w+ \(\d+ bytes\), got .* Delete "):
        UniversalDependencies(tmp_path, "train", "Tiny")
    path.write_text(TINY)
    assert len(UniversalDependencies(tmp_path, "train", "Tiny")) == 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("\t_\t0\troot\t_\t_\n\n", "", "ValueError: a word of fewer than 8 columns, after 0 good sentences"),
        ("2\tsleep", "3\tsleep", "ValueError: words are not numbered from 1 on, after"),
        ("\t2\tnsubj", "\t9\tnsubj", r"ValueError: a head outside \[0, 2\]"),
        ("\t2\tnsubj", "\t_\tnsubj", r"ValueError: a head outside \[0, 2\]"),
        ("\t2\tnsubj", "\tI\tnsubj", "ParseException: Failed parsing field 'head'"),
        ("VERB", "_", "ValueError: a word without tag or relation"),
        (OTHER, "", "ValueError: no sentence"),
        (OTHER, OTHER + "# text = nothing\n", "words are not numbered .* after 1 good sentences"),
        (OTHER, "<html>Please log in</html>", "ParseException: Invalid line format"),
        (OTHER, "\udcff", "UnicodeDecodeError"),
    ],
)
def test_a_malformed_file_says_what_is_wrong(old, new, reason, tiny, tmp_path):
    write(tiny, tmp_path)
    path = tmp_path / tiny[2].path
    path.write_bytes(OTHER.replace(old, new).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=reason) as caught:
        UniversalDependencies(tmp_path, "train", "Tiny")
    text = str(caught.value)
    assert text.startswith(f"UniversalDependencies: {path} must be CoNLL-U, got ") and "\n" not in text
    assert text.endswith(f". Delete {path} and load again.")


def test_missing_files_are_downloaded(tiny, monkeypatch, tmp_path):
    asked = []

    def download(url, folder):
        asked.append(url)
        name = url.rpartition("/")[2]
        (content,) = (text for file, text in zip(tiny, CONTENTS, strict=True) if file.path.endswith(name))
        (Path(folder) / name).write_text(content)

    monkeypatch.setattr(universal_dependencies, "download_url", download)
    write(tiny, tmp_path)
    (tmp_path / tiny[0].path).unlink()
    assert len(UniversalDependencies(tmp_path, "train", "Tiny")) == 2
    assert asked == ["https://raw.githubusercontent.com/UniversalDependencies/Tiny/r2.16/tiny-train.conllu"]
    assert not list(tmp_path.rglob(".download-*"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"got URLError: <urlopen error no network>\."),
        ("<html>Please log in</html>", "got ValueError: .* sha256"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(content, reason, tiny, monkeypatch, tmp_path):
    def download(url, folder):
        if content is None:
            raise URLError("no network")
        (Path(folder) / url.rpartition("/")[2]).write_text(content)

    monkeypatch.setattr(universal_dependencies, "download_url", download)
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        UniversalDependencies(tmp_path, "train", "Tiny")
    names = "tiny-train.conllu, tiny-dev.conllu, tiny-test.conllu"
    assert f"Tiny needs files that are missing and can't be downloaded: {names}" in str(caught.value)
    assert str(caught.value).endswith(f"put them into {tmp_path / 'UD/Tiny/raw'}.")
    assert files_below(tmp_path) == []


def test_without_conllu_the_error_says_how_to_install_it(tiny, monkeypatch, tmp_path):
    write(tiny, tmp_path)
    monkeypatch.setitem(sys.modules, "conllu", None)
    with pytest.raises(ImportError, match=r"conllu must be installed\. Use pip install 'graphattn\[examples\]'"):
        UniversalDependencies(tmp_path, "train", "Tiny")


@pytest.mark.parametrize(("argument", "value"), [("split", "tset"), ("treebank", "UD_English-EWTT")])
def test_unknown_names_are_refused(argument, value, tmp_path):
    with pytest.raises(ValueError, match=f"UniversalDependencies: {argument} must be one of .* Did you mean "):
        UniversalDependencies(tmp_path, **{argument: value})
    assert files_below(tmp_path) == []


@pytest.mark.skipif(
    REAL is None or not all((Path(REAL) / file.path).exists() for file in TREEBANKS["UD_English-EWT"]),
    reason="needs UD_English-EWT in $GRAPHATTN_DATASETS",
)
def test_english_ewt_has_its_published_size(tmp_path):
    raw = Path(TREEBANKS["UD_English-EWT"][0].path).parent
    # A copy, because loading writes beside the raw files, and the original may be read-only.
    shutil.copytree(Path(REAL) / raw, tmp_path / raw)
    for split, (sentences, words) in COUNTS.items():
        dataset = UniversalDependencies(tmp_path, split)
        assert (len(dataset), dataset._data.num_nodes, dataset.num_classes) == (sentences, words, 17)
        assert (dataset._data.head == -1).sum() == sentences
    assert dataset[0].words[:4] == ["What", "if", "Google", "Morphed"]
    known = torch.tensor([index for data in dataset for index in data.x])
    assert 0 < (known == 0).float().mean() < 0.1
