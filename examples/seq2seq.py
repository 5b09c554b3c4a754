"""A sequence in, another sequence out (n -> m): dates in fourteen forms, read by character, written as 2026-11-23.

    python examples/seq2seq.py                 one seed, no download
    python examples/seq2seq.py --seeds 3 --models Seq2Seq LSTM

Expected: about 99.7 % of 7,300 dates right in every character. None of them is seen in training, in any form. `LSTM` is
an encoder-decoder without attention, with about as many parameters, which stores the whole sentence in its state: a
date fits, and about 99.9 % are right.
"""

import argparse
import datetime
import random
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from report import report
from torch.nn.utils.rnn import pack_sequence
from tqdm import tqdm

from graphattn.nn import Seq2Seq

matplotlib.use("Agg")
import matplotlib.pyplot as plt

READ = " ,./-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
WRITTEN, BEGIN, END = "0123456789-", 11, 12

SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
SMALL += "seventeen eighteen nineteen".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
ORDINALS |= {"twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}


def in_words(number):
    """A number below 100."""
    ten, one = divmod(number, 10)
    return SMALL[number] if number < 20 else TENS[ten] + (f"-{SMALL[one]}" if one else "")


def ordinal(number):
    *front, last = in_words(number).split("-")
    return "-".join([*front, ORDINALS.get(last, last + "th")])


def year_in_words(year):
    century, rest = divmod(year, 100)
    if century == 20 and (rest < 10 or random.random() < 0.5):
        return "two thousand" + (f" and {in_words(rest)}" if rest else "")
    return f"{in_words(century)} " + (in_words(rest) if rest > 9 else f"oh {SMALL[rest]}" if rest else "hundred")


def write(date):
    """One of fourteen ways to write a date, at random."""
    day, month, year = date.day, f"{date:%B}", date.year
    suffix = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    forms = (
        f"{day} {month} {year}",
        f"{day} {month[:3]} {year}",
        f"{month} {day}, {year}",
        f"{month[:3]} {day}{suffix} {year}",
        f"{month[:3]}. {day}, {year}",
        f"{day}{suffix} of {month} {year}",
        f"{date:%A}, {day} {month} {year}",
        f"{month.upper()} {day} {year}",
        f"{day}.{date.month}.{year}",
        f"{date:%d/%m/%Y}",
        f"the {ordinal(day)} of {month}, {year}",
        f"the {ordinal(day)} of {month}, {year_in_words(year)}",
        f"{month} the {ordinal(day)}, {year_in_words(year)}",
        f"{date:%A} the {ordinal(day)} of {month} {year_in_words(year)}",
    )
    return random.choice(forms)


def to_tokens(texts, alphabet):
    """The characters of all texts, one text after another, and the lengths of the texts."""
    return torch.tensor([alphabet.index(c) for text in texts for c in text]), torch.tensor(
        [len(text) for text in texts]
    )


def translate(model, texts):
    tokens, sizes = model.eval().generate(*to_tokens(texts, READ), begin=BEGIN, end=END, max_length=12)
    return ["".join((WRITTEN + "<>")[token] for token in part) for part in tokens.split(sizes.tolist())]


def exact(model, pairs):
    """Percentage of the dates that are right in every character."""
    texts, dates = zip(*pairs, strict=True)
    return 100 * sum(map(str.__eq__, translate(model, texts), dates)) / len(dates)


class LSTMs(torch.nn.Module):
    """Two layers that read, two that write: they get only the source's state after its last character."""

    def __init__(self, source_tokens, target_tokens, channels):
        super().__init__()
        self.source_embedding = torch.nn.Embedding(source_tokens, channels)
        self.target_embedding = torch.nn.Embedding(target_tokens, channels)
        self.encoder = torch.nn.LSTM(channels, channels, num_layers=2)
        self.decoder = torch.nn.LSTM(channels, channels, num_layers=2, batch_first=True)
        self.lin_out = torch.nn.Linear(channels, target_tokens)

    def encode(self, source, sizes):
        sequences = self.source_embedding(source).split(sizes.tolist())
        return self.encoder(pack_sequence(sequences, enforce_sorted=False))[1]

    def loss(self, source, source_sizes, target, target_sizes, begin, end):
        target = target.view(len(target_sizes), -1)  # All dates have ten characters.
        given, wanted = F.pad(target, (1, 0), value=begin), F.pad(target, (0, 1), value=end)
        hidden, _ = self.decoder(self.target_embedding(given), self.encode(source, source_sizes))
        return F.cross_entropy(self.lin_out(hidden).flatten(0, 1), wanted.flatten())

    @torch.no_grad()
    def generate(self, source, source_sizes, begin, end, max_length):
        state, token, tokens = self.encode(source, source_sizes), torch.full((len(source_sizes), 1), begin), []
        for _ in range(max_length):
            hidden, state = self.decoder(self.target_embedding(token), state)
            token = self.lin_out(hidden).argmax(-1)
            tokens.append(token)
        written = torch.cat(tokens, 1)
        is_token = (written != end).cumprod(1).bool()
        return written[is_token], is_token.sum(1)


def train(model, dates, validation, args, bar):
    """Learn from newly generated dates in each step; keep the weights that are best on the validation dates."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    best, chosen = -1.0, {}
    for step in range(1, args.steps + 1):
        batch = random.choices(dates, k=args.batch)
        source, target = to_tokens([write(date) for date in batch], READ), to_tokens([*map(str, batch)], WRITTEN)
        loss = model.train().loss(*source, *target, begin=BEGIN, end=END)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.update()
        if step % (args.steps // 10) == 0:
            score = exact(model, validation)
            bar.set_postfix(loss=f"{loss.item():.4f}", validation=f"{score:.1f} %")
            if score > best:
                best, chosen = score, {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(chosen)


def draw(model, text, path):
    """Where the last layer looks for each character that it writes: the mean of its heads, and each of them."""
    (written,) = translate(model, [text])
    # The row of a character is the step that writes it, whose inputs are the characters before.
    given = F.pad(to_tokens([written[:-1]], WRITTEN)[0], (1, 0), value=BEGIN)
    with torch.no_grad():
        _, layers = model(*to_tokens([text], READ), given, len(given), return_attention_weights=True)
    heads = layers[-1][1].view(len(written), len(text), -1).unbind(-1)
    figure = plt.figure(figsize=(13, 9.2), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[1.75, 1, 1])
    panels = [(grid[0, :], "mean of the heads", sum(heads) / len(heads), 13)]
    panels += [(grid[1 + k // 2, k % 2], f"head {k}", head, 7.5) for k, head in enumerate(heads)]
    for place, title, matrix, size in panels:
        axes = figure.add_subplot(place)
        picture = axes.imshow(matrix.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xticks(range(len(text)), text, fontsize=size, family="monospace")
        axes.set_yticks(range(len(written)), written, fontsize=size, family="monospace")
        axes.set_xticks([k - 0.5 for k in range(len(text))], minor=True)
        axes.set_yticks([k - 0.5 for k in range(len(written))], minor=True)
        axes.grid(which="minor", color="#DDDDDD", linewidth=0.5)
        axes.tick_params(which="both", length=0)
    figure.colorbar(picture, ax=figure.axes, label="attention weight", shrink=0.5, pad=0.01)
    figure.suptitle(f"Where the decoder looks in “{text}” for each character of {written}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["Seq2Seq"], choices=["Seq2Seq", "LSTM"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1200, help="number of training batches")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--record", type=Path, help="a JSON file to which the results are added")
    parser.add_argument("--smoke", action="store_true", help="a quick run that only checks that it works")
    args = parser.parse_args()
    if args.seeds < 1 or args.batch < 1 or args.steps < 20:
        parser.error("--seeds and --batch must be at least 1, --steps at least 20")
    if args.smoke:
        args.seeds, args.steps, args.batch = 1, 20, 8

    dates = [datetime.date.fromordinal(day) for day in range(693_596, 766_645)]  # From 1900 to 2099.
    random.seed(0)
    random.shuffle(dates)
    parts, training = (dates[:7300], dates[7300:7800]), dates[7800:]
    print(
        f"{len(dates):,} dates: {len(training):,} to learn from, {len(parts[1])} to choose, {len(parts[0]):,} to test"
    )
    test, validation = ([(write(date), str(date)) for date in part] for part in parts)
    if args.smoke:
        test, validation = test[:50], validation[:5]
    # The widths give both about the same number of parameters.
    kinds = {"Seq2Seq": (Seq2Seq, 64, 2, 4), "LSTM": (LSTMs, 84)}
    models = {}
    with tqdm(total=len(args.models) * args.seeds * args.steps, desc="training", unit=" batches", mininterval=1) as bar:
        for name in args.models:
            kind, *shape = kinds[name]
            scores, start = [], time.perf_counter()
            for seed in range(args.seeds):
                random.seed(seed)
                torch.manual_seed(seed)
                models[name] = kind(len(READ), len(WRITTEN) + 2, *shape)
                train(models[name], training, validation, args, bar)
                scores.append(exact(models[name], test))
            seconds = round((time.perf_counter() - start) / args.seeds)
            parameters = sum(parameter.numel() for parameter in models[name].parameters())
            report("dates", name, "exact match", scores, record=args.record, parameters=parameters, seconds=seconds)
    for text, date in test[:6]:
        (written,) = translate(models[name], [text])
        print(f"{text} -> {written}" + ("" if written == date else f", but is {date}"))
    if "Seq2Seq" in models:
        text = max((text for text, _ in test[:100] if len(text) < 48), key=len)
        draw(models["Seq2Seq"], text, args.output / "seq2seq.png")
        print(f"Picture: {args.output / 'seq2seq.png'}")


if __name__ == "__main__":
    main()
