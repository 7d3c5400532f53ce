"""What the seed did, as functions that return configs.

Source: "Breakthrough: Can giving memory to entire neural nets be revolutionary?", Towards AI,
3 March 2021, and the notebook published with it.
"""

from aimgraph.config import AimConfig

AUTHOR_SHAPE = (7, 7, 1024)
"""The notebook's memory: 50,176 values."""


def article(**overrides: object) -> AimConfig:
    """The idea as the article states it: every layer reads, the network writes, batches pass it on.

    Every convolution and linear layer reads one memory on the smallest grid of the base; it is
    updated after each resolution and carried to the next batch.

    Args:
        **overrides: Fields of `AimConfig` to change.

    Returns:
        One config for any base.
    """
    return AimConfig(**({"updates": "stages", "carry": "state"} | overrides))


def author() -> tuple[AimConfig, AimConfig]:
    """What the published notebook does to its ResNet-50, name slip and dead update included.

    For `aimgraph.models_zoo.resnet50_keras(stem_stride=1)` at 224 x 224. The first 1x1 convolution
    of each residual block reads: those of the four convolution blocks a memory that is updated
    after the first block of every stage, those of the twelve identity blocks another one that
    nothing ever writes. The fourth update is never read and is dropped.

    Returns:
        Two configs, for the memories ``memory`` and ``identity``.
    """
    alike = {"shape": AUTHOR_SHAPE, "source": "ones_conv", "start": "drawn", "lowering": "concat"}
    updates = tuple(f"stages.{stage}.0" for stage in range(4))
    written = AimConfig(name="memory", sites=("stages.*.0.conv1",), updates=updates, **alike)
    return written, AimConfig(name="identity", sites=("re:stages\\.\\d+\\.[1-9]\\d*\\.conv1",), **alike)
