"""A sequence in, another sequence out: encoder, decoder, and greedy decoding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding

from ..call import as_pattern
from ..errors import check_int, check_keywords, message, shape_of
from ..patterns import Full, Pattern, PatternLike
from ..patterns.base import Sides
from ..patterns.box import parse_sizes
from .attention import GraphAttention
from .block import TransformerBlock
from .encodings import Encoding, Sinusoidal
from .projections import check_heads
from .transformer import GraphTransformer
from .typed import Maybe, No, Yes, typed_as

Sizes = int | Sequence[int] | Tensor


class Seq2Seq(torch.nn.Module):
    """The transformer from sequences to sequences, n -> m, over ragged batches without padding.

        memory = encoder(source),    logits_t = decoder(target_1, ..., target_t, memory)

    Sequences of a batch are concatenated; sizes say where they end. The encoder attends along the full pattern or any
    other, the decoder along the causal one, and in between to the whole memory of its own sequence.

    Args:
        source_tokens: number of source tokens; ids are 0, ..., source_tokens - 1.
        target_tokens: number of target tokens, including those for the beginning and the end.
        channels: features per token; embeddings are drawn from a normal distribution.
        num_layers: blocks of the encoder, and as many of the decoder.
        heads: H; must divide `channels`.
        encoding: for encoder and decoder, which get separate copies, or a pair (encoder's, decoder's);
            `Sinusoidal(channels)` if omitted, and `Encoding()` for none.
        dropout: as in `GraphTransformer`.
        options: as in `TransformerBlock`: `feed_forward`, `attention_dropout`, `layer`, `score`, `normalizer`, ...

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> model = Seq2Seq(source_tokens=7, target_tokens=5, channels=8, num_layers=2, heads=2)
        >>> source, target = torch.tensor([3, 6, 0, 2, 2]), torch.tensor([0, 2, 0, 4, 3, 2])
        >>> model(source, [3, 2], target, [2, 4]).shape
        torch.Size([6, 5])
        >>> tokens, sizes = model.generate(source, [3, 2], begin=0, end=1, max_length=4)
        >>> tokens.shape == (sizes.sum(),), bool((sizes <= 4).all())
        (True, True)

    References:
        Sutskever et al., "Sequence to Sequence Learning with Neural Networks", 2014; Vaswani et al., "Attention Is All
        You Need", 2017. Here the norms come first (pre-norm), embeddings are not shared, and nothing is padded.
    """

    def __init__(
        self,
        source_tokens: int,
        target_tokens: int,
        channels: int,
        num_layers: int,
        heads: int = 1,
        *,
        encoding: Encoding | tuple[Encoding, Encoding] | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.source_tokens = check_int("Seq2Seq", "source_tokens", source_tokens, 1)
        self.target_tokens = check_int("Seq2Seq", "target_tokens", target_tokens, 1)
        self.channels = check_int("Seq2Seq", "channels", channels, 1)
        check_keywords("Seq2Seq", options, Seq2Seq, TransformerBlock, options.get("layer", GraphAttention))
        check_heads("Seq2Seq", "channels", self.channels, heads, options.get("head_channels"))
        encoding = Sinusoidal(channels) if encoding is None else encoding
        pair = encoding if isinstance(encoding, tuple) else (encoding, copy.deepcopy(encoding))
        if len(pair) != 2:
            rule = "must be one encoding or a pair (encoder's, decoder's)"
            raise ValueError(message("Seq2Seq", "encoding", rule, f"{len(pair)} of them"))
        self.source_embedding = Embedding(source_tokens, channels)
        self.target_embedding = Embedding(target_tokens, channels)
        shape: Any = (num_layers, heads)
        shared: Any = {"dropout": dropout, **options}
        self.encoder = GraphTransformer(None, channels, None, *shape, encoding=pair[0], **shared)
        self.decoder = GraphTransformer(
            None, channels, target_tokens, *shape, encoding=pair[1], memory_channels=channels, **shared
        )

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in (self.source_embedding, self.target_embedding, self.encoder, self.decoder):
            module.reset_parameters()

    @overload
    def forward(
        self,
        source: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        *,
        source_pattern: PatternLike | None = ...,
        return_attention_weights: No = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        source: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        *,
        source_pattern: PatternLike | None = ...,
        return_attention_weights: Yes = ...,
    ) -> tuple[Tensor, list[Any]]: ...
    @overload
    def forward(
        self,
        source: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        *,
        source_pattern: PatternLike | None = ...,
        return_attention_weights: Maybe = ...,
    ) -> Tensor | tuple[Tensor, list[Any]]: ...
    def forward(
        self,
        source: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        *,
        source_pattern: PatternLike | None = None,
        return_attention_weights: Maybe = None,
    ) -> Tensor | tuple[Tensor, list[Any]]:
        """Score the next token after each target token, given those up to it (teacher forcing).

        Args:
            source: [S] int64, the tokens of all sequences, one sequence after another.
            source_sizes: [G] how many of them each of the G sequences has; 0 is allowed.
            target: [T] int64, the input of the decoder: the beginning, then the expected tokens.
            target_sizes: [G] likewise.
            source_pattern: who attends to whom in the source, such as a `Window` or a graph's edges; full if omitted.
            return_attention_weights: also return the weights of the attention to the source.

        Returns:
            Logits [T, target_tokens]; or those and a list with a pair for each layer of the decoder: edges [2, E] from
            source to target tokens, and weights [E, H] (of a dense `layer`, only the weights [H, T, S]).

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        memory = self.encode(source, source_sizes, source_pattern)
        return self.decode(memory, source_sizes, target, target_sizes, return_attention_weights)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def encode(self, source: Tensor, source_sizes: Sizes, source_pattern: PatternLike | None = None) -> Tensor:
        """Return the memory [S, channels]; arguments as in `forward`."""
        sizes = _check_tokens("source", source, self.source_tokens, source_sizes)
        pattern = Full(sizes) if source_pattern is None else source_pattern
        if isinstance(pattern, Pattern):
            rows = source.size(0)
            as_pattern("Seq2Seq", pattern, rows, rows, sides=Sides("source", "source"))
        return self.encoder(self.source_embedding(source), pattern)

    @overload
    def decode(
        self,
        memory: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        return_attention_weights: No = ...,
    ) -> Tensor: ...
    @overload
    def decode(
        self,
        memory: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        return_attention_weights: Yes = ...,
    ) -> tuple[Tensor, list[Any]]: ...
    @overload
    def decode(
        self,
        memory: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        return_attention_weights: Maybe = ...,
    ) -> Tensor | tuple[Tensor, list[Any]]: ...
    def decode(
        self,
        memory: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        return_attention_weights: Maybe = None,
    ) -> Tensor | tuple[Tensor, list[Any]]:
        """Return what `forward` returns, from the memory [S, channels] that `encode` returns."""
        sizes = _check_tokens("target", target, self.target_tokens, target_sizes)
        across = Full(sizes, _check_sizes("memory", memory.size(0), source_sizes, target, len(sizes)))
        out = self.decoder(
            self.target_embedding(target),
            Full(sizes, causal=True),
            memory=memory,
            memory_pattern=across,
            return_attention_weights=return_attention_weights,
        )
        if not return_attention_weights:
            return out
        logits, weights = out
        return logits, [of_memory for _, of_memory in weights]

    def loss(
        self,
        source: Tensor,
        source_sizes: Sizes,
        target: Tensor,
        target_sizes: Sizes,
        *,
        begin: int,
        end: int,
        source_pattern: PatternLike | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy per token of writing each target and then `end`, having read `begin`.

        Here `target` [T] contains neither of the two, like the result of `generate`; the other arguments are those of
        `forward`.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        begin, end = self._check_token("begin", begin), self._check_token("end", end)
        sizes = _check_tokens("target", target, self.target_tokens, target_sizes)
        graph = torch.repeat_interleave(torch.arange(len(sizes), device=target.device), sizes)
        place = torch.arange(len(target), device=target.device) + graph
        longer = len(target) + len(sizes)
        given = target.new_full((longer,), begin).index_copy_(0, place + 1, target)
        wanted = target.new_full((longer,), end).index_copy_(0, place, target)
        logits = self(source, source_sizes, given, sizes + 1, source_pattern=source_pattern)
        return F.cross_entropy(logits, wanted.long())

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_sizes: Sizes,
        *,
        begin: int,
        end: int,
        max_length: int,
        source_pattern: PatternLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Generate the most likely next token other than `begin` until it is `end` (greedy decoding).

        The source is encoded once; for each further token, the decoder runs again over all tokens generated so far,
        without sequences that have ended. Dropout is active in training mode, as in `forward`: call `model.eval()`
        first.

        Args:
            source, source_sizes, source_pattern: as in `forward`.
            begin: the token that the decoder reads first.
            end: the token that ends a sequence.
            max_length: maximal number of tokens of a sequence, `end` not counted.

        Returns:
            The tokens [T] int64 of all sequences, without `begin` and `end`, and the G sizes, int64.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        begin, end = self._check_token("begin", begin), self._check_token("end", end)
        max_length = check_int("Seq2Seq", "max_length", max_length, 1)
        sizes = _check_tokens("source", source, self.source_tokens, source_sizes)
        memory = self.encode(source, sizes, source_pattern)
        running = torch.arange(len(sizes), device=source.device)
        written = torch.empty(len(sizes), 0, dtype=torch.int64, device=source.device)
        while len(running) and written.size(1) < max_length:
            # All sequences that are still running have the same length.
            prefix = F.pad(written[running], (1, 0), value=begin)
            logits = self.decode(memory, sizes, prefix.flatten(), torch.full_like(running, prefix.size(1)))
            logits = logits.unflatten(0, prefix.shape)[:, -1]
            if begin != end:
                logits[:, begin] = -torch.inf
            token = logits.argmax(-1)
            column = written.new_full((len(written), 1), end).index_copy(0, running, token[:, None])
            written = torch.cat([written, column], 1)
            goes_on = token != end
            memory = memory[goes_on.repeat_interleave(sizes)]
            running, sizes = running[goes_on], sizes[goes_on]
        is_token = written != end
        return written[is_token], is_token.sum(1)

    def _check_token(self, argument: str, token: int) -> int:
        token = check_int("Seq2Seq", argument, token, 0)
        if token >= self.target_tokens:
            rule = f"must be a target token, in [0, {self.target_tokens})"
            raise ValueError(message("Seq2Seq", argument, rule, token))
        return token

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.source_tokens}, {self.target_tokens}, {self.channels}"


def _check_tokens(argument: str, tokens: Tensor, count: int, sizes: Sizes) -> Tensor:
    """Check the ids of one side, and return its sizes [G] int64."""
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(message("Seq2Seq", argument, "must be a tensor of int64 or int32", got))
    if tokens.dim() != 1:
        rule = "must have one dimension, the sequences one after another"
        raise ValueError(message("Seq2Seq", argument, rule, shape_of(tokens)))
    wrong = (tokens < 0) | (tokens >= count)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise ValueError(
            message("Seq2Seq", argument, f"must lie in [0, {count})", f"{int(tokens[place])} at place {place}")
        )
    return _check_sizes(argument, len(tokens), sizes, tokens)


def _check_sizes(argument: str, rows: int, sizes: Sizes, like: Tensor, sequences: int | None = None) -> Tensor:
    """Return sizes [G] int64 on the device of `like`, or raise unless their sum and their number fit."""
    name = "source_sizes" if argument == "memory" else f"{argument}_sizes"
    read = parse_sizes("Seq2Seq", sizes).squeeze(1).to(like.device)
    if sequences not in (None, len(read)):
        rule = f"must name as many sequences as target_sizes, {sequences}"
        raise ValueError(message("Seq2Seq", name, rule, len(read)))
    if int(read.sum()) != rows:
        raise ValueError(message("Seq2Seq", name, f"must add up to the {rows} rows of {argument}", int(read.sum())))
    return read
