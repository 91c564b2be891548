"""`--arch resnet18` in the tests: four thin bottlenecks in place of ResNet-18's eight basic blocks.

It has 0.3 million parameters instead of 11: a step takes a ninth of the time, and a checkpoint has
3 MB instead of 90. It is a ResNet of torchvision with the same kinds of layers, names of stages and
512 features, for tests in which size and depth do not matter. ResNet-34 and ResNet-50 are the real
ones everywhere, and ResNet-18 is real where a test asks for the fixture `real_resnet18`.
"""

import contextlib

from torchvision.models import _api, resnet

MODELS = _api.BUILTIN_MODELS  # where get_model, which mmlfer calls, looks a name up


class Thin(resnet.Bottleneck):
    expansion = 1


def thin_resnet(**options):
    return resnet.ResNet(Thin, [1, 1, 1, 1], width_per_group=8, **options)


@contextlib.contextmanager
def real_resnet18():
    MODELS["resnet18"] = resnet.resnet18
    try:
        yield
    finally:
        MODELS["resnet18"] = thin_resnet


MODELS["resnet18"] = thin_resnet  # in the process that imports this file
