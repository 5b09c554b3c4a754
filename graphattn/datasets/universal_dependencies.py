"""Annotated sentences of Universal Dependencies: a tag for each word, and the word that it depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch_geometric.data import Data, InMemoryDataset, download_url

from ..errors import check_choice, message
from .ambiguous import chain
from .roots import RawFile, check_file, dataset_root

SPLITS = ("train", "dev", "test")
# Release 2.16; the checksums say whether the files are those of that release.
TREEBANKS = {
    "UD_English-EWT": (
        RawFile(
            "UD/UD_English-EWT/raw/en_ewt-ud-train.conllu",
            "3fb78e2b55482c8ee00caa653af436c88c9e5bc9a73ce26e4ae3ddc79d2b7e7b",
            14203025,
        ),
        RawFile(
            "UD/UD_English-EWT/raw/en_ewt-ud-dev.conllu",
            "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6",
            1805545,
        ),
        RawFile(
            "UD/UD_English-EWT/raw/en_ewt-ud-test.conllu",
            "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd",
            1804515,
        ),
    ),
}
URL = "https://raw.githubusercontent.com/UniversalDependencies/{treebank}/r2.16"


class Sentence(NamedTuple):
    """The words of one sentence with their annotations; heads count from 0, and the root has -1."""

    words: list[str]
    tags: list[str]
    heads: list[int]
    relations: list[str]


class UniversalDependencies(InMemoryDataset):
    """Sentences with part-of-speech tags and dependencies, one chain graph per sentence.

    UD_English-EWT 2.16 has 12,544 / 2,001 / 2,077 sentences of 204,577 / 25,147 / 25,094 words in train / dev /
    test, and 17 tags. Words are the rows whose ID is an integer: "don't" is two words, and elided words, which the
    treebank adds, are not counted.

    Missing files are downloaded; partial downloads are not kept.

    Args:
        root: the data set root; see `dataset_root` for the default. The files are in its `UD/<treebank>/`.
        split: "train", "dev" or "test".
        treebank: "UD_English-EWT".
        transform: applied to a `Data` at every access.
        pre_transform: applied to each `Data` once, before it is stored.
        pre_filter: keeps the `Data` for which it is true, before they are stored.
        force_reload: process the files again.

    Returns:
        A data set of `Data`, one per sentence of n words: x [n] long, word ids, 0 = not in train; y [n] long, tag
        ids; head [n] long, the index in the sentence of the word that each depends on, -1 for the root; relation
        [n] long, the ids of these dependencies; edge_index [2, 2 (n - 1)], the neighbors in both directions,
        sorted by target, then source; words, the text of each. `dataset.vocabulary[id]`, `dataset.tags[id]` and
        `dataset.relations[id]` turn ids back into text. Upper and lower case are different words.

    Raises:
        ValueError: split or treebank is unknown, or a file is truncated, changed or not CoNLL-U.
        FileNotFoundError: files are missing and can't be downloaded. No partial files remain.
        ImportError: the package conllu is missing; it is needed once, to process the files.

    Example:
        >>> dataset = UniversalDependencies(split="dev")  # doctest: +SKIP
        >>> dataset[0].words, [dataset.tags[tag] for tag in dataset[0].y]  # doctest: +SKIP
        (['From', 'the', 'AP', 'comes', 'this', 'story', ':'],
         ['ADP', 'DET', 'PROPN', 'VERB', 'DET', 'NOUN', 'PUNCT'])
        >>> dataset[0].head  # doctest: +SKIP
        tensor([ 2,  2,  3, -1,  5,  3,  3])
        >>> UniversalDependencies(split="validation")
        Traceback (most recent call last):
        ValueError: UniversalDependencies: split must be one of 'train', 'dev', 'test', got 'validation'.

    References:
        Silveira et al., "A Gold Standard Dependency Corpus for English", LREC 2014 (UD_English-EWT);
        https://universaldependencies.org/format.html (CoNLL-U).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        treebank: str = "UD_English-EWT",
        transform: Callable[[Data], Data] | None = None,
        pre_transform: Callable[[Data], Data] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        check_choice("UniversalDependencies", "split", split, SPLITS)
        check_choice("UniversalDependencies", "treebank", treebank, TREEBANKS)
        self.split, self.treebank = split, treebank
        folder = str(dataset_root(root) / "UD" / treebank)
        super().__init__(folder, transform, pre_transform, pre_filter, force_reload=force_reload)
        *graphs, names = self.processed_paths
        self.vocabulary, self.tags, self.relations = json.loads(Path(names).read_text(encoding="utf-8"))
        self.load(graphs[SPLITS.index(split)])

    @property
    def raw_file_names(self) -> list[str]:
        """The files below `raw/`."""
        return [Path(file.path).name for file in TREEBANKS[self.treebank]]

    @property
    def processed_file_names(self) -> list[str]:
        """The files below `processed/`: the graphs of each split, then the names behind the ids."""
        return [*(f"{split}.pt" for split in SPLITS), "names.json"]

    @property
    def num_classes(self) -> int:
        """The number of tags, also for a split in which one doesn't occur."""
        return len(self.tags)

    def download(self) -> None:
        """Download the missing files into a scratch folder first, and keep all of them or none."""
        folder = Path(self.raw_dir)
        missing = [file for file in TREEBANKS[self.treebank] if not (folder / Path(file.path).name).exists()]
        names = [Path(file.path).name for file in missing]
        url = URL.format(treebank=self.treebank)
        try:
            with TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
                for file, name in zip(missing, names, strict=True):
                    arrived = RawFile(name, file.sha256, file.size)
                    download_url(f"{url}/{name}", scratch)
                    check_file("UniversalDependencies", Path(scratch), arrived, "The original has changed.")
                for name in names:
                    os.replace(Path(scratch) / name, folder / name)
        except Exception as error:
            # urllib, TLS, timeouts and our own check share no base class.
            rule = f"needs files that are missing and can't be downloaded: {', '.join(names)}"
            fix = f"Download them from {url}/ and put them into {folder}."
            got = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
            raise FileNotFoundError(message("UniversalDependencies", self.treebank, rule, got, fix)) from error

    def process(self) -> None:
        """Turn each file into graphs."""
        splits = []
        for file, raw in zip(TREEBANKS[self.treebank], map(Path, self.raw_paths), strict=True):
            known = RawFile(raw.name, file.sha256, file.size)
            check_file("UniversalDependencies", raw.parent, known, f"Delete {raw} and load again.")
            splits.append(list(read_conllu(raw)))
        vocabulary = ["<unknown>", *sorted({word for sentence in splits[0] for word in sentence.words})]
        # Names of all splits: an id for each tag and relation reveals nothing about the sentences of a test.
        tags = sorted({tag for split in splits for sentence in split for tag in sentence.tags})
        relations = sorted({name for split in splits for sentence in split for name in sentence.relations})
        word_ids, tag_ids, relation_ids = (
            {name: index for index, name in enumerate(names)} for names in (vocabulary, tags, relations)
        )
        *paths, names = self.processed_paths
        for split, path in zip(splits, paths, strict=True):
            graphs = []
            for sentence in split:
                data = Data(
                    x=torch.tensor([word_ids.get(word, 0) for word in sentence.words]),
                    y=torch.tensor([tag_ids[tag] for tag in sentence.tags]),
                    head=torch.tensor(sentence.heads),
                    relation=torch.tensor([relation_ids[name] for name in sentence.relations]),
                    edge_index=chain(len(sentence.words)),
                    words=sentence.words,
                )
                if self.pre_filter is None or self.pre_filter(data):
                    graphs.append(data if self.pre_transform is None else self.pre_transform(data))
            self.save(graphs, path)
        Path(names).write_text(json.dumps([vocabulary, tags, relations]), encoding="utf-8")


def read_conllu(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a file in CoNLL-U; raise ValueError if it isn't."""
    try:
        import conllu
    except ImportError as error:
        fix = "Use pip install 'graphattn[examples]' or pip install conllu."
        raise ImportError(message("UniversalDependencies", "conllu", "must be installed", fix=fix)) from error
    fields = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel")
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            # Features stay text, because they aren't used and parsing them would take most of the time.
            parsers = {"feats": lambda line, column: line[column]}
            for rows in conllu.parse_incr(file, fields=fields, field_parsers=parsers):
                yield _sentence([row for row in rows if isinstance(row["id"], int)])
                number += 1
        if number == 0:
            raise ValueError("no sentence")
    except (ValueError, conllu.exceptions.ParseException) as error:
        got = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        fix = f"Delete {path} and load again."
        got = f"{got}, after {number} good sentences"
        raise ValueError(message("UniversalDependencies", str(path), "must be CoNLL-U", got, fix)) from error


def _sentence(rows: list[dict[str, Any]]) -> Sentence:
    count = len(rows)
    if [row["id"] for row in rows] != list(range(1, count + 1)) or count == 0:
        raise ValueError("words are not numbered from 1 on")
    if any("deprel" not in row for row in rows):
        raise ValueError("a word of fewer than 8 columns")
    if any(row["upos"] == "_" or row["deprel"] == "_" for row in rows):
        raise ValueError("a word without tag or relation")
    if not all(isinstance(row["head"], int) and 0 <= row["head"] <= count for row in rows):
        raise ValueError(f"a head outside [0, {count}]")
    return Sentence(
        [row["form"] for row in rows],
        [row["upos"] for row in rows],
        [row["head"] - 1 for row in rows],
        [row["deprel"] for row in rows],
    )
