"""Trainers of other libraries: they wrap forwards, pass arguments of their own, and go on from checkpoints."""

import copy
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aimgraph
from aimgraph.models_zoo.loader import import_torchvision

import_torchvision()  # transformers imports it, too, and takes no for an answer only where it is not installed
accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning")

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate takes its precision once per process, from a variable of the environment, too."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Net(nn.Module):
    """Dropout: train and eval mode differ. It takes a loss's arguments as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, labels: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
        logits = self.b(self.drop(torch.relu(self.a(x))))
        if labels is None:
            return {"logits": logits}
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss": total / options.get("num_items_in_batch", len(x)), "logits": logits}


def base() -> Net:
    torch.manual_seed(0)
    return Net()


def transformed(*, trained: bool = False) -> aimgraph.AimModule:
    """One whose memory is untrained and stays so, or one that is at work."""
    aim = aimgraph.transform(base(), {"x": X[:4], "labels": Y[:4]}, start="drawn" if trained else "zero_reads")
    for parameter in aimgraph.memory_parameters(aim):
        parameter.requires_grad_(trained)
    return aim


def train_with_accelerate(model: nn.Module, precision: str, folder: Path) -> tuple[nn.Module, list[Tensor]]:
    """Two steps, a checkpoint, two more; once again from the checkpoint; the losses, and three evaluations."""
    torch.manual_seed(1)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        loss = model(x=X, labels=Y)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.detach())

    model.train()
    step()
    step()
    accelerator.save_state(str(folder))
    step()
    accelerator.load_state(str(folder))
    step()
    assert torch.equal(losses[2], losses[3])
    model.eval()
    losses += [model(x=X, labels=Y)["loss"].detach() for _ in range(3)]
    assert torch.equal(losses[-1], losses[-2])
    assert torch.equal(losses[-1], losses[-3])
    return model, losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_trains_resumes_and_evaluates_as_with_the_base(precision: str, tmp_path: Path) -> None:
    _, expected = train_with_accelerate(base(), precision, tmp_path / "base")
    _, losses = train_with_accelerate(transformed(), precision, tmp_path / "aim")
    assert all(map(torch.equal, losses, expected))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_accelerate_has_prepared_can_be_used_as_before(precision: str, tmp_path: Path) -> None:
    model, losses = train_with_accelerate(transformed(trained=True), precision, tmp_path)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x=X, labels=Y)["loss"], losses[-1])
    model.add_memory_set("other")
    before = model(x=X)["logits"]
    with model.using("other"):
        assert not torch.equal(model(x=X)["logits"], before)
    plain = accelerate.Accelerator(cpu=True).unwrap_model(copied, keep_fp32_wrapper=False)
    assert torch.equal(plain.eval()(x=X)["logits"], plain(x=X)["logits"])
    assert not torch.equal(plain.train()(x=X)["logits"], plain(x=X)["logits"])
    with warnings.catch_warnings(action="error"):
        folded = aimgraph.fold(plain.eval())
    torch.testing.assert_close(folded(x=X, labels=Y)["logits"], plain(x=X, labels=Y)["logits"])


def _require_trainer() -> None:
    try:
        importlib.import_module("transformers.trainer")
    except ImportError as error:
        if "ScalingType" not in str(error):
            raise
        pytest.skip(f"transformers imports torchao, which does not work with torch {torch.__version__}: {error}")


def trainer_of(model: nn.Module, folder: Path, precision: bool, steps: int) -> Any:
    """A trainer of transformers on the same data in the same order."""
    _require_trainer()
    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=steps,
        save_steps=2,
        logging_steps=1,
        bf16=precision,
        use_cpu=True,
        seed=3,
        report_to=[],
        disable_tqdm=True,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("precision", [False, True])
@pytest.mark.filterwarnings("ignore:the example inputs of the transform did not have:UserWarning")
def test_the_trainer_of_transformers_trains_resumes_and_evaluates_as_with_the_base(
    precision: bool, tmp_path: Path
) -> None:
    found = {}
    for name, model in (("base", base()), ("aim", transformed())):
        trainer_of(model, tmp_path / name, precision, 2).train()
        trainer = trainer_of(model, tmp_path / name, precision, 4)
        trainer.train(resume_from_checkpoint=True)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        evaluated = [trainer.evaluate()["eval_loss"] for _ in range(3)]
        assert len(losses) == 4
        assert evaluated[0] == evaluated[1] == evaluated[2]
        found[name] = losses + evaluated
    assert found["aim"] == found["base"]


class Module(lightning.LightningModule):
    """As users write it around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss: Tensor = self.model(x=batch[0], labels=batch[1])["loss"]
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("loss", self.model(x=batch[0], labels=batch[1])["loss"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], 1e-2)


def fitted(model: nn.Module, folder: Path, epochs: int, precision: str, checkpoint: Path | None = None) -> Any:
    """What lightning has trained, and its trainer."""
    torch.manual_seed(1)
    module = Module(model)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y), 8), ckpt_path=checkpoint, weights_only=False)
    return module, trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_lightning_trains_resumes_and_evaluates_as_with_the_base(precision: str, tmp_path: Path) -> None:
    found = {}
    for name, make in (("base", base), ("aim", transformed)):
        _, trainer = fitted(make(), tmp_path, 1, precision)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        module, trainer = fitted(make(), tmp_path, 2, precision, tmp_path / f"{name}.ckpt")
        loader = DataLoader(TensorDataset(X, Y), 8)
        evaluated = [trainer.validate(module, loader, verbose=False)[0]["loss"] for _ in range(3)]
        assert evaluated[0] == evaluated[1] == evaluated[2]
        found[name] = module.losses + evaluated
    assert found["aim"] == found["base"]
