"""`--arch resnet18` in the tests' own process: four thin bottlenecks in place of ResNet-18's eight basic blocks.

It has 0.3 million parameters instead of 11: a step takes a ninth of the time, and a checkpoint has
3 MB instead of 90. It is a ResNet of torchvision with the same kinds of layers, names of stages and
512 features, for tests in which size and depth do not matter. ResNet-34 and ResNet-50 are the real
ones everywhere, and ResNet-18 is real where a test asks for the fixture `real_resnet18`, and in
processes of their own, unless their script takes `make_backbone` from here.
"""

import torch
from torchvision.models import resnet

import mmlfer
from mmlfer_commands import _backbones, pretrain

whole_backbone = mmlfer.make_backbone  # the program's own


class Thin(resnet.Bottleneck):
    expansion = 1


def make_backbone(arch, *args, **options):
    """mmlfer.make_backbone, but for ResNet-18."""
    if arch != "resnet18":
        return whole_backbone(arch, *args, **options)
    backbone = resnet.ResNet(Thin, [1, 1, 1, 1], width_per_group=8)
    backbone.fc, backbone.num_features = torch.nn.Identity(), 512
    return backbone


def use(patch, function):
    """Let every module make its backbones by this function; `patch` is a MonkeyPatch."""
    for module in (mmlfer, _backbones, pretrain):
        patch.setattr(module, "make_backbone", function)
