"""Modules of torch as the calls that make them."""

import pytest
import torch
from torch import nn

from aimgraph.errors import PlanError
from aimgraph.source_code.constructors import constructor, is_of_torch

CALLS = """
nn.Conv2d(3, 8, 3, padding=1)
nn.Conv2d(8, 8, (3, 5), stride=2, padding=(1, 2), groups=8, bias=False)
nn.Conv1d(1, 2, 3, padding="same", padding_mode="circular")
nn.Conv3d(1, 2, (1, 3, 3), dilation=2)
nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1)
nn.Linear(3, 4)
nn.Linear(3, 4, bias=False)
nn.BatchNorm1d(8, eps=0.001, momentum=None)
nn.BatchNorm2d(8)
nn.BatchNorm2d(8, affine=False, track_running_stats=False)
nn.InstanceNorm2d(3, affine=True)
nn.LayerNorm(8)
nn.LayerNorm((3, 8), elementwise_affine=False)
nn.LayerNorm(8, bias=False)
nn.GroupNorm(2, 8)
nn.RMSNorm(8)
nn.LocalResponseNorm(2)
nn.ReLU()
nn.ReLU(inplace=True)
nn.ReLU6()
nn.GELU(approximate="tanh")
nn.LeakyReLU(negative_slope=0.1)
nn.Hardtanh(min_val=-2, max_val=2)
nn.PReLU(num_parameters=4)
nn.SiLU()
nn.Softmax(dim=-1)
nn.MaxPool2d(3, stride=2, padding=1)
nn.MaxPool2d(2)
nn.AvgPool2d(2)
nn.AvgPool2d(3, stride=1, count_include_pad=False)
nn.AdaptiveAvgPool2d(1)
nn.AdaptiveAvgPool2d((1, 2))
nn.AdaptiveAvgPool2d((7, 7))
nn.Flatten()
nn.Flatten(start_dim=2)
nn.Unflatten(1, (2, 3))
nn.Dropout(p=0.2)
nn.Embedding(5, 3, padding_idx=0)
nn.Upsample(scale_factor=2.0, mode="bilinear")
nn.PixelShuffle(2)
nn.ZeroPad2d((0, 1, 0, 1))
nn.MultiheadAttention(8, 2, batch_first=True)
nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4)
nn.LSTM(3, 4, num_layers=2, bidirectional=True)
nn.GRU(3, 4)
nn.RNN(3, 4, nonlinearity="relu")
nn.LSTM(3, 4, proj_size=2)
nn.LayerNorm((8, 8))
nn.RMSNorm((12, 12))
nn.Unflatten(1, (3, 3))
nn.CrossEntropyLoss(label_smoothing=0.1)
nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.2, activation="gelu", batch_first=True, norm_first=True)
nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2)
nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2), 2)
nn.Transformer(d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=16)
nn.Identity()
""".strip().splitlines()


@pytest.mark.parametrize("call", CALLS)
def test_a_module_as_a_person_writes_it(call: str) -> None:
    module: nn.Module = eval(call)
    assert is_of_torch(module)
    assert constructor(module) == call
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in eval(constructor(module)).state_dict().items()
    }


def test_an_argument_that_cannot_be_told_is_named() -> None:
    with pytest.raises(PlanError, match=r"its activation is .*, and can.t be written"):
        constructor(nn.TransformerEncoderLayer(8, 2, activation=torch.tanh))
    layer = nn.Bilinear(2, 3, 4)
    del layer.in1_features
    with pytest.raises(PlanError, match="Bilinear: with which in1_features= it was made can't be told"):
        constructor(layer)


def test_classes_of_others_are_not_of_torch() -> None:
    class Mine(nn.Conv2d):
        pass

    assert not is_of_torch(Mine(1, 1, 1))
