"""Data sets as PyG `Dataset`s: node classification graphs, corpora for tagging, and images."""

from __future__ import annotations

from .ambiguous import AmbiguousWords as AmbiguousWords
from .digits import digits_graph as digits_graph
from .grammar import generate_ambiguous_words as generate_ambiguous_words
from .graphs import GRAPHS as GRAPHS
from .graphs import load_graph as load_graph
from .mnist import MNIST as MNIST
from .roots import dataset_root as dataset_root
from .universal_dependencies import TREEBANKS as TREEBANKS
from .universal_dependencies import UniversalDependencies as UniversalDependencies

__all__ = [
    "GRAPHS",
    "MNIST",
    "TREEBANKS",
    "AmbiguousWords",
    "UniversalDependencies",
    "dataset_root",
    "digits_graph",
    "generate_ambiguous_words",
    "load_graph",
]
