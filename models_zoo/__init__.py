"""The seed's networks. Import them as ``aimgraph.models_zoo``."""

if __name__ != "aimgraph.models_zoo":
    raise ImportError("import aimgraph.models_zoo instead: 'models_zoo' would be a second copy of the same code")

from aimgraph.models_zoo.mlp import MLP, mlp
from aimgraph.models_zoo.resnet_keras import ResNetKeras, resnet50_keras
from aimgraph.models_zoo.vgg import VGG16, vgg16

__all__ = ["MLP", "VGG16", "ResNetKeras", "mlp", "resnet50_keras", "vgg16"]
