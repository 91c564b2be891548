"""Backbones that are not torchvision's: the IResNet family of face recognition, any net of timm."""

import copy
import difflib
import re

from mmlfer import NORMS, InputError, refused, torch
from mmlfer_commands._runs import check_installed

STAGES = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 14, 3), "100": (3, 13, 30, 3),
          "101": (3, 13, 30, 3)}  # blocks of each layer, by the number in the name


def make_iresnet(arch):
    """A net of the family; its classes are made here: `import` alone must not load torch.nn."""
    nn = torch.nn

    def convolution(inputs, width, side, stride=1):
        layer = nn.Conv2d(inputs, width, side, stride, side // 2, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    class Block(nn.Module):
        """BN, 3x3, [BN,] PReLU, 3x3 with the stride, BN, plus the shortcut; no ReLU after it."""

        def __init__(self, inputs, width, stride, between, projected):
            super().__init__()
            self.stride = stride
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, width, 3)
            self.bn2 = nn.BatchNorm2d(width) if between else nn.Identity()
            self.prelu, self.conv2 = nn.PReLU(width), convolution(width, width, 3, stride)
            self.bn3 = nn.BatchNorm2d(width)
            self.downsample = nn.Sequential(convolution(inputs, width, 1, stride),
                                            nn.BatchNorm2d(width)) if projected else None

        def forward(self, x):
            y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
            if self.downsample:
                return y + self.downsample(x)
            return y + x[:, :, :: self.stride, :: self.stride]

    class IResNet(nn.Module):
        """x (B, 3, S, S) -> f (B, 512): the mean over positions after the last BatchNorm."""

        num_features = 512

        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = convolution(3, 64, 3), nn.BatchNorm2d(64)
            self.prelu, self.bn2 = nn.PReLU(64), nn.BatchNorm2d(512)
            inputs = 64
            for i, count in enumerate(STAGES[re.search(r"\d+$", arch)[0]]):
                width, blocks = 64 << i, []
                for first in (True, *[False] * (count - 1)):
                    # insightface projects in each layer; the others only where the width changes
                    projected = first and (arch.startswith("iresnet") or inputs != width)
                    blocks.append(Block(inputs, width, 1 + first, arch != "evolve-ir50", projected))
                    inputs = width
                self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

        def forward_features(self, x):
            """The last map, (B, 512, h, w)."""
            x = self.prelu(self.bn1(self.conv1(x)))
            return self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

        def forward(self, x):
            return self.forward_features(x).mean((2, 3))

    return IResNet()


def make_net(arch, size):
    """The backbone of an --arch that is not torchvision's: (B, 3, S, S) -> f (B, F)."""
    return make_timm(arch, size) if arch.startswith("timm:") else make_iresnet(arch)


# ---------------------------------------------------------------- timm


def timm_facts(arch):
    """What timm knows of a net: .mean, .std, .input_size, .fixed_input_size."""
    check_installed(f"--arch {arch}:", ("timm",), "timm")
    import timm

    name = arch.removeprefix("timm:")
    try:
        if timm.is_model(name):
            return timm.get_pretrained_cfg(name)
    except RuntimeError:  # a name of its own with a tag that it does not have
        pass
    near = difflib.get_close_matches(name, timm.list_models(), 3, 0)
    raise InputError(f"--arch {arch}: timm has no such net; near it: {', '.join(near)}")


def make_timm(arch, size, pretrained=False):
    """A net of timm without its classifier, for faces of S pixels; downloaded if pretrained."""
    facts = timm_facts(arch)
    import timm

    options = {"img_size": size} if facts.fixed_input_size else {}
    failed = (f"--arch {arch} --size {size}",
              f"timm cannot make it ({{}}); its own size is {facts.input_size[-1]}")
    if pretrained:
        failed = "--weights timm", "no download ({}); fetch it elsewhere and name its file"
    with refused(*failed, Exception), torch.no_grad():  # timm's own kinds, those of its download
        net = timm.create_model(arch.removeprefix("timm:"), pretrained, num_classes=0, **options)
        net.num_features = net.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return net.train()


def usual_size(arch):
    """The side of the faces that a net of timm is made for, pixels."""
    size = timm_facts(arch).input_size[-1]
    if size not in range(32, 513):
        raise InputError(f"--arch {arch}: made for {size} pixels; name a --size of 32 to 512")
    return size


def norm_of(arch, norm):
    """Mean and standard deviation of RGB by --weights-norm, for weights that name none."""
    if norm == "auto" and arch.startswith("timm:"):
        facts = timm_facts(arch)
        return facts.mean, facts.std
    return NORMS["half" if norm == "auto" else norm]


# ---------------------------------------------------------------- sooner predictions


def folded(net):
    """A copy of a base net in test mode, to predict with: channels last, and each BatchNorm after a
    convolution is part of it. The answers are the same but for rounding. Nets of timm and bf16 keep
    their layers: of the first no order is known, in the second rounding would differ."""
    net = copy.deepcopy(net).eval()
    if not net.arch.startswith("timm:") and net.precision == "float32":
        for module in net.backbone.modules():
            layers = list(module.named_children())  # in ours, in the order of the forward pass
            for (name, layer), (after, norm) in zip(layers, layers[1:]):
                if (type(layer).__name__, type(norm).__name__) == ("Conv2d", "BatchNorm2d"):
                    setattr(module, name, torch.nn.utils.fuse_conv_bn_eval(layer, norm))
                    setattr(module, after, torch.nn.Identity())
    return net.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------- names of tensors in others' files

OUTER = {"input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu",
         "output_layer.0": "bn2"}
ADAFACE = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")  # res_layer.0 to 5
EVOLVE = ("bn1", "conv1", "prelu", "conv2", "bn3")


def is_adaface(names):
    """Whether tensors bear AdaFace's names: a BatchNorm between a block's convolutions."""
    return "body.0.res_layer.2.running_var" in names


def in_own_names(found):
    """{name: ..} of a file's tensors, those of AdaFace and face.evoLVe with IResNet's names."""
    numbers = {int(name.split(".")[1]) for name in found if name.startswith("body.")}
    stages = [counts for counts in STAGES.values() if set(range(sum(counts))) == numbers]
    if not stages:
        return found
    blocks = [f"layer{i}.{b}" for i, count in enumerate(stages[0], 1) for b in range(count)]
    layers = dict(OUTER)
    for n, block in enumerate(blocks):
        for i, layer in enumerate(ADAFACE if is_adaface(found) else EVOLVE):
            layers[f"body.{n}.res_layer.{i}"] = f"{block}.{layer}"
            layers[f"body.{n}.shortcut_layer.{i}"] = f"{block}.downsample.{i}"
    parts = {name: name.rpartition(".") for name in found}
    return {f"{layers.get(layer, layer)}{dot}{tensor}": found[name]
            for name, (layer, dot, tensor) in parts.items()}
