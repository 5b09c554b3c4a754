"""Node classification with tuned models: the settings that reach published results, and the search that found them.

    python examples/node_models.py                                             handwritten digits, no download
    python examples/node_models.py --protocol minesweeper --model GAT          a file of examples/protocols
    python examples/node_models.py --protocol minesweeper --model GAT --search

A protocol names the data set, the splits, and the settings of each model. Every run is tested once, at the epoch that
was best on its validation nodes. `--search` trains the variants that the protocol lists on the first splits, and prints
validation scores alone: settings were chosen by these. benchmarks/results/accuracy.md compares results with published
ones.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import statistics
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from node_protocols import PaperGAT, score
from report import report
from torch_geometric.transforms import NormalizeFeatures, RandomNodeSplit
from torch_geometric.utils import degree
from tqdm import tqdm

from graphattn import Edges, random_regular
from graphattn.datasets import digits_graph, load_graph
from graphattn.nn import GraphTransformer, models

PROTOCOLS = Path(__file__).parent / "protocols"
MODELS = {"GAT": models.GAT, "Polynormer": models.Polynormer, "SGFormer": models.SGFormer}
MODELS |= {"GPS": GraphTransformer, "Exphormer": GraphTransformer, "GAT-2018": PaperGAT}
# What a model's settings say of training; the others are arguments of the model.
TRAINING = {"epochs": 200, "lr": 0.01, "weight_decay": 0.0, "every": 5}
# Polynormer's epochs without attention to all nodes; edges per node of Exphormer's random graph.
TRAINING |= {"local_epochs": 0, "expander_degree": 0}
# Forward passes per epoch whose dropout differs, and the weight of the difference of their predictions in the loss.
TRAINING |= {"samples": 1, "consistency": 0.0}


def read_protocol(name, parser):
    path = PROTOCOLS / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in PROTOCOLS.glob("*.toml")))
        parser.error(f"--protocol must be one of {known}, got {name}")
    return tomllib.loads(path.read_text())


def load(protocol, root):
    """The graph and its pattern, with features in the form that the protocol names."""
    name = protocol["data"]
    data = digits_graph() if name == "digits" else load_graph(name, root)[0]
    if protocol.get("normalize_features"):
        data = NormalizeFeatures()(data)
    if protocol.get("sparse_features"):
        data.x = data.x.to_sparse().coalesce()
    if protocol.get("degree_feature"):
        log_degree = degree(data.edge_index[1], data.num_nodes).log1p()
        data.x = torch.cat([data.x, ((log_degree - log_degree.mean()) / log_degree.std()).unsqueeze(1)], 1)
    return data


def split(data, protocol, run):
    """Nodes to train, validate and test on: the data set's own split, or else random ones of the protocol's shares."""
    torch.manual_seed(run)
    if "train_mask" not in data:
        validation, test = (round(share * data.num_nodes) for share in protocol["random_split"][1:])
        data = RandomNodeSplit("train_rest", num_val=validation, num_test=test)(data.clone())
    masks = (data.train_mask, data.val_mask, data.test_mask)
    return [mask[:, run % mask.size(1)] if mask.dim() == 2 else mask for mask in masks]


def disagreement(logits, temperature=0.5):
    """Mean square distance of predictions for all nodes from their sharpened mean (Feng et al., GRAND, 2020)."""
    if len(logits) == 1:
        return 0.0
    probability = logits.softmax(-1)
    mean = probability.detach().mean(0) ** (1 / temperature)
    return (probability - mean / mean.sum(-1, keepdim=True)).square().sum(-1).mean()


def train_epochs(network, data, pattern, masks, training):
    """Train; every few epochs, yield validation score, test score and epoch."""
    nodes, validation, test = masks
    epochs = training["epochs"]
    optimizer = torch.optim.Adam(network.parameters(), training["lr"], weight_decay=training["weight_decay"])
    # The rate rises for a tenth of the epochs, then falls to zero.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training["lr"], epochs, pct_start=0.1)
    for epoch in range(1, epochs + 1):
        if training["local_epochs"]:
            network.is_local = epoch <= training["local_epochs"]
        network.train()
        optimizer.zero_grad()
        logits = torch.stack([network(data.x, pattern) for _ in range(training["samples"])])
        loss = F.cross_entropy(logits[:, nodes].flatten(0, 1), data.y[nodes].repeat(len(logits)))
        (loss + training["consistency"] * disagreement(logits)).backward()
        optimizer.step()
        schedule.step()
        if epoch % training["every"] and epoch < epochs:
            continue
        network.eval()
        with torch.no_grad():
            logits = network(data.x, pattern)
        yield score(logits[validation], data.y[validation]), score(logits[test], data.y[test]), epoch


def build(model, data, training, settings):
    """The network, and the pattern it attends along."""
    channels, classes = data.x.size(1), int(data.y.max()) + 1
    pattern = Edges(data.edge_index, data.num_nodes)
    if model == "GAT-2018":
        return PaperGAT(channels, classes), pattern
    if training["expander_degree"]:
        pattern = pattern | random_regular(data.num_nodes, training["expander_degree"])
    sizes = {name: settings[name] for name in ("hidden_channels", "num_layers", "heads")}
    options = {name: value for name, value in settings.items() if name not in sizes}
    return MODELS[model](
        channels, sizes["hidden_channels"], classes, sizes["num_layers"], sizes["heads"], **options
    ), pattern


def one_run(protocol, model, settings, run, root):
    """Validation score, test score and epoch of one run, and its seconds; in a process of one thread."""
    torch.set_num_threads(1)
    data = load(protocol, root)
    training = TRAINING | {name: value for name, value in settings.items() if name in TRAINING}
    masks = split(data, protocol, run)
    torch.manual_seed(run)
    network, pattern = build(model, data, training, {k: v for k, v in settings.items() if k not in TRAINING})
    start = time.perf_counter()
    # Of equal validation scores the first.
    found = max(train_epochs(network, data, pattern, masks, training), key=lambda scores: scores[0])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return *found, time.perf_counter() - start, parameters


def run_all(jobs, processes, what):
    """Results of `one_run` for each tuple of arguments, in their order, computed in processes of one thread each."""
    bar = tqdm(total=len(jobs), desc=what, unit=" runs", disable=None)
    if processes == 1:
        found = []
        for job in jobs:
            found.append(one_run(*job))
            bar.update()
        return found
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool, bar:
        futures = [pool.submit(one_run, *job) for job in jobs]
        for _ in concurrent.futures.as_completed(futures):
            bar.update()
    return [future.result() for future in futures]


def search(protocol, model, settings, variants, args):
    """Print mean validation scores of the settings and of each variant of one or more of them, the best one first."""
    changes = [{}] + [dict(zip(variants, values, strict=True)) for values in itertools.product(*variants.values())]
    runs = range(min(args.runs or 3, protocol["runs"]))
    jobs = [(protocol, model, settings | change, run, args.root) for change in changes for run in runs]
    found = iter(run_all(jobs, args.processes, "search"))
    rows = [([next(found) for _ in runs], change) for change in changes]
    for results, change in sorted(rows, key=lambda row: -statistics.fmean(result[0] for result in row[0])):
        validation = [result[0] for result in results]
        epochs = statistics.fmean(result[2] for result in results)
        print(
            f"validation {statistics.fmean(validation):.2f}, best after {epochs:.0f} epochs: {change or 'as they are'}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", default="digits", help="a file of examples/protocols, without its ending")
    parser.add_argument("--model", choices=MODELS, help="default: the first one that the protocol has settings for")
    parser.add_argument("--root", help="folder of the data sets; default: $GRAPHATTN_DATASETS, then datasets/")
    parser.add_argument("--runs", type=int, help="default: the protocol's; 3 for --search")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--search", action="store_true", help="print validation scores of the protocol's variants")
    parser.add_argument("--record", type=Path, help="a JSON file that collects the results of several commands")
    parser.add_argument("--smoke", action="store_true", help="a quick run that only checks that it works")
    args = parser.parse_args()
    for name in ("runs", "processes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    protocol = read_protocol(args.protocol, parser)
    known = [name for name in MODELS if name in protocol]
    model = args.model or known[0]
    if model not in known:
        parser.error(f"--model must be one that {args.protocol}.toml has settings for, {', '.join(known)}, got {model}")
    settings = protocol[model]
    variants = settings.pop("search", {})
    if args.smoke:
        settings |= {"epochs": 2, "local_epochs": min(settings.get("local_epochs", 0), 1)}

    # Once, before several processes would do it.
    data = load(protocol, args.root)
    if args.search:
        return search(protocol, model, settings, variants, args)
    runs = 1 if args.smoke else args.runs or protocol["runs"]
    jobs = [(protocol, model, settings, run, args.root) for run in range(runs)]
    validation, test, epochs, seconds, parameters = zip(*run_all(jobs, args.processes, "training"), strict=True)
    details = {
        "validation": statistics.fmean(validation),
        "best_epoch": statistics.fmean(epochs),
        "parameters": parameters[0],
        "seconds_per_run": statistics.fmean(seconds),
    }
    measure = "accuracy" if int(data.y.max()) > 1 else "ROC AUC"
    unit = "seeds" if data.get("train_mask", data.y).dim() == 1 and "train_mask" in data else "splits"
    report(protocol["data"], f"tuned {model}", measure, test, unit, args.record, **details)


if __name__ == "__main__":
    main()
