"""The grammar that writes the AmbiguousWords corpus."""

from __future__ import annotations

import random
from collections.abc import Callable

from ..errors import check_int


def _words(tag: str, words: str) -> tuple[str, ...]:
    return tuple(f"{word}/{tag}" for word in words.split())


# A symbol expands to one of its alternatives with equal probability; everything else is a tagged word.
# Every sentence has one reading only, but the word that decides may be far away, on either side:
#   we saw the old duck dance (VERB)     we liked the old duck dance (NOUN)
#   can (AUX) the fish and eel swim      can (VERB) the fish and eel
#   my lamp is really often light (ADJ)  you will really often light (VERB)
_GRAMMAR: dict[str, tuple[str, ...]] = {
    "Sentence": (
        "Subject Past Object",
        "Subject Past Object",
        "Subject Modal Adverb Action",
        "Subject Modal Adverbs Change",
        "Subject Modal Adverb Handle The Thing",
        "Handle The Thing",
        "Subject Modal Actions",
        "Subject Modal Actions",
        "Pronoun want/VERB to/PART Adverb Action",
        "Pronoun went/VERB to/ADP The Thing",
        "The Thing is/AUX Adverbs State",
        "The Thing and/CCONJ Thing are/AUX Adverb State",
        "Subject Noticed The Being Action",
        "Subject Noticed The Being Actions",
        "Subject Judged The Being Event",
        "Subject Judged The Events",
        "Subject Judged The Being Events",
        "can/AUX The Seafood Action",
        "can/AUX The Seafood and/CCONJ Seafood Action",
        "can/VERB The Seafood",
        "can/VERB The Seafood and/CCONJ Seafood",
    ),
    "Subject": ("Pronoun", "The Being", "The Thing Near The Thing"),
    "Object": ("The Thing", "The Thing Near The Thing", "The Thing and/CCONJ Thing"),
    "Being": ("Seafood", "Person"),
    "Change": ("Make", "Make The Thing"),
    "Actions": ("Action and/CCONJ Action", "Action ,/PUNCT Action and/CCONJ Action"),
    "Events": ("Event and/CCONJ Event", "Event ,/PUNCT Event and/CCONJ Event"),
    "The": ("the/DET", "a/DET", "my/DET", "the/DET Quality"),
    "Adverb": ("", *_words("ADV", "often never")),
    "Adverbs": ("Adverb", "really/ADV Adverb"),
    "Pronoun": _words("PRON", "I you we they"),
    "Modal": _words("AUX", "can will"),
    "Near": _words("ADP", "in near by"),
    "Past": _words("VERB", "saw found liked lost"),
    "Noticed": _words("VERB", "saw heard"),
    "Judged": _words("VERB", "liked found"),
    "Seafood": _words("NOUN", "duck fish crab eel"),
    "Person": _words("NOUN", "cook farmer child"),
    "Thing": _words("NOUN", "saw can will watch book light park plant ring train duck fish play lamp garden"),
    "Handle": _words("VERB", "saw can watch book light park plant ring train play open find"),
    "Make": _words("VERB", "light clean slow open warm dry cool"),
    "State": _words("ADJ", "light clean slow open warm dry cool"),
    "Quality": _words("ADJ", "light clean slow warm old young"),
    "Action": _words("VERB", "run walk play watch train dance swim sleep dive jump duck fish cook ring"),
    "Event": _words("NOUN", "run walk play watch train dance swim sleep dive jump"),
}


def generate_ambiguous_words(seed: int) -> dict[str, str]:
    """Generate the corpus: 2,500 distinct sentences from a small grammar, the same on every machine.

    Args:
        seed: an integer of at least 0. The published corpus has 0.

    Returns:
        The text of each split: 2,000 lines for train, 250 for dev, 250 for test. A line is a sentence,
        written `word/TAG word/TAG` with Universal Dependencies tags; test begins with "I saw a saw".

    Raises:
        TypeError: seed is not an integer.
        ValueError: seed is negative.

    Example:
        >>> generate_ambiguous_words(0)["test"].splitlines()[0]
        'I/PRON saw/VERB a/DET saw/NOUN'
    """
    # In the module random, only random() after an integer seed guarantees the same numbers on every Python.
    draw = random.Random(check_int("generate_ambiguous_words", "seed", seed, 0)).random
    sentences = {"I/PRON saw/VERB a/DET saw/NOUN": None}
    while len(sentences) < 2500:
        sentences[" ".join(_expand("Sentence", draw))] = None
    corpus = {"train": "", "dev": "", "test": ""}
    # Assigned in turn, because short sentences come early: later ones are more often repeats and dropped.
    for index, sentence in enumerate(sentences):
        corpus[{0: "test", 1: "dev"}.get(index % 10, "train")] += f"{sentence}\n"
    return corpus


def _expand(symbol: str, draw: Callable[[], float]) -> list[str]:
    if symbol not in _GRAMMAR:
        return [symbol]
    alternatives = _GRAMMAR[symbol]
    chosen = alternatives[int(draw() * len(alternatives))]
    return [word for part in chosen.split() for word in _expand(part, draw)]
