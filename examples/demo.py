"""The main job on a real pretrained network and real pictures, in about a minute.

EfficientNet-Lite0 predicts two photographs; it gets a memory that all its 50 convolution and
linear layers read; its logits stay bit-identical; the memory alone is trained on handwritten
digits with the base frozen; the result is exported to ONNX and run in onnxruntime.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.models_zoo.pretrained import efficientnet_lite0, lite0_input

STEPS = 40
BATCH = 64
SIDE = 64

# Names of the ImageNet classes that the two photographs bring up.
NAMES = {
    309: "bee",
    442: "bell cote",
    483: "castle",
    497: "church",
    663: "monastery",
    698: "palace",
    738: "flowerpot",
    947: "mushroom",
    975: "lakeside",
    985: "daisy",
    996: "hen-of-the-woods",
}


def main() -> int:
    """Run all five steps; 0 if every claim held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where the picture and the ONNX file go")
    out: Path = parser.parse_args().out
    console = Console()
    started = time.perf_counter()
    torch.manual_seed(0)

    console.rule("1. predict with the pretrained base")
    base = efficientnet_lite0()
    photos = load_sample_images()
    names = [Path(name).name for name in photos.filenames]
    images = torch.cat([lite0_input(image) for image in photos.images])
    logits = predict(base, images)
    show_top5(console, names, logits)

    console.rule("2. transform: every conv and linear layer reads one memory")
    aim = aimgraph.transform(base, images)
    plan = aimgraph.plan(aim)
    console.print(f"sites read / called / layers present: {plan.sites_read} / {len(plan.called)} / {plan.layers}")
    depthwise = sum(site.groups > 1 for site in plan.sites)
    console.print(
        f"of them depthwise: {depthwise}; memory: {plan.memories[0].shape}, +{plan.added_parameters:,} parameters"
    )
    seen = predict(aim, images)
    show_top5(console, names, seen)
    identical = torch.equal(logits, seen)
    console.print(f"logits bit-identical to the base's: {identical}")
    picture = aimgraph.draw(plan, out / "plan.png")
    console.print(f"picture of the plan: {picture}")

    console.rule("3. train the memory alone, base frozen, on handwritten digits")
    losses, accuracy_before, accuracy = train_memory(aim)
    unmoved = all(torch.equal(value, aim.state_dict()[key]) for key, value in base.state_dict().items())
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    console.print(f"loss, mean of the first and last 5 of {STEPS} steps: {first:.3f} -> {last:.3f}")
    console.print(f"accuracy on 500 digits not trained on: {accuracy_before:.1%} -> {accuracy:.1%}")
    console.print(f"weights and running statistics of the base unmoved: {unmoved}")

    console.rule("4. export to ONNX and run in onnxruntime")
    report = aimgraph.export_onnx(aim, out / "efficientnet_lite0_digits.onnx")
    console.print(f"{report.path}: {report.bytes / 1e6:.1f} MB, opset {report.opset}")
    agreement = f"max|d| = {report.max_difference:.1e}, max|d| / max|y| = {report.relative_difference:.1e}"
    console.print(f"onnxruntime against torch at batch sizes {list(report.batch_sizes)}: {agreement}")

    console.rule("5. undo")
    restored = torch.equal(predict(aimgraph.strip(aim), images), logits)
    console.print(f"strip gives the base back, logits bit-identical: {restored}")
    console.print(f"{time.perf_counter() - started:.0f} s")
    claims = {"identity": identical, "loss falls": last < first, "base unmoved": unmoved, "strip": restored}
    failed = [name for name, held in claims.items() if not held]
    if failed:
        console.print(f"[bold red]did not hold: {', '.join(failed)}[/]")
    return 1 if failed else 0


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits in eval mode, [B, 1000]."""
    logits: Tensor = model.eval()(images)
    return logits


def show_top5(console: Console, names: list[str], logits: Tensor) -> None:
    """One line a picture: its five most probable ImageNet classes."""
    top = logits.softmax(1).topk(5)
    for name, values, classes in zip(names, top.values.tolist(), top.indices.tolist(), strict=True):
        pairs = zip(values, classes, strict=True)
        console.print(f"{name:>10}: " + ", ".join(f"{NAMES.get(c, f'class {c}')} {v:.1%}" for v, c in pairs))


def train_memory(aim: aimgraph.AimModule) -> tuple[list[float], float, float]:
    """Train what lives under ``aim`` so that the first ten logits tell digits apart.

    Returns:
        The loss of every step, and the accuracy on 500 other digits before and after.
    """
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 3 == 0
    test, train = held_out.nonzero()[:500, 0], (~held_out).nonzero()[:, 0]

    def batch(index: Tensor) -> tuple[Tensor, Tensor]:
        return F.interpolate(pixels[index], size=(SIDE, SIDE), mode="bilinear", align_corners=False), labels[index]

    def accuracy() -> float:
        x, y = batch(test)
        return (predict(aim, x)[:, :10].argmax(1) == y).float().mean().item()

    before = accuracy()
    aimgraph.freeze_base(aim).train()
    optimiser = torch.optim.Adam(aimgraph.memory_parameters(aim), lr=0.02)
    losses = []
    for _ in track(range(STEPS), "training the memory", transient=True):
        x, y = batch(train[torch.randint(len(train), (BATCH,))])
        loss = F.cross_entropy(aim(x)[:, :10], y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, before, accuracy()


if __name__ == "__main__":
    sys.exit(main())
