"""One ONNX session that serves a hundred memories of one pretrained network, request by request and mixed in a batch.

EfficientNet-Lite0 stays frozen; every customer has N values, read by the same read weights. The file takes the values
as an input, so that one session is all that a server holds, and a batch may hold requests of several customers. What
every request gives is compared with torch, and the throughput with that of the network alone.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

import aimgraph
from aimgraph import MemorySession
from aimgraph.distance import distance
from aimgraph.models_zoo.pretrained import efficientnet_lite0, lite0_input

CUSTOMERS = 100
REQUESTS = 48
BATCHES = (1, 8)
TOLERANCE = 1e-4

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What a customer sends.

    Attributes:
        customer: Whose memory is to be read.
        image: [3, H, W].
    """

    customer: str
    image: Array


class Server:
    """Answers requests in batches; each request is answered with its customer's memory.

    Args:
        path: A file that was exported with ``memory="input"``.
        memories: Customer -> values, [N].
        batch: Requests that are answered at once, at most.
    """

    def __init__(self, path: Path, memories: dict[str, Array], batch: int) -> None:
        self.session, self.memories, self.batch = MemorySession(path), memories, batch

    def answer(self, requests: Sequence[Request]) -> Iterator[Array]:
        """The logits of every request, in order."""
        for start in range(0, len(requests), self.batch):
            chunk = requests[start : start + self.batch]
            images = np.stack([request.image for request in chunk])
            rows = np.stack([self.memories[request.customer] for request in chunk])
            (logits,) = self.session.run(images, memories={"memory": rows})
            yield from logits


def main() -> int:
    """Build, export, serve; 0 if every answer is torch's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/serve"), help="where the ONNX files go")
    parser.add_argument("--customers", type=int, default=CUSTOMERS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    console = Console()
    torch.manual_seed(0)
    photos = torch.cat([lite0_input(image) for image in load_sample_images().images])

    console.rule("one backbone, many memories")
    base = efficientnet_lite0().eval()
    aim = aimgraph.transform(base, photos, start="drawn").eval()
    aimgraph.freeze_base(aim)
    size = aimgraph.plan(aim).memories[0].size
    memories = {}
    for number in range(given.customers):
        values = torch.randn(size)
        memories[f"c{number}"] = values.numpy()
        aim.add_memory_set(f"c{number}", share_reads=True)
        with torch.no_grad():
            aim.get_parameter(f"aim.sets.c{number}.memory.source.value").copy_(values)
    report = aimgraph.export_onnx(aim, given.out / "served.onnx", memory="input")
    aimgraph.export_onnx(base, given.out / "base.onnx", photos, memory="none")
    each = size * 4
    console.print(f"{report.path}: {report.bytes / 1e6:.1f} MB; a memory has {size} values, {each} bytes")

    requests = made(photos, given.requests, given.customers)
    worst = disagreement(aim, Server(given.out / "served.onnx", memories, BATCHES[-1]), requests)
    console.print(
        f"{len(requests)} requests of {given.customers} customers, mixed: max|d| / max|y| to torch = {worst:.1e}"
    )

    console.rule("throughput")
    table = Table("requests at once", "images a second", "the network alone", "ratio")
    for batch in BATCHES:
        ours, alone = timed(given.out, memories, requests, batch, given.rounds)
        table.add_row(str(batch), f"{ours:.0f}", f"{alone:.0f}", f"{ours / alone:.2f}")
    console.print(table)
    return 0 if worst <= TOLERANCE else 1


def made(photos: torch.Tensor, count: int, customers: int) -> list[Request]:
    """Requests of customers at random, for one of the photographs, moved a little."""
    random = np.random.default_rng(0)
    images = photos.numpy()
    return [
        Request(f"c{random.integers(customers)}", np.roll(images[number % len(images)], random.integers(0, 32), axis=2))
        for number in range(count)
    ]


def disagreement(aim: aimgraph.AimModule, server: Server, requests: Sequence[Request]) -> float:
    """Largest difference to torch, where every sample of a batch has its own memory set, over the largest logit."""
    answers = np.stack(list(server.answer(requests)))
    images = torch.from_numpy(np.stack([request.image for request in requests]))
    with torch.no_grad(), aim.using([request.customer for request in requests]):
        wanted = aim(images).numpy()
    return distance(answers, wanted)[1]


def timed(
    folder: Path, memories: dict[str, Array], requests: Sequence[Request], batch: int, rounds: int
) -> tuple[float, float]:
    """Images a second, with memories and without, in turn; the best of a few rounds."""
    import onnxruntime

    server = Server(folder / "served.onnx", memories, batch)
    base: Any = onnxruntime.InferenceSession(str(folder / "base.onnx"), providers=["CPUExecutionProvider"])
    name = base.get_inputs()[0].name
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        started = time.perf_counter()
        for _answer in server.answer(requests):
            pass
        middle = time.perf_counter()
        for start in range(0, len(requests), batch):
            base.run(None, {name: np.stack([request.image for request in requests[start : start + batch]])})
        best = [min(best[0], middle - started), min(best[1], time.perf_counter() - middle)]
    return len(requests) / best[0], len(requests) / best[1]


if __name__ == "__main__":
    sys.exit(main())
