"""The data sets: where they live, what a bad file or a missing network says, and what the corpus promises."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from urllib.error import URLError

import aiohttp
import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from graphattn.datasets import (
    GRAPHS,
    AmbiguousWords,
    dataset_root,
    generate_ambiguous_words,
    load_graph,
    roots,
)
from graphattn.datasets.ambiguous import FILES, SEED
from graphattn.datasets.graphs import GraphEntry
from graphattn.datasets.roots import RawFile, check_file

CHECKOUT = Path(__file__).resolve().parents[2]
REAL = os.environ.get("GRAPHATTN_DATASETS")
# Nodes, edges, features, classes, as the loaders' documentation gives them (edges in both directions).
SHAPES = {
    "Cora": (2708, 10556, 1433, 7),
    "CiteSeer": (3327, 9104, 3703, 6),
    "Minesweeper": (10000, 78804, 7, 2),
    "Tolokers": (11758, 1038000, 10, 2),
    "Photo": (7650, 238162, 745, 8),
    "CS": (18333, 163788, 6805, 15),
    "Physics": (34493, 495924, 8415, 5),
    # Each edge in its published direction alone.
    "Actor": (7600, 30019, 932, 5),
    "ogbn-arxiv": (169343, 1166243, 128, 40),
}
REFERENCE = "docs/reference/datasets.md"
every_graph = pytest.mark.parametrize("entry", GRAPHS, ids=lambda entry: entry.name)


def write_raw(entry: GraphEntry, root: Path, content: bytes) -> None:
    for file in entry.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_bytes(content)


def folder_of(entry: GraphEntry) -> Path:
    """Where errors say the files belong: OGB has two folders of them."""
    return Path("ogbn_arxiv") if entry.name == "ogbn-arxiv" else Path(entry.files[0].path).parent


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def fail_to_download(monkeypatch: pytest.MonkeyPatch, entry: GraphEntry, error: Exception) -> None:
    def download(dataset: object) -> None:
        raise error

    monkeypatch.setattr(entry.loader, "download", download)


# Where data sets live.


def test_root_is_argument_then_environment_then_checkout_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHATTN_DATASETS", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert dataset_root(tmp_path / "argument") == tmp_path / "argument"
    assert dataset_root() == tmp_path / "environment"
    monkeypatch.setenv("GRAPHATTN_DATASETS", "")
    assert dataset_root() == CHECKOUT / "datasets"
    monkeypatch.setattr(roots, "__file__", str(tmp_path / "site" / "graphattn" / "datasets" / "roots.py"))
    assert dataset_root() == tmp_path / "cache" / "graphattn" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert dataset_root() == Path.home() / ".cache" / "graphattn" / "datasets"


def test_only_a_project_of_our_name_is_a_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("GRAPHATTN_DATASETS", raising=False)
    monkeypatch.setattr(roots, "__file__", str(tmp_path / "graphattn" / "datasets" / "roots.py"))
    (tmp_path / "pyproject.toml").write_text('name = "other"\n')
    assert dataset_root() != tmp_path / "datasets"
    (tmp_path / "pyproject.toml").write_text('name = "graphattn"\n')
    assert dataset_root() == tmp_path / "datasets"


def test_root_is_absolute_and_expands_the_home_folder():
    assert dataset_root("data") == Path.cwd() / "data"
    assert dataset_root("~/data") == Path.home() / "data"


def test_a_changed_file_is_told_from_the_published_one(tmp_path):
    published = hashlib.sha256(b"whole").hexdigest()
    file = RawFile("graph.npz", published, 5)
    path = tmp_path / "graph.npz"
    path.write_bytes(b"whole")
    check_file("load_graph", tmp_path, file, "Delete it.")
    path.write_bytes(b"who")
    with pytest.raises(ValueError, match=r"^load_graph: ") as caught:
        check_file("load_graph", tmp_path, file, "Delete it.")
    assert str(caught.value) == (
        f"load_graph: {path} must be the published file, sha256 {published} (5 bytes), "
        f"got sha256 {hashlib.sha256(b'who').hexdigest()} (3 bytes). Delete it."
    )


# Graphs.


def test_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"load_graph: name must be one of 'Cora', .* got 'Corra'\. Did you mean 'Cora'"
    ):
        load_graph("Corra", tmp_path)


@every_graph
def test_listed_files_are_those_that_the_loader_reads(entry, monkeypatch, tmp_path):
    asked = []

    def download(dataset):
        asked.extend(Path(path).relative_to(Path(dataset.root).parent) for path in dataset.raw_paths)
        raise URLError("no network")

    monkeypatch.setattr(entry.loader, "download", download)
    # Case and separators of the name are free.
    with pytest.raises(FileNotFoundError):
        load_graph(entry.name.upper().replace("-", "_"), tmp_path)
    assert asked == [Path(file.path) for file in entry.files]


@every_graph
def test_missing_files_are_named_with_their_folder(entry, monkeypatch, tmp_path):
    reason = URLError("no network")
    fail_to_download(monkeypatch, entry, reason)
    with pytest.raises(FileNotFoundError) as caught:
        load_graph(entry.name, tmp_path)
    text = str(caught.value)
    assert text.startswith(f"load_graph: {entry.name} needs files that are missing and can't be downloaded: ")
    assert "got URLError: <urlopen error no network>." in text
    assert text.endswith(f"put them into {tmp_path / folder_of(entry)}.")
    assert all(Path(file.path).name in text for file in entry.files)
    assert caught.value.__cause__ is reason
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(), TimeoutError(), aiohttp.ServerDisconnectedError()], ids=repr)
def test_every_network_error_becomes_the_same_message(error, monkeypatch, tmp_path):
    fail_to_download(monkeypatch, GRAPHS[0], error)
    with pytest.raises(FileNotFoundError, match=type(error).__name__):
        load_graph(GRAPHS[0].name, tmp_path)


@every_graph
def test_a_broken_download_leaves_nothing_behind(entry, monkeypatch, tmp_path):
    def download(dataset):
        for path in map(Path, dataset.raw_paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"<html>Please log in</html>")

    monkeypatch.setattr(entry.loader, "download", download)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="can't be downloaded"):
            load_graph(entry.name, tmp_path)
        assert files_below(tmp_path) == []


def test_a_download_with_another_checksum_is_refused(monkeypatch, tmp_path):
    entry = next(entry for entry in GRAPHS if entry.name == "Minesweeper")

    def download(dataset):
        Path(dataset.raw_paths[0]).write_bytes(small_heterophilous_graph())

    monkeypatch.setattr(entry.loader, "download", download)
    with pytest.raises(FileNotFoundError, match=f"sha256 {entry.files[0].sha256}"):
        load_graph("Minesweeper", tmp_path)
    assert files_below(tmp_path) == []


def test_a_whole_download_arrives(monkeypatch, tmp_path):
    entry = next(entry for entry in GRAPHS if entry.name == "Questions")

    def download(dataset):
        Path(dataset.raw_paths[0]).write_bytes(small_heterophilous_graph())

    monkeypatch.setattr(entry.loader, "download", download)
    dataset = load_graph("questions", tmp_path)
    assert dataset[0].edge_index.tolist() == [[0, 1], [1, 0]]
    assert dataset.num_classes == 2
    assert (tmp_path / entry.files[0].path).read_bytes() == small_heterophilous_graph()
    assert not list(tmp_path.glob(".download-*"))


def small_heterophilous_graph() -> bytes:
    buffer = io.BytesIO()
    masks = np.ones((10, 2), dtype=bool)
    np.savez(
        buffer,
        node_features=np.eye(2, dtype=np.float32),
        node_labels=np.array([0, 1]),
        edges=np.array([[0, 1]]),
        train_masks=masks,
        val_masks=masks,
        test_masks=masks,
    )
    return buffer.getvalue()


@every_graph
def test_truncated_file_says_what_to_delete(entry, tmp_path):
    write_raw(entry, tmp_path, b"\x80trunc")
    with pytest.raises(ValueError, match=r"^load_graph: ") as caught:
        load_graph(entry.name, tmp_path)
    first = tmp_path / entry.files[0].path
    if entry.files[0].sha256 is not None:
        expected = f"load_graph: {first} must be the published file, sha256 {entry.files[0].sha256}"
        culprit = first
    else:
        culprit = tmp_path / folder_of(entry)
        expected = f"load_graph: {culprit} must be readable by its loader, got "
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith(f". Delete {culprit} and call load_graph({entry.name!r}) again.")


def test_truncated_processed_file_says_what_to_delete(tmp_path):
    entry = next(entry for entry in GRAPHS if entry.name == "Questions")
    write_raw(entry, tmp_path, small_heterophilous_graph())
    load_graph("Questions", tmp_path)
    processed = tmp_path / "HeterophilousGraph" / "questions" / "processed" / "data.pt"
    processed.write_bytes(processed.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^load_graph: ") as caught:
        load_graph("Questions", tmp_path)
    assert str(caught.value).endswith(f"Delete {processed} and call load_graph('Questions') again.")
    processed.unlink()
    assert load_graph("Questions", tmp_path)[0].num_nodes == 2


def test_a_processed_file_that_another_process_is_writing_is_blamed_not_the_raw_ones(monkeypatch, tmp_path):
    entry = next(entry for entry in GRAPHS if entry.name == "Questions")
    write_raw(entry, tmp_path, small_heterophilous_graph())
    processed = tmp_path / "HeterophilousGraph" / "questions" / "processed" / "data.pt"
    # What this process finds once the other one has begun to write.
    monkeypatch.setattr(entry.loader, "process", lambda dataset: processed.write_bytes(b"PK"))
    with pytest.raises(ValueError, match=r"^load_graph: ") as caught:
        load_graph("Questions", tmp_path)
    assert str(caught.value).endswith(f"Delete {processed} and call load_graph('Questions') again.")


@pytest.mark.parametrize("error", [OSError("no space left on device"), MemoryError("no memory left")], ids=repr)
def test_files_are_not_blamed_for_the_machine(error, monkeypatch, tmp_path):
    entry = next(entry for entry in GRAPHS if entry.name == "Questions")
    write_raw(entry, tmp_path, small_heterophilous_graph())

    def process(dataset):
        raise error

    monkeypatch.setattr(entry.loader, "process", process)
    with pytest.raises(type(error)) as caught:
        load_graph("Questions", tmp_path)
    assert caught.value is error


@every_graph
def test_every_graph_is_documented(entry):
    pages = [load_graph.__doc__]
    pages += [(CHECKOUT / path).read_text(encoding="utf-8") for path in ("datasets/README.md", REFERENCE)]
    assert all(re.search(rf"\b{entry.name}\b", page) for page in pages)


@pytest.mark.skipif(REAL is None, reason="set GRAPHATTN_DATASETS to a folder with raw files to load real graphs")
@pytest.mark.parametrize("name", SHAPES)
def test_real_graph_has_its_published_size(name, monkeypatch, tmp_path):
    entry = next(entry for entry in GRAPHS if entry.name == name)
    if not all((Path(REAL) / file.path).exists() for file in entry.files):
        pytest.skip(f"GRAPHATTN_DATASETS holds no raw files of {name}")
    fail_to_download(monkeypatch, entry, AssertionError("nothing is missing"))
    # A copy, because loading writes beside the raw files, and the original may be read-only.
    raw = Path(entry.files[0].path).parent
    shutil.copytree(Path(REAL) / raw, tmp_path / raw)
    for _ in range(2):
        dataset = load_graph(name, tmp_path)
        found = (dataset[0].num_nodes, dataset[0].num_edges, dataset.num_features, dataset.num_classes)
        assert found == SHAPES[name]


# The corpus of ambiguous words.


def sentences(text: str) -> list[list[tuple[str, str]]]:
    return [[tuple(token.split("/")) for token in line.split()] for line in text.splitlines()]


def words_of(sentence: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(word for word, _ in sentence)


def windows(corpus: list[list[tuple[str, str]]], radius: int) -> list[tuple[tuple[str, ...], str]]:
    """Each token of the corpus as the words around it, and its tag."""
    found = []
    for sentence in corpus:
        padded = ("",) * radius + words_of(sentence) + ("",) * radius
        found += [(padded[i : i + 2 * radius + 1], tag) for i, (_, tag) in enumerate(sentence)]
    return found


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[list[tuple[str, str]]]]:
    return {split: sentences(text) for split, text in generate_ambiguous_words(SEED).items()}


@pytest.mark.parametrize("split", FILES)
def test_committed_file_is_the_generated_one(split):
    committed = (CHECKOUT / "datasets" / FILES[split].path).read_bytes()
    assert committed == generate_ambiguous_words(SEED)[split].encode()
    assert (hashlib.sha256(committed).hexdigest(), len(committed)) == (FILES[split].sha256, FILES[split].size)
    readme = (CHECKOUT / "datasets" / "README.md").read_text(encoding="utf-8")
    assert f"{FILES[split].size:,} | `{FILES[split].sha256}`" in readme


def test_corpus_is_small_and_its_sentences_distinct(corpus):
    assert {split: len(part) for split, part in corpus.items()} == {"train": 2000, "dev": 250, "test": 250}
    assert len({words_of(sentence) for part in corpus.values() for sentence in part}) == 2500
    assert sum(file.size for file in FILES.values()) < 200_000
    assert words_of(corpus["test"][0]) == ("I", "saw", "a", "saw")


def test_generator_repeats_itself_in_a_fresh_process():
    code = "from graphattn.datasets import generate_ambiguous_words as g; print(g(7)['dev'], end='')"
    # Another hash seed would show any dependence on the order of a set.
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(CHECKOUT)}
    fresh = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert fresh.stdout == generate_ambiguous_words(7)["dev"]
    assert generate_ambiguous_words(7) != generate_ambiguous_words(8)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError)])
def test_seed_is_a_natural_number(seed, error):
    with pytest.raises(error, match="generate_ambiguous_words: seed must be"):
        generate_ambiguous_words(seed)


def test_no_sentence_has_two_annotations():
    tags: dict[tuple[str, ...], tuple[str, ...]] = {}
    for seed in range(10):
        for text in generate_ambiguous_words(seed).values():
            for sentence in sentences(text):
                found = tuple(tag for _, tag in sentence)
                assert tags.setdefault(words_of(sentence), found) == found
    assert len(tags) > 15_000


def test_a_longer_window_is_needed_and_enough(corpus):
    every = [sentence for part in corpus.values() for sentence in part]
    alone = windows(every, 0)
    tags = defaultdict(set)
    for word, tag in alone:
        tags[word].add(tag)
    is_ambiguous = [len(tags[word]) > 1 for word, _ in alone]
    undecided = []
    for radius in range(7):
        tags = defaultdict(set)
        for window, tag in windows(every, radius):
            tags[window].add(tag)
        pairs = zip(windows(every, radius), is_ambiguous, strict=True)
        undecided.append(sum(len(tags[window]) > 1 for (window, _), ambiguous in pairs if ambiguous))
    count = sum(is_ambiguous)
    assert (len(set(alone)), len({word for word, _ in alone})) == (90, 60)
    assert round(100 * count / len(alone), 1) == 44.4
    assert [round(100 * number / count, 1) for number in undecided] == [100, 26.3, 13.3, 5.4, 2.2, 0.1, 0]
    assert undecided[6] == 0


@pytest.mark.parametrize(("radius", "percent"), [(0, 83.9), (1, 93.1), (2, 93.8)])
def test_table_of_windows_reaches_its_documented_accuracy(corpus, radius, percent):
    tables = []
    for narrower in range(radius + 1):
        table = defaultdict(Counter)
        for window, tag in windows(corpus["train"], narrower):
            table[window][tag] += 1
        tables.append(table)
    correct = 0
    for window, tag in windows(corpus["test"], radius):
        seen = [tables[n][window[radius - n : radius + n + 1]] for n in range(radius, -1, -1)]
        counts = next(counter for counter in seen if counter)
        correct += tag == max(sorted(counts), key=counts.get)
    assert round(100 * correct / len(windows(corpus["test"], radius)), 1) == percent
    assert f"{percent} %" in AmbiguousWords.__doc__


@pytest.mark.parametrize("split", FILES)
def test_ambiguous_words_are_chain_graphs_of_the_text(split, corpus, tmp_path):
    dataset = AmbiguousWords(tmp_path, split=split)
    assert len(dataset) == len(corpus[split])
    assert dataset.num_classes == len(dataset.tags) == 11
    assert dataset.vocabulary[0] == "<unknown>"
    for data, sentence in zip(dataset, corpus[split], strict=True):
        n = len(sentence)
        assert data.words == list(words_of(sentence))
        assert [dataset.vocabulary[index] for index in data.x] == data.words
        assert [dataset.tags[index] for index in data.y] == [tag for _, tag in sentence]
        assert data.x.dtype == data.y.dtype == data.edge_index.dtype == torch.long
        chain = [[j, i] for i in range(n) for j in range(n) if abs(i - j) == 1]
        assert data.edge_index.t().tolist() == chain


def test_ambiguous_words_batch(tmp_path):
    dataset = AmbiguousWords(tmp_path, split="dev")
    batch = next(iter(DataLoader(dataset, batch_size=8)))
    assert batch.words == [data.words for data in dataset[:8]]
    assert batch.num_nodes == len(batch.y) == sum(map(len, batch.words))
    # Edges stay inside their sentence.
    assert torch.equal(batch.batch[batch.edge_index[0]], batch.batch[batch.edge_index[1]])


def test_ambiguous_words_take_transforms_and_filters(tmp_path):
    def reverse(data):
        data.words = data.words[::-1]
        return data

    dataset = AmbiguousWords(tmp_path, "test", pre_filter=lambda data: data.num_nodes == 4, pre_transform=reverse)
    assert dataset[0].words == ["saw", "a", "saw", "I"]
    assert {data.num_nodes for data in dataset} == {4}
    dataset = AmbiguousWords(tmp_path, "test", transform=reverse, force_reload=True)
    assert dataset[0].words == ["saw", "a", "saw", "I"]
    assert dataset.num_classes == 11


def test_a_changed_corpus_is_refused_even_when_processed(tmp_path):
    AmbiguousWords(tmp_path)
    path = tmp_path / FILES["dev"].path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=r"AmbiguousWords: .*dev\.txt must be the published file.*\(16193 bytes\)"
    ) as caught:
        AmbiguousWords(tmp_path)
    assert str(tmp_path / "AmbiguousWords") in str(caught.value)
    path.unlink()
    assert len(AmbiguousWords(tmp_path, "dev")) == 250


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"AmbiguousWords: split must be one of .* got 'tset'\. Did you mean 'test'\?"):
        AmbiguousWords(tmp_path, split="tset")
    assert files_below(tmp_path) == []
