"""Seq2Seq and its example."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import run_example

from graphattn import Edges, Full, Window
from graphattn.nn import DenseGraphAttention, Encoding, LearnedPosition, RelativeBias, Rotary, Seq2Seq, Sinusoidal

SOURCE, SOURCE_SIZES = torch.tensor([1, 4, 4, 2, 0, 3, 6, 5, 1]), [3, 0, 5, 1]
TARGET, TARGET_SIZES = torch.tensor([0, 2, 3, 0, 4, 0, 3, 2, 2, 0]), [3, 2, 4, 1]


def small(**options):
    torch.manual_seed(0)
    return Seq2Seq(7, 5, 8, 2, heads=2, **options).double()


def test_sparse_equals_the_dense_twin():
    sparse, dense = (
        small(dropout=0.2, attention_dropout=0.3, **options) for options in ({}, {"layer": DenseGraphAttention})
    )
    dense.load_state_dict(sparse.state_dict())
    results = []
    for model in (sparse, dense):
        torch.manual_seed(1)
        out = model(SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "encoding",
    [None, Encoding(), LearnedPosition(8, 9), Rotary(4), (Sinusoidal(8), RelativeBias(2, 3))],
    ids=["default", "none", "learned", "rotary", "pair"],
)
def test_a_batch_equals_each_alone(encoding):
    model = small(encoding=encoding)
    together = model(SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES)
    sides = zip(SOURCE.split(SOURCE_SIZES), TARGET.split(TARGET_SIZES), strict=True)
    separately = [model(source, len(source), target, [len(target)]) for source, target in sides]
    torch.testing.assert_close(together, torch.cat(separately))
    sizes = torch.tensor(SOURCE_SIZES), torch.tensor(TARGET_SIZES, dtype=torch.int32)
    assert torch.equal(together, model(SOURCE.int(), sizes[0], TARGET.int(), sizes[1]))


def test_a_later_target_token_changes_no_earlier_logit():
    model = small()
    changed = TARGET.clone()
    changed[7] = 1
    before, after = (model(SOURCE, SOURCE_SIZES, target, TARGET_SIZES) for target in (TARGET, changed))
    is_later = torch.tensor([False] * 7 + [True] * 2 + [False])
    torch.testing.assert_close(before[~is_later], after[~is_later], rtol=0, atol=1e-14)
    assert (before[is_later] != after[is_later]).all()


def test_a_source_token_changes_the_logits_of_its_own_sequence_alone():
    model = small()
    changed = SOURCE.clone()
    changed[4] = 6
    before, after = (model(source, SOURCE_SIZES, TARGET, TARGET_SIZES) for source in (SOURCE, changed))
    is_own = torch.tensor([False] * 5 + [True] * 4 + [False])
    torch.testing.assert_close(before[~is_own], after[~is_own], rtol=0, atol=1e-14)
    assert (before[is_own] != after[is_own]).all()


def test_the_order_of_the_source_matters_and_of_a_source_without_positions_does_not():
    swapped = SOURCE.clone()
    swapped[[0, 2]] = SOURCE[[2, 0]]
    for encoding, is_same in ((None, False), ((Encoding(), Sinusoidal(8)), True)):
        model = small(encoding=encoding)
        before, after = (model(source, SOURCE_SIZES, TARGET, TARGET_SIZES) for source in (SOURCE, swapped))
        assert torch.allclose(before, after) == is_same


def test_greedy_decoding_takes_the_likeliest_of_the_teacher_forced_logits():
    ended = set()
    for seed in range(4):
        torch.manual_seed(seed)
        model = Seq2Seq(7, 5, 8, 2, heads=2).double()
        # Logits of a model that has learned nothing hardly differ: sharper ones end at different lengths.
        model.decoder.lin_out.weight.data *= 20
        tokens, sizes = model.generate(SOURCE, SOURCE_SIZES, begin=0, end=1, max_length=6)
        assert tokens.dtype == sizes.dtype == torch.int64 and tokens.shape == (sizes.sum(),) and len(sizes) == 4
        assert not (tokens == 1).any() and not tokens.requires_grad
        for source, written in zip(SOURCE.split(SOURCE_SIZES), tokens.split(sizes.tolist()), strict=True):
            given = F.pad(written, (1, 0))
            # What begins a sequence is never written.
            likeliest = model(source, len(source), given, len(given))[:, 1:].argmax(1) + 1
            assert torch.equal(likeliest[:-1], written)
            assert likeliest[-1] == 1 or len(written) == 6
            ended.add(len(written))
    assert 6 in ended and len(ended) > 2


def test_what_begins_a_sequence_is_never_written():
    model = Seq2Seq(5, 5, 8, 1, heads=2).eval()
    torch.nn.init.constant_(model.decoder.lin_out.bias, 0.0)
    model.decoder.lin_out.bias.data[0] = 100
    tokens, sizes = model.generate(torch.tensor([1, 2]), [2], begin=0, end=1, max_length=3)
    assert 0 not in tokens and len(tokens) == sizes
    assert model.generate(torch.tensor([1, 2]), [2], begin=0, end=0, max_length=3)[1].tolist() == [0]


def test_the_loss_shifts_each_target_by_one():
    model = small()
    expected = []
    for source, target in zip(SOURCE.split(SOURCE_SIZES), TARGET.split(TARGET_SIZES), strict=True):
        begin, end = torch.tensor([0]), torch.tensor([1])
        logits = model(source, len(source), torch.cat([begin, target]), len(target) + 1)
        expected.append(F.cross_entropy(logits, torch.cat([target, end]), reduction="none"))
    loss = model.loss(SOURCE, SOURCE_SIZES, TARGET.int(), TARGET_SIZES, begin=0, end=1)
    torch.testing.assert_close(loss, torch.cat(expected).mean())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_it_learns_to_reverse():
    torch.manual_seed(0)
    model = Seq2Seq(6, 8, 32, 1, heads=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def draw(count):
        sizes = torch.randint(1, 5, (count,))
        source = torch.randint(6, (int(sizes.sum()),))
        return source, sizes, torch.cat([part.flip(0) for part in source.split(sizes.tolist())])

    for _ in range(250):
        source, sizes, target = draw(64)
        optimizer.zero_grad()
        model.loss(source, sizes, target, sizes, begin=6, end=7).backward()
        optimizer.step()
    source, sizes, target = draw(50)
    written, lengths = model.generate(source, sizes, begin=6, end=7, max_length=6)
    assert torch.equal(lengths, sizes) and (written == target).double().mean() > 0.95


def test_weights_of_the_source_are_returned():
    model = small()
    logits, weights = model(SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES, return_attention_weights=True)
    torch.testing.assert_close(logits, model(SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES))
    assert len(weights) == 2
    across = Full(TARGET_SIZES, SOURCE_SIZES)
    for edges, weight in weights:
        assert torch.equal(edges, across.edge_index)
        total = torch.zeros(10, 2, dtype=torch.float64).index_add(0, edges[1], weight)
        has_source = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1, 1], dtype=torch.float64)
        torch.testing.assert_close(total, has_source[:, None].expand(-1, 2))


def test_the_source_may_have_any_pattern():
    model = small(encoding=(Encoding(), Sinusoidal(8)))
    sides = (SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES)
    full, window = Full(SOURCE_SIZES), Window(SOURCE_SIZES, radius=1)
    out = model(*sides)
    torch.testing.assert_close(model(*sides, source_pattern=Edges(full.edge_index, 9)), out)
    assert not torch.allclose(model(*sides, source_pattern=window), out)
    torch.testing.assert_close(model(*sides, source_pattern=window.edge_index), model(*sides, source_pattern=window))
    expected = model.decode(model.encode(SOURCE, SOURCE_SIZES, window), *sides[1:])
    torch.testing.assert_close(model(*sides, source_pattern=window), expected)
    ends = {"begin": 0, "end": 1}
    losses = [model.loss(*sides, **ends, source_pattern=pattern) for pattern in (None, window)]
    assert losses[0] != losses[1]
    model.generate(*sides[:2], **ends, max_length=3, source_pattern=window)


def test_dropout_acts_in_training_alone():
    model = small(dropout=0.5)
    sides = (SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES)
    assert not torch.equal(model(*sides), model(*sides))
    model.eval()
    assert torch.equal(model(*sides), model(*sides))
    model.generate(*sides[:2], begin=0, end=1, max_length=2)
    assert not model.training


def test_a_batch_of_nothing_runs():
    model, nothing = small(), torch.empty(0, dtype=torch.int64)
    assert model(nothing, [], nothing, []).shape == (0, 5)
    assert model(SOURCE, [4, 5], nothing, [0, 0]).shape == (0, 5)
    tokens, sizes = model.generate(nothing, [], begin=0, end=1, max_length=3)
    assert tokens.shape == sizes.shape == (0,)


def test_encodings_of_both_sides_are_apart():
    model = small(encoding=LearnedPosition(8, 9))
    assert model.encoder.encoding.weight is not model.decoder.encoding.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    assert not any((parameter == 7).any() for parameter in model.parameters())


def test_it_runs_in_bfloat16_and_is_copied():
    model = small().bfloat16()
    out = model(SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES)
    assert out.dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(model)(SOURCE, SOURCE_SIZES, TARGET, TARGET_SIZES), out)


ENDS = {"begin": 0, "end": 1, "max_length": 3}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Seq2Seq(0, 5, 8, 1), ValueError, "Seq2Seq: source_tokens must be at least 1, got 0"),
        (lambda: Seq2Seq(7, 2.5, 8, 1), TypeError, "Seq2Seq: target_tokens must be an integer, got 2.5"),
        (lambda: Seq2Seq(7, 5, 0, 1), ValueError, "Seq2Seq: channels must be at least 1, got 0"),
        (lambda: Seq2Seq(7, 5, 7, 1), ValueError, "Sinusoidal: channels must be a multiple of 2"),
        (lambda: Seq2Seq(7, 5, 8, 1, encoding=(Encoding(),)), ValueError, r"or a pair \(encoder's, decoder's\), got 1"),
        (
            lambda: small()(SOURCE, [3, 5], TARGET, [5, 5]),
            ValueError,
            "source_sizes must add up to the 9 rows of source, got 8",
        ),
        (
            lambda: small()(SOURCE, [4, 5], TARGET, [5, 6]),
            ValueError,
            "target_sizes must add up to the 10 rows of target, got 11",
        ),
        (
            lambda: small()(SOURCE, [9], TARGET, [5, 5]),
            ValueError,
            "source_sizes must name as many sequences as target_sizes, 2, got 1",
        ),
        (lambda: small()(SOURCE, [-1, 10], TARGET, [5, 5]), ValueError, "Seq2Seq: sizes must be at least 0, got -1"),
        (lambda: small()(SOURCE + 1, 9, TARGET, 10), ValueError, r"source must lie in \[0, 7\), got 7 at place 6"),
        (lambda: small()(SOURCE, 9, TARGET - 1, 10), ValueError, r"target must lie in \[0, 5\), got -1 at place 0"),
        (
            lambda: small()(SOURCE.float(), 9, TARGET, 10),
            TypeError,
            "source must be a tensor of int64 or int32, got torch.float32",
        ),
        (
            lambda: small()(SOURCE, 9, TARGET.tolist(), 10),
            TypeError,
            "target must be a tensor of int64 or int32, got list",
        ),
        (lambda: small()(SOURCE[None], 9, TARGET, 10), ValueError, r"source must have one dimension.*got \[1, 9\]"),
        (
            lambda: small().generate(SOURCE, 9, **ENDS | {"begin": 5}),
            ValueError,
            r"begin must be a target token, in \[0, 5\), got 5",
        ),
        (
            lambda: small().generate(SOURCE, 9, **ENDS | {"end": -1}),
            ValueError,
            "Seq2Seq: end must be at least 0, got -1",
        ),
        (
            lambda: small().generate(SOURCE, 9, **ENDS | {"max_length": 0}),
            ValueError,
            "max_length must be at least 1, got 0",
        ),
        (lambda: small().loss(SOURCE, 9, TARGET, 10, begin=0, end=7), ValueError, "end must be a target token"),
        (
            lambda: small()(SOURCE, 9, TARGET, 10, source_pattern=Full(8)),
            ValueError,
            "Seq2Seq: pattern must have as many sources as source has rows, 9, got 8",
        ),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_example_reports_and_draws(tmp_path):
    record = tmp_path / "record.json"
    printed = run_example(
        "seq2seq.py", "--smoke", "--models", "Seq2Seq", "LSTM", "--output", str(tmp_path), "--record", str(record)
    )
    assert "dates, Seq2Seq: exact match " in printed and "dates, LSTM: exact match " in printed
    assert printed.count(" -> ") == 6
    assert [row["measure"] for row in json.loads(record.read_text())] == ["exact match"] * 2
    assert (tmp_path / "seq2seq.png").exists()
