"""Data-parallel training on sampled neighborhoods, which continues after one of its processes was killed.

    torchrun --nproc-per-node 2 examples/distributed_sampling.py       one process per core or GPU
    python examples/distributed_sampling.py                            one process

Each process holds the graph, draws neighborhoods of its share of the training nodes, and averages gradients with the
others: torch's DistributedDataParallel, by gloo on CPUs and NCCL on GPUs. Rank 0 writes a checkpoint after each epoch.
Random numbers depend only on the epoch and the rank, so that a repeated epoch gives the same result. For example,

    torchrun --nproc-per-node 2 --max-restarts 1 examples/distributed_sampling.py --fail-at-epoch 5

kills a process in the middle of epoch 5; torchrun restarts all of them, they continue from the checkpoint of epoch 4,
and the last loss equals that of the first command in every digit. After an interrupt, `--resume` continues in the same
way.

Expected on the generated graph: test accuracy above 99 %; linear layers, which don't use edges, reach 50 %.
"""

import argparse
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from report import report
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from torch_geometric.data import Data
from tqdm import tqdm

from graphattn import Edges
from graphattn.nn import GraphAttention
from graphattn.sampling import NeighborLoader

CLASSES, FEATURES, HIDDEN, FAN_OUT = 5, 16, 32, [10, 10]


def communities(nodes, neighbors=20, seed=0):
    """Nodes of five classes: weak features, and edges of which two in three come from the same class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    center = torch.randn(CLASSES, FEATURES, generator=generator)
    x = 0.3 * center[y] + torch.randn(nodes, FEATURES, generator=generator)
    target = torch.arange(nodes).repeat_interleave(neighbors)
    source = torch.randint(nodes, target.shape, generator=generator)
    # Nodes are sorted by class: a position among those of the target's own class.
    order, count = y.argsort(stable=True), y.bincount(minlength=CLASSES)
    begin = count.cumsum(0) - count
    place = (torch.rand(target.shape, generator=generator) * count[y[target]]).long()
    is_alike = torch.rand(target.shape, generator=generator) < 0.6
    source = torch.where(is_alike, order[begin[y[target]] + place], source)
    return Data(x=x, y=y, edge_index=torch.stack([source, target]))


class Network(torch.nn.Module):
    """Two layers of attention, each on its own pattern, and a linear layer for the classes."""

    def __init__(self):
        super().__init__()
        self.first = GraphAttention(FEATURES, HIDDEN, heads=4)
        self.second = GraphAttention(HIDDEN, HIDDEN, heads=4)
        self.classify = torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x, patterns):
        for layer, pattern in zip((self.first, self.second), patterns, strict=True):
            # The later layer needs fewer nodes, which are the first ones.
            x = F.elu(layer(x[: pattern.num_sources], pattern))
            x = F.dropout(x, 0.2, self.training)
        return self.classify(x)


def train_epoch(model, optimizer, loader, device, fails):
    """One epoch of this process's share; returns the mean loss over all processes."""
    model.train()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for step, batch in enumerate(loader):
        if fails and step == len(loader) // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = batch.to(device)
        optimizer.zero_grad()
        scores = model(batch.x, batch.layer_patterns)[: batch.batch_size]
        loss = F.cross_entropy(scores, batch.y[: batch.batch_size])
        loss.backward()
        optimizer.step()
        total += torch.tensor([loss.item(), 1.0], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total[0] / total[1])


@torch.no_grad()
def accuracy(model, data, device):
    """Percent of the test nodes that are classified correctly, with all neighbors."""
    model.eval()
    pattern = Edges(data.edge_index, data.num_nodes).to(device)
    found = model(data.x.to(device), [pattern, pattern]).argmax(1).cpu()
    return 100 * float((found == data.y)[data.test_mask].float().mean())


def save(path, **state):
    """Write a checkpoint atomically: a process that is killed meanwhile leaves the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main(options, parser):
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    # torchrun sets rank and address; without it there is one process, which needs no port.
    if "RANK" in os.environ:
        store, rank, ranks = next(rendezvous("env://"))
        # torchrun's store outlives a restart: without a new name, restarted processes would find addresses of dead
        # ones.
        store = dist.PrefixStore(f"start {restarts}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    else:
        rank, ranks = 0, 1
        dist.init_process_group("gloo", store=dist.HashStore(), rank=rank, world_size=ranks)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)

    data = communities(options.nodes)
    data.test_mask = torch.arange(options.nodes) % 2 == 1
    seeds = (~data.test_mask).nonzero().flatten()
    # Every process has the same number of batches, which averaging requires.
    share = DistributedSampler(seeds, ranks, rank, seed=options.seed)
    loader = NeighborLoader(data, FAN_OUT, seeds, batch_size=options.batch_size, sampler=share, seed=options.seed)

    torch.manual_seed(options.seed)
    model = Network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first, path = 1, options.output / "distributed_sampling.pt"
    settings = {"nodes": options.nodes, "batch_size": options.batch_size, "seed": options.seed, "processes": ranks}
    goes_on = options.resume or restarts > 0
    if goes_on and path.exists():
        state = torch.load(path, map_location=device)
        if state["settings"] != settings:
            parser.error(f"{path} is a checkpoint of {state['settings']}, not of {settings}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, loss = state["epoch"] + 1, state["loss"]
        if rank == 0:
            print(f"Goes on from {path}, written after epoch {first - 1}.", flush=True)
    elif rank == 0:
        # A restart must not find files of an older run.
        path.unlink(missing_ok=True)
    dist.barrier()

    together = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    for epoch in tqdm(range(first, options.epochs + 1), desc="epochs", disable=rank != 0):
        share.set_epoch(epoch)
        torch.manual_seed(1_000_000 * options.seed + 1000 * epoch + rank)
        fails = epoch == options.fail_at_epoch and rank == ranks - 1 and not goes_on
        loss = train_epoch(together, optimizer, loader, device, fails)
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(path, epoch=epoch, loss=loss, settings=settings, **state)
    if rank == 0:
        correct = accuracy(model, data, device)
        name = f"GraphAttention, {ranks} process{'es' if ranks > 1 else ''}"
        print(f"Loss of the last epoch: {loss:.12f}")
        report("communities", name, "test accuracy", [correct], record=options.record, last_loss=loss)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000, help="of the generated graph")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512, help="training nodes per process and step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--fail-at-epoch", type=int, help="kill the last process in the middle of this epoch")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the checkpoint")
    parser.add_argument("--record", type=Path, help="a JSON file to write the result to")
    parser.add_argument("--smoke", action="store_true", help="a quick run that only checks that it works")
    options = parser.parse_args()
    if min(options.nodes, options.epochs, options.batch_size) < 1 or options.seed < 0:
        parser.error("--nodes, --epochs and --batch-size must be at least 1, and --seed at least 0")
    if options.smoke:
        options.nodes, options.epochs, options.batch_size = 600, 4, 64
    if options.fail_at_epoch is not None and not 1 <= options.fail_at_epoch <= options.epochs:
        parser.error(f"--fail-at-epoch must lie between 1 and --epochs, {options.epochs}")
    main(options, parser)
