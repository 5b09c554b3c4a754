"""A small corpus for the tagging problem "I saw a saw": the tag of a word depends on its neighbors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from ..errors import check_choice
from .grammar import generate_ambiguous_words
from .roots import RawFile, check_file, dataset_root

SEED = 0
FILES = {
    "train": RawFile(
        "AmbiguousWords/raw/train.txt",
        "901211cc69e482dbbe6f878bd10836faafc7afda75c925a1caf807c9782b8095",
        127708,
    ),
    "dev": RawFile(
        "AmbiguousWords/raw/dev.txt",
        "fe105a9754c7f0ed827483424da84fc1a228a7ab9bdffe26bb5ccae4f82e8a4d",
        16193,
    ),
    "test": RawFile(
        "AmbiguousWords/raw/test.txt",
        "87179d3cf7e7a45c9f2e9984baf6bb676ff8b2c8370541b313b7a1fdedba534f",
        16074,
    ),
}


class AmbiguousWords(InMemoryDataset):
    """Sentences in which the same word needs different tags, one chain graph per sentence.

    "I saw a saw" is PRON VERB DET NOUN: no network that sees one token at a time can distinguish the two. Of the 60
    forms 28 are ambiguous; these are 44.4 % of the tokens. For 26.3 % of those, the word and its two neighbors occur
    with different tags in the corpus, so that no window of radius 1 can decide. For radius 2 it is 13.3 %, for radius 3
    5.4 %, for radius 6 none.

    A table of the most frequent tag in train of each window, and of each narrower one for unseen windows, has this
    accuracy on test: single words 83.9 %, radius 1 93.1 %, radius 2 93.8 %.

    Args:
        root: the data set root; see `dataset_root` for the default. The files are in its `AmbiguousWords/`.
        split: "train", "dev" or "test".
        transform: applied to a `Data` at every access.
        pre_transform: applied to each `Data` once, before it is stored.
        pre_filter: keeps the `Data` for which it is true, before they are stored.
        force_reload: process the files again.

    Returns:
        A data set of `Data`, one per sentence of n words: x [n] long, word ids, 0 = not in train; y [n] long,
        tag ids; edge_index [2, 2 (n - 1)], the neighbors in both directions, sorted by target, then source;
        words, the text of each. `dataset.vocabulary[id]` and `dataset.tags[id]` turn ids back into text.

    Raises:
        ValueError: split is unknown, or a file differs from the published corpus.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     dataset = AmbiguousWords(root, split="test")
        >>> dataset[0].words, [dataset.tags[tag] for tag in dataset[0].y]
        (['I', 'saw', 'a', 'saw'], ['PRON', 'VERB', 'DET', 'NOUN'])
        >>> dataset[0].edge_index
        tensor([[1, 0, 2, 1, 3, 2],
                [0, 1, 1, 2, 2, 3]])
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Data], Data] | None = None,
        pre_transform: Callable[[Data], Data] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
        force_reload: bool = False,
    ) -> None:
        check_choice("AmbiguousWords", "split", split, FILES)
        root = dataset_root(root)
        _provide(root)
        train = _read(root / FILES["train"].path)
        self.split = split
        self.vocabulary = ["<unknown>", *sorted({word for words, _ in train for word in words})]
        self.tags = sorted({tag for _, tags in train for tag in tags})
        folder = str(root / "AmbiguousWords")
        super().__init__(folder, transform, pre_transform, pre_filter, force_reload=force_reload)
        self.load(self.processed_paths[list(FILES).index(split)])

    @property
    def raw_file_names(self) -> list[str]:
        """The files below `raw/`."""
        return [f"{split}.txt" for split in FILES]

    @property
    def processed_file_names(self) -> list[str]:
        """The files below `processed/`."""
        return [f"{split}.pt" for split in FILES]

    @property
    def num_classes(self) -> int:
        """The number of tags, also for a split in which one doesn't occur."""
        return len(self.tags)

    def process(self) -> None:
        """Turn each text file into graphs."""
        word_ids = {word: index for index, word in enumerate(self.vocabulary)}
        tag_ids = {tag: index for index, tag in enumerate(self.tags)}
        for raw, processed in zip(self.raw_paths, self.processed_paths, strict=True):
            graphs = []
            for words, tags in _read(Path(raw)):
                x = torch.tensor([word_ids.get(word, 0) for word in words])
                y = torch.tensor([tag_ids[tag] for tag in tags])
                graphs.append(Data(x=x, y=y, edge_index=chain(len(words)), words=words))
            if self.pre_filter is not None:
                graphs = [graph for graph in graphs if self.pre_filter(graph)]
            if self.pre_transform is not None:
                graphs = [self.pre_transform(graph) for graph in graphs]
            self.save(graphs, processed)


def _provide(root: Path) -> None:
    """Ensure that the three files of the published corpus are below `root`."""
    missing = [split for split, file in FILES.items() if not (root / file.path).exists()]
    corpus = generate_ambiguous_words(SEED) if missing else {}
    for split in missing:
        path = root / FILES[split].path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renaming is atomic, so that no reader sees half a file.
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(corpus[split].encode())
        os.replace(scratch, path)
    fix = f"Delete raw/ and processed/ in {root / 'AmbiguousWords'} and load again, which generates it."
    for file in FILES.values():
        check_file("AmbiguousWords", root, file, fix)


def _read(path: Path) -> list[tuple[list[str], list[str]]]:
    """Return the words and the tags of each sentence."""
    lines = path.read_text(encoding="utf-8").splitlines()
    sentences = [[token.split("/") for token in line.split()] for line in lines]
    return [([word for word, _ in sentence], [tag for _, tag in sentence]) for sentence in sentences]


def chain(length: int) -> Tensor:
    """Neighbors in both directions, [2, 2 (length - 1)], sorted by target, then source."""
    pairs = [(j, i) for i in range(length) for j in (i - 1, i + 1) if 0 <= j < length]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2).t().contiguous()
