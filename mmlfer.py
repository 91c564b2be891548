#!/usr/bin/env python3
"""mmlfer: compound facial expressions with action units, by meta multi-task learning.

Li, Deng, Li and Li, "Compound Expression Recognition In-the-wild with AU-assisted Meta
Multi-task Learning", CVPR Workshops 2023. Where the paper's equations stand:

    Eq. 1       loss_au                 Eq. 7         expressions_from_aus
    Eq. 2       loss_emo                Eq. 8         loss_dm2
    Eq. 3       METHODS["mtl"]          Eq. 9         loss_am
    Eqs. 4, 5   aus_from_expressions    Eqs. 10, 11   METHODS["am"], METHODS["mml"]
    Eq. 6       loss_dm1                Eqs. 12-15    hypergradient     Eqs. 16, 17   train_step

Symbols: theta = {backbone, FE classifier, AU classifier}, psi = the meta net, f the features,
z logits, p probabilities, omega the loss weights, alpha and beta the learning rates of theta
and psi. B faces in a batch, F features, K expressions and J AUs: RAF-CE's 14 and 32, or your own.
"""

import signal
import sys

if __name__ in ("__main__", "__mp_main__"):  # run as a program or its worker: keep one copy of it
    sys.modules["mmlfer"] = sys.modules[__name__]
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is loaded, Ctrl-C ends it silently

import collections
import concurrent.futures
import contextlib
import dataclasses
import enum
import errno
import functools
import hashlib
import importlib.util
import io
import math
import os
import re
import shutil
import warnings
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm


def lazy_import(name):
    """A module that is loaded at its first use: `--help` must not wait seconds for torch."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"no module {name!r}; install mmlfer with: pip install -e .")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


torch = lazy_import("torch")

__version__ = "0.1.0"

HERE = Path(__file__).resolve().parent
EMOTIONS = ("happily surprised", "happily disgusted", "sadly fearful", "sadly angry",
            "sadly surprised", "sadly disgusted", "fearfully angry", "fearfully surprised",
            "fearfully disgusted", "angrily surprised", "angrily disgusted",
            "disgustedly surprised", "happily fearful", "happily sad")
AU_NAMES = {  # those of the Facial Action Coding System (FACS), up to 46
    1: "inner brow raiser", 2: "outer brow raiser", 4: "brow lowerer", 5: "upper lid raiser",
    6: "cheek raiser", 7: "lid tightener", 8: "lips toward each other", 9: "nose wrinkler",
    10: "upper lip raiser", 11: "nasolabial deepener", 12: "lip corner puller",
    13: "sharp lip puller", 14: "dimpler", 15: "lip corner depressor", 16: "lower lip depressor",
    17: "chin raiser", 18: "lip pucker", 19: "tongue show", 20: "lip stretcher",
    21: "neck tightener", 22: "lip funneler", 23: "lip tightener", 24: "lip pressor",
    25: "lips part", 26: "jaw drop", 27: "mouth stretch", 28: "lip suck", 29: "jaw thrust",
    30: "jaw sideways", 31: "jaw clencher", 32: "lip bite", 33: "cheek blow", 34: "cheek puff",
    35: "cheek suck", 36: "tongue bulge", 37: "lip wipe", 38: "nostril dilator",
    39: "nostril compressor", 41: "lid droop", 42: "slit", 43: "eyes closed", 44: "squint",
    45: "blink", 46: "wink",
}
AUS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
       30, 32, 33, 34, 35, 39, 43)  # RAF-CE's 32
ACTIVE = 0.5  # an AU above this probability is present
NOT_CODED = -1  # in y_au: no coder said whether the AU is present
NOT_NAMED = -1  # in y_emo: nobody named the expression
TRAIN, TEST, VAL = 0, 1, 2  # RAFCE_partition.txt
SHIFT, SCALE, TURN = 0.04, 0.05, 5.0  # largest moves of --augment: share of side, share, degrees
ARCHS = ("resnet18", "resnet34", "resnet50", "iresnet18", "iresnet34", "iresnet50", "iresnet100",
         "adaface-ir18", "adaface-ir50", "adaface-ir101", "evolve-ir50")
TIMM = re.compile(r"timm:[a-z0-9_]+(\.[a-z0-9_]+)?")  # of timm's own list: no place of a hub
NORMS = {"half": ((0.5,) * 3, (0.5,) * 3),  # mean, std of RGB in 0..1
         "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}  # only named by Pillow
SPLITS = {"train": TRAIN, "test": TEST, "val": VAL}
LABEL_FILES = ("RAFCE_emolabel.txt", "RAFCE_partition.txt", "RAFCE_AUlabel.txt")
OBSERVED, PROTOTYPICAL = 0.2, 0.7  # Sec. 3.2: p(AU | expression) of observed, prototypical AUs
METHODS = {  # weights of (L^emo, L^AU, L^AM): a number, an option's name, or "meta" for learned
    "stl": (1.0, 0.0, 0.0),
    "mtl": (1.0, "rho", 0.0),  # Eq. 3
    "mal": (1.0, "meta", 0.0),
    "mal2": ("meta", "meta", 0.0),
    "am": (1.0, "rho", "rho_am"),  # Eq. 10
    "mml": (1.0, "meta", "meta"),  # Eq. 11
}
SELECT = {"acc": "accuracy", "diag": "diag", "macro-f1": "macro_f1"}  # validation figures
LOWER_RATES = "lower --lr-backbone, --lr-heads or --lr-meta"
DIVERGED = f"diverged; train again with {LOWER_RATES}"


class InputError(ValueError):
    """What the user gave cannot be used; the message says where, and what to do."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The K expressions and J AUs of a data set and its nets, in the order of the outputs z."""

    emotions: tuple  # names
    aus: tuple  # numbers, as in AU_NAMES

    @classmethod
    def of(cls, state):
        """The vocabulary of a checkpoint or a test.json."""
        return cls(tuple(state["emotions"]), tuple(state["aus"]))


RAFCE = Vocabulary(EMOTIONS, AUS)


def setting(default, kind, help_):
    """A field of Config: its default, type of option or list of choices, and help."""
    kind = click.Choice(kind) if isinstance(kind, list) else kind
    return dataclasses.field(default=default, metadata=dict(type=kind, help=help_))


class FiniteRange(click.FloatRange):
    """A range of numbers without inf and nan."""
    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not finite", param, ctx)


class Arch(click.Choice):
    """One of ARCHS, or timm:NAME."""
    def convert(self, value, param, ctx):
        return value if TIMM.fullmatch(value) else super().convert(value, param, ctx)


COUNT, SIZE, SEED = click.IntRange(min=1), click.IntRange(32, 512), click.IntRange(0, 2**31 - 1)
RATE, SHARE = FiniteRange(min=0, min_open=True), FiniteRange(min=0)
PATH, PRECISION = click.Path(path_type=Path), click.Choice(["float32", "bf16"])


class Stream(enum.IntEnum):
    """The uses of random numbers; each draws from np.random.default_rng([seed, stream, ...])."""

    LABELS = 1  # synth's expressions and AUs
    FACES = 2  # synth's faces
    BATCHES = 3
    PEOPLE = 4  # synth's people
    HELD_OUT = 4  # pretrain's people for verification
    PAIRS = 5  # pretrain's pairs of them
    AU_NOISE = 5
    FLIPS = 6  # pretrain's
    TEST_LABELS = 7  # of synth's further test faces
    TEST_FACES = 8
    MOVES = 9  # of --augment
    UNCODED = 10  # synth's rows without AU labels
    SHARES = 11  # synth's --soft
    MASKS = 12  # of dropout and stochastic depth
    PARTITION = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run; every field is an option of `train`."""

    data: str = setting(None, click.Path(), "Folder laid out like RAF-CE, or with a labels.csv; "
                        "required without --resume.")
    size: int = setting(112, SIZE, "S, side of the square face, pixels (Sec. 5.1).")
    skip_bad_images: bool = setting(False, bool, "Go on without images that cannot be read.")
    folds: str = setting(None, str, "Cross-validation: K parts, or persons: one each.")
    fold: int = setting(None, COUNT, "I, 1 to K: the part to test; the next is to validate.")
    method: str = setting("mml", [*METHODS], "Losses and how they are weighted (Tables 2, 3).")
    labels: str = setting("hard", ["hard", "soft"], "L^emo by the named expression, or by the "
                          "shares in columns p_NAME.")
    stats: str = setting("wild", str, "p(AU | expression): wild, lab (Table 1), train (of the "
                         "training rows) or a YAML file.")
    stats_least: int = setting(10, COUNT, "Fewest coded training images of an expression for "
                               "--stats train to use it.")
    form: str = setting("auto", ["auto", "wild", "lab"], "L^AM by Eq. 5 (wild) or Sec. 5.3 (lab); "
                        "auto: lab for --stats lab only.")
    rho: float = setting(0.1, SHARE, "rho, rho_1: weight of L^AU in mtl, am (Eqs. 3, 10).")
    rho_am: float = setting(0.1, SHARE, "rho_2: weight of L^AM in am (Eq. 10).")
    logit_adjust: float = setting(0.0, SHARE, "tau: L^emo of z + tau log p(expression), p of the "
                                  "training rows; 1 aims at Diag. Ours, not the paper's.")
    weight_max: float = setting(1.0, RATE, "W: the meta net's weights are W times a sigmoid; the "
                                "paper's W is 1.")
    hypergrad: str = setting("auto", ["auto", "create_graph", "jvp", "general"], "psi's gradient "
                             "(Eqs. 14, 15): create_graph, the definition; jvp, faster; general, "
                             "the same for any net; auto: jvp, or general where jvp has no rule "
                             "for a layer, if it agrees before the first step.")
    arch: str = setting("resnet34", Arch(ARCHS), "Backbone, also timm:NAME for any net of timm; "
                        "the paper uses resnet34.")
    weights: str = setting("auto", str, "Initial backbone (Sec. 5.1): a file, imagenet, timm or "
                           "none; auto: weights/ARCH_casia.pth if it is there, else none.")
    weights_bgr: bool = setting(False, bool, "The file's backbone was trained on BGR.")
    weights_norm: str = setting("auto", ["auto", *NORMS], "Normalisation that goes with the "
                                "weights; auto: what their file says, else half (mean and standard "
                                "deviation 0.5).")
    epochs: int = setting(60, COUNT, "Passes over the training images.")
    batch_size: int = setting(16, click.IntRange(min=2), "B, faces in a training or validation "
                              "batch.")
    select: str = setting("acc", [*SELECT], "Validation figure that chooses the epoch.")
    augment: bool = setting(False, bool, "Shift (4 %), scale (5 %) and turn (5 degrees) each "
                            "training and validation image at random.")
    lr_backbone: float = setting(0.001, RATE, "alpha, learning rate of the backbone (Eqs. 13, 17).")
    lr_heads: float = setting(0.01, RATE, "alpha of both classifiers (Eqs. 13, 17).")
    lr_meta: float = setting(0.01, RATE, "beta, rate of the meta net (Eq. 14).")
    schedule: str = setting("constant", ["constant", "onecycle"], "Learning-rate schedule; "
                            "onecycle rises to alpha, then falls.")
    momentum: float = setting(0.9, FiniteRange(0, 1, max_open=True), "SGD momentum of theta (Eq. "
                              "17).")
    weight_decay: float = setting(5e-4, SHARE, "SGD weight decay of theta (Eq. 17).")
    seed: int = setting(0, SEED, "Seed of all random numbers.")
    device: str = setting("auto", str, "auto, cpu, cuda, cuda:1, ...")
    precision: str = setting("float32", PRECISION, "Number format of the backbone.")


# ---------------------------------------------------------------- losses (Secs. 4, 4.1, 5.3)
# One value per sample. Where Eqs. 12 and 16 sum, a batch is averaged: the same step, another rate.


def loss_au(z_au, y_au):
    """Eq. 1, cross-entropy summed over the coded AUs. z_au, y_au (B, J) -> (B,)."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    each = bce(z_au, y_au.to(z_au.dtype), reduction="none")
    return each.masked_fill(y_au == NOT_CODED, 0).sum(1)


def loss_emo(z_emo, y_emo, shift=0.0):
    """Eq. 2, cross-entropy over the expressions, 0 where none is named. z_emo (B, K), y_emo (B,)
    -> (B,). Soft: with shares q (B, K) for y_emo it is -sum_k q_k log p_k; no share, no loss.
    shift (K,): tau log p(expression), by which --logit-adjust moves z (arXiv 2007.07314)."""
    if y_emo.ndim == 2:
        y_emo = y_emo.to(z_emo.dtype)
    return torch.nn.functional.cross_entropy(z_emo + shift, y_emo, reduction="none",
                                             ignore_index=NOT_NAMED)


def aus_from_expressions(p_emo, table, form):
    """q^AU: Eq. 5 (wild), or the sigmoid of Eq. 4 (lab, Sec. 5.3). p_emo (B, K), table (K, J)
    -> (B, J)."""
    if form == "wild":
        return p_emo @ torch.sigmoid(table)
    return torch.sigmoid(p_emo @ table)


def expressions_from_aus(z_au, table):
    """Eq. 7, log q^emo, stable for AUs near 0. z_au (B, J), table (K, J) -> (B, K)."""
    log_p_au = torch.nn.functional.logsigmoid(z_au)[:, None]  # (B, 1, J)
    return torch.logsumexp(log_p_au + table.log(), 2) - table.sum(1).log()


def loss_dm1(z_emo, z_au, table, form):
    """Eq. 6, predicted AUs against q^AU. z_emo (B, K), z_au (B, J) -> (B,)."""
    q_au = aus_from_expressions(z_emo.softmax(1), table, form)
    return -(z_au.sigmoid() * q_au.log()).sum(1)


def loss_dm2(z_emo, z_au, table):
    """Eq. 8, predicted expressions against q^emo. z_emo (B, K), z_au (B, J) -> (B,)."""
    return -(z_emo.softmax(1) * expressions_from_aus(z_au, table)).sum(1)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """p(AU | expression) as L^AM reads it. It is made once per run, because `of` reads values from
    the device, and a step must not wait for a GPU."""

    table: object  # (K, J); in the lab form every observed p is 1
    form: str  # "wild" or "lab"
    left_out: object  # (K,), expressions without statistics; None if there are none

    @classmethod
    def of(cls, table, form):
        """From a table (K, J), in which expressions without statistics are rows of zeros."""
        if form == "lab":
            table = (table > 0).to(table.dtype)
        left_out = ~table.any(1)
        table = table + left_out[:, None]  # any value does, because their p^emo is 0
        return cls(table, form, left_out if left_out.any() else None)


def loss_am(z_emo, z_au, statistics):
    """Eq. 9, the alignment loss L^AM = L^DM1 + L^DM2. z_emo (B, K), z_au (B, J) -> (B,).

    Expressions without statistics are left out. Let S be the others: in Eqs. 5, 7 and 8 k runs over
    S, and p^emo is the softmax over S. L^AM is multiplied by p(S), the share of S in the softmax
    over all; it has no gradient. If S is empty, L^AM is 0 but for rounding.
    """
    s, weight = statistics, 1
    if s.left_out is not None:
        weight = 1 - (z_emo.detach().softmax(1) * s.left_out).sum(1)  # (B,), p(S)
        z_emo = z_emo.masked_fill(s.left_out, torch.finfo(z_emo.dtype).min)
    return weight * (loss_dm1(z_emo, z_au, s.table, s.form) + loss_dm2(z_emo, z_au, s.table))


def all_losses(z_emo, z_au, y_emo, y_au, statistics, shift=0.0):
    """L^emo, L^AU and L^AM of each sample. z_emo (B, K), z_au (B, J) -> (B, 3)."""
    l_am = loss_am(z_emo, z_au, statistics)
    return torch.stack([loss_emo(z_emo, y_emo, shift), loss_au(z_au, y_au), l_am], 1)


# ---------------------------------------------------------------- the bilevel step (Sec. 4.2)


def loss_sources(options):
    """The weights of (L^emo, L^AU, L^AM) in a run with these options: each a number or "meta"."""
    return [options.get(source, source) for source in METHODS[options["method"]]]


def learned(method):
    """Which of (L^emo, L^AU, L^AM) the meta net weights: their places, in its outputs' order."""
    return [i for i, source in enumerate(METHODS[method]) if source == "meta"]


def loss_weights(meta, f, cfg):
    """omega (B, 3), the weights of the three losses: constants, or W g(f; psi) where learned.

    f (B, F) is detached: the weights are coefficients of the loss, not a path by which the
    backbone can make its own loss small.
    """
    columns = [None if source == "meta" else f.new_full((len(f),), source)
               for source in loss_sources(vars(cfg))]
    if meta:
        weights = cfg.weight_max * meta(f.detach()).sigmoid()
        for i, column in zip(learned(cfg.method), weights.unbind(1)):
            columns[i] = column
    return torch.stack(columns, 1)


def spare_buffers(net):
    """Copies of a net's buffers for a look-ahead pass, so that BatchNorm's own do not change."""
    return {name: b.clone() for name, b in net.named_buffers()}


def hypergradient(taped, omega, val, alpha, psi, mean=tuple):
    """Eqs. 12-15: d L^val(theta*) / d psi, through theta* = theta - alpha grad_theta L^MTL.

    This is the definition. taped.losses, omega (B, 3) with their graphs to theta and psi; val =
    (x, y_emo), the meta-test batch, or with L^emo's shift; alpha {parameter name: learning rate};
    psi a list of tensors. Returns a gradient for each tensor of psi and changes nothing in place.
    Of processes that share the batches, `mean` takes tensors to their means (of one: to themselves)
    and is differentiable: exact, because losses are sums over samples.
    """
    theta = dict(taped.net.named_parameters())
    l_mtl = (omega * taped.losses).sum(1).mean()  # Eq. 12
    grad = mean(torch.autograd.grad(l_mtl, list(theta.values()), create_graph=True))
    theta_star = {n: p - alpha[n] * g for (n, p), g in zip(theta.items(), grad)}  # Eq. 13
    return mean(torch.autograd.grad(loss_val(taped.net, theta_star, val), psi))  # Eqs. 14, 15


def loss_val(net, theta_star, val):
    """L^val, the mean L^emo at theta*, with batch statistics; running statistics do not change."""
    x, *labels = val
    outputs = torch.func.functional_call(net, (theta_star, spare_buffers(net)), (x,))
    return loss_emo(outputs[1], *labels).mean()


def hypergradient_jvp(taped, omega, val, alpha, psi, mean=tuple, along=None):
    """`hypergradient` without a second-order graph, equal in exact arithmetic.

    L^MTL is linear in omega, so d L^val / d omega_i = -(1/B) <alpha v, grad_theta L_i> with
    v = grad_theta* L^val. This is the derivative of L_i along alpha v; one forward-mode pass of
    the Taped training batch gives it for all i: by rules, or by `along` of (taped, direction).
    """
    theta = dict(taped.net.named_parameters())
    l_mtl = (omega * taped.losses).sum(1).mean()  # Eq. 12
    grad = mean(torch.autograd.grad(l_mtl, list(theta.values()), retain_graph=True))
    theta_star = {}
    for (name, p), g in zip(theta.items(), grad):  # Eq. 13, in the gradient's memory
        theta_star[name] = g.mul_(-alpha[name]).add_(p.detach()).requires_grad_()
    l_val = loss_val(taped.net, theta_star, val)
    v = mean(torch.autograd.grad(l_val, list(theta_star.values()), materialize_grads=True))
    with torch.no_grad():  # in torch 2.6 the zeros of parameters that L^val does not use need it
        direction = {name: v_n.mul_(alpha[name]) for name, v_n in zip(theta, v)}
    del grad, theta_star, l_val
    d_losses = (along or Taped.along)(taped, direction)  # (B, 3)
    return mean(torch.autograd.grad(omega, psi, -d_losses / len(d_losses), retain_graph=True))


class Taped:
    """The forward pass at theta of a training batch, and its derivative along a direction.

    It holds f (B, F) and losses (B, 3) with their graphs, and input and output of each layer with a
    rule in TANGENTS. All else in the net (sums, means, flattening) is linear: the net itself, run
    on derivatives with these layers replaced by their rules, is the forward-mode pass.
    """

    def __init__(self, net, x, losses_of, seed=0):
        self.net, self.x, self.losses_of, self.seed, self.tape = net, x, losses_of, seed, []
        torch.manual_seed(seed)  # of dropout and stochastic depth
        with replaced(net, self.record):
            self.f, *z = net(x)  # (B, F); z_emo (B, K), z_au (B, J)
        self.losses = losses_of(*z)  # (B, 3)
        self.z = tuple(part.detach() for part in z)

    def record(self, name, layer):
        """The layer's forward, which also keeps its input and output for the rule. (The ReLU soon
        overwrites a BatchNorm's output in place; no rule reads that one.)"""

        def forward(x):
            y = type(layer).forward(layer, x)
            self.tape.append((name, x.detach(), y.detach()))
            return y

        return forward

    def along(self, direction):
        """The losses' derivative, (B, 3), as theta moves along {parameter name: direction}."""
        tape = iter(self.tape)

        def rule_of(name, layer):
            d = {n: direction[f"{name}.{n}"] for n, _ in layer.named_parameters(recurse=False)}

            def forward(dx):
                recorded, x, y = next(tape)
                if recorded != name:
                    raise RuntimeError(f"the tape holds {recorded} where {name} asks")
                return TANGENTS[type(layer).__name__](layer, x, y, dx, d)

            return forward

        with torch.no_grad(), replaced(self.net, rule_of):
            df = tangent_features(self.net)  # (B, F)
            dz = self.net.fe(df), self.net.au(df)  # (B, K), (B, J)
        return jvp(self.losses_of, self.z, dz)

    def along_in_general(self, direction):
        """The same for any net, without rules, by torch's forward mode through the whole net, in
        float32: autocast does not cast what has a derivative with it."""
        theta = {name: p.detach() for name, p in self.net.named_parameters()}
        precision, self.net.precision = self.net.precision, "float32"
        try:
            return jvp(self.losses_at, (theta,), (direction,))
        finally:
            self.net.precision = precision

    def losses_at(self, theta):
        """The losses (B, 3) at other parameters {name: tensor}, with the same random masks."""
        torch.manual_seed(self.seed)
        args = (theta, spare_buffers(self.net)), (self.x,)
        return self.losses_of(*torch.func.functional_call(self.net, *args)[1:])


def jvp(function, primals, tangents):
    """The derivative of a function of tensors along tangents."""
    with warnings.catch_warnings():  # torch's jvp uses torch.jit.script, deprecated by torch
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        return torch.func.jvp(function, primals, tangents)[1]


@contextlib.contextmanager
def replaced(net, forward_of):
    """net with forward_of(name, layer) as the forward of each layer that has a rule."""
    layers = {n: m for n, m in net.named_modules() if type(m).__name__ in TANGENTS}
    try:
        for name, layer in layers.items():
            layer.forward = forward_of(name, layer)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


# A rule takes a layer, its recorded input x and output y, the derivative dx of its input and the
# derivatives d of its parameters, {name: tensor}. It returns the derivative of y, shaped like y.


def tangent_conv(layer, x, y, dx, d):
    """d (W * x + b) = dW * x + db + W * dx; dx is None where the input is the image."""
    out = layer._conv_forward(x, d["weight"], d.get("bias"))  # like y: (B, C, h, w)
    return out if dx is None else out.add_(layer._conv_forward(dx, layer.weight, None))


def tangent_batch_norm(layer, x, y, dx, d):
    """d (gamma (x - mean) / sd + beta), batch statistics: the same with d gamma and d beta, plus
    the Jacobian in x times dx. It is symmetric, so the backward kernel computes this product."""
    along, mean, inverse_sd = torch.native_batch_norm(  # (B, C, h, w), (C,), (C,)
        x, d["weight"], d["bias"], None, None, True, 0, layer.eps)
    return along.add_(torch.ops.aten.native_batch_norm_backward(
        dx, x, layer.weight, None, None, mean, inverse_sd, True, layer.eps,
        [True, False, False])[0])


def tangent_relu(layer, x, y, dx, d):
    """dx where y > 0, else 0."""
    return torch.ops.aten.threshold_backward(dx, y, 0)


def tangent_prelu(layer, x, y, dx, d):
    """dx where x > 0, else a dx + da x; a (C,) of each channel, or (1,) of all."""
    a, da = (t.view(1, -1, *[1] * (x.ndim - 2)) for t in (layer.weight, d["weight"]))
    return torch.where(x > 0, dx, a * dx).addcmul_(x.clamp(max=0), da)


def tangent_max_pool(layer, x, y, dx, d):
    """dx at the place of each window's maximum. x, dx (B, C, H, W) -> (B, C, h, w)"""
    _, where = torch.nn.functional.max_pool2d_with_indices(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return dx.flatten(2).gather(2, where.flatten(2)).view_as(y)


def tangent_linear(layer, x, y, dx, d):
    """d (W x + b) = dW x + db + W dx. x (B, D) -> (B, K)"""
    linear = torch.nn.functional.linear
    return linear(x, d["weight"], d.get("bias")) + linear(dx, layer.weight)


# Types are given by name, because `import mmlfer` must not load torch.nn.
TANGENTS = {"Conv2d": tangent_conv, "BatchNorm2d": tangent_batch_norm, "ReLU": tangent_relu,
            "PReLU": tangent_prelu, "MaxPool2d": tangent_max_pool, "Linear": tangent_linear}


def learning_rates(net, optimizer):
    """alpha of each named parameter, as the optimizer has it at this step."""
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in net.named_parameters()}


def meta_train(run, batch):
    """Taped losses (B, 3) of a batch x (B, 3, S, S), y_emo (B,), y_au (B, J), and omega (B, 3)."""
    x, y_emo, y_au = batch
    seed = np.random.default_rng([run.cfg.seed, Stream.MASKS, run.epoch, run.step]).integers(2**62)
    losses_of = functools.partial(all_losses, y_emo=y_emo, y_au=y_au, statistics=run.statistics,
                                  shift=run.shift)
    taped = Taped(run.net, x, losses_of, int(seed))
    return taped, loss_weights(run.meta, taped.f, run.cfg)


FORMS = {  # by the words of --hypergrad
    "create_graph": hypergradient, "jvp": hypergradient_jvp,
    "general": functools.partial(hypergradient_jvp, along=Taped.along_in_general)}


def meta_test(run, taped, omega, val, form):
    """The gradient of L^val at theta* by psi, a list of tensors, in one of FORMS."""
    torch.manual_seed(taped.seed + 1)  # the validation batch's random masks: the same in each form
    return FORMS[form](taped, omega, (*val[:2], run.shift), learning_rates(run.net, run.opt),
                       list(run.meta.parameters()), run.mean)


Step = collections.namedtuple("Step", "l_emo l_au l_am w_emo w_au w_am norm_theta norm_psi")
STEP_LABELS = Step("L^emo", "L^AU", "L^AM", "w^emo", "w^AU", "w^AM", "gradient of theta",
                   "gradient of psi")


def train_step(run, batch, val):
    """Fig. 3: meta-train, meta-test and base-learning; without a meta net only the last.

    batch and val are x (B, 3, S, S), y_emo (B,), y_au (B, J). Meta-train and base-learning share
    one forward pass at theta, because theta has not changed in between; only this pass updates
    BatchNorm's running statistics. Returns a Step: the batch means of losses and weights, and
    the norms of the gradients. Processes that share the batches normalise each its own rows (in
    BatchNorm), and all end with the same nets and the same Step.
    """
    # Meta-train: the losses of the training batch, weighted by the meta net
    taped, omega = meta_train(run, batch)  # taped.losses, omega (B, 3)

    # Meta-test: L^emo of the validation batch at theta* moves psi
    norm_psi = torch.zeros_like(omega[0, 0])
    if run.meta:
        grad_psi = meta_test(run, taped, omega, val, run.hypergrad)  # (n, F), (n,)
        with torch.no_grad():
            for p, g in zip(run.meta.parameters(), grad_psi):
                p.add_(g, alpha=-run.cfg.lr_meta)  # Eq. 14
        norm_psi = torch.nn.utils.get_total_norm(grad_psi)
        omega = loss_weights(run.meta, taped.f, run.cfg)  # (B, 3), of psi hat

    # Base-learning: theta moves under the new weights
    run.opt.zero_grad()
    (omega.detach() * taped.losses).sum(1).mean().backward()  # Eq. 16
    means = torch.cat([taped.losses, omega], 1).detach().mean(0)  # (6,)
    grads = [p.grad for p in run.net.parameters()]
    own = [*grads, means, *(b for n, b in run.net.named_buffers() if ".running_" in n)]
    for one, of_all in zip(own, run.mean(own)):
        one.copy_(of_all)
    norm_theta = torch.nn.utils.get_total_norm(grads)
    run.opt.step()  # Eq. 17
    return Step(*means, norm_theta, norm_psi)


# ---------------------------------------------------------------- the nets and their weights


def make_base_net(arch="resnet34", norm=NORMS["half"], vocabulary=RAFCE, size=112):
    """theta: backbone, FE and AU classifiers. The normalisation belongs to the backbone's weights,
    so the net holds it in two buffers; its `vocabulary` names its outputs."""

    class BaseNet(torch.nn.Module):  # defined here: `import mmlfer` must not load torch.nn
        """x (B, 3, S, S) uint8 -> f (B, F), z_emo (B, K), z_au (B, J)."""

        def __init__(self):
            super().__init__()
            self.arch, self.vocabulary, self.precision = arch, vocabulary, "float32"
            for name, values in zip(("mean", "std"), norm):
                self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
            self.backbone = make_backbone(arch, size)
            self.fe = torch.nn.Linear(self.backbone.num_features, len(vocabulary.emotions))
            self.au = torch.nn.Linear(self.backbone.num_features, len(vocabulary.aus))

        def forward(self, x):
            f = features(self, (x.to(self.mean.dtype) / 255 - self.mean) / self.std)
            return f, self.fe(f), self.au(f)

    return BaseNet()


def features(net, x):
    """f (B, F) of normalised images x (B, 3, S, S). With bf16 the backbone runs under autocast:
    parameters, BatchNorm's statistics and f stay float32. In training attention is computed by its
    formula: the faster ways have neither second derivatives nor a forward mode."""
    sdpa = torch.nn.attention
    exact = sdpa.sdpa_kernel(sdpa.SDPBackend.MATH) if net.training else contextlib.nullcontext()
    with exact:
        if net.precision == "float32":
            return net.backbone(x)
        with torch.autocast(net.mean.device.type, torch.bfloat16):
            return net.backbone(x).float()


def tangent_features(net):
    """df (B, F) in a tangent pass, rounded as f is: the first layer's rule takes None for the
    images' derivative, because they do not depend on theta."""
    return features(net, None)


def make_backbone(arch, size=112):
    """The net of this name without its last layer: (B, 3, S, S) -> f (B, F = .num_features)."""
    if not arch.startswith("resnet"):  # by name, as the commands are
        return importlib.import_module("mmlfer_commands._nets").make_net(arch, size)
    import torchvision

    backbone = torchvision.models.get_model(arch)
    backbone.num_features = backbone.fc.in_features
    backbone.fc = torch.nn.Identity()
    return backbone


def make_meta_net(method, inputs=512):
    """psi: a linear layer on f, zero at first (so omega is W / 2); None if nothing is learned."""
    outputs = len(learned(method))
    if not outputs:
        return None
    meta = torch.nn.Linear(inputs, outputs)
    torch.nn.init.zeros_(meta.weight)
    torch.nn.init.zeros_(meta.bias)
    return meta


def torch_load(path):
    """A checkpoint's content, tensors and plain values alone: no code in a file is ever run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: {error.strerror}; give a checkpoint file") from None
    except Exception as error:  # pickle's, zip's and torch's own, by the kind of damage
        if kind := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            numpy = {"scalar": "a numpy scalar", "_reconstruct": "a numpy array"}
            raise InputError(f"{path}: holds {numpy.get(kind[1].split('.')[-1], kind[1])}; only "
                             "tensors and plain values are read, because all else can run code: "
                             "where it was made, torch.save(net.state_dict(), FILE)") from None
        raise InputError(f"{path}: not a checkpoint that can be read safely "
                         f"({brief(error)})") from None


def pick_device(name):
    """The torch device of --device; auto is cuda where there is one. InputError if unusable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with refused(f"--device {name}", "{}", RuntimeError, AssertionError):
        device = torch.zeros((), device=name).device
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu and cuda are supported")
    return device


# ---------------------------------------------------------------- data (Sec. 3.1)


@dataclasses.dataclass(frozen=True)
class Faces:
    """Labels of N faces and, once decoded, their images."""

    names: list  # N file names, as the label files have them
    y_emo: np.ndarray  # (N,) 0..K-1 or NOT_NAMED
    split: np.ndarray  # (N,) TRAIN, TEST or VAL
    y_au: np.ndarray  # (N, J) 0, 1 or NOT_CODED
    images: object = None  # (N, 3, S, S) uint8, a tensor or a torch Subset of one
    vocabulary: Vocabulary = RAFCE
    files: tuple = LABEL_FILES  # names of the files with expressions, partition and AUs
    shares: object = None  # (N, K) float32, sums 1, NaN in rows without; None if no row has any
    fold: object = None  # (N,) 1..K, of cross-validation; 0 in none: every fold trains on it
    columns: dict = dataclasses.field(default_factory=dict)  # {one asked for: (N,) texts}

    def select(self, keep):
        """The faces at an index or mask. Images are not copied before they are used."""
        keep, images = np.arange(len(self.names))[keep], self.images
        if images is not None:
            images = torch.utils.data.Subset(images, torch.from_numpy(keep))
        own = {name: rows[keep] for name, rows in vars(self).items() if type(rows) is np.ndarray}
        return dataclasses.replace(
            self, names=[self.names[i] for i in keep], images=images, **own,
            columns={name: texts[keep] for name, texts in self.columns.items()})

    def named(self):
        """The faces whose expression is named."""
        return self.select(self.y_emo != NOT_NAMED)

    def soft(self):
        """q (N, K): the shares, else 1 for the named expression, else 0."""
        hard = self.y_emo[:, None] == np.arange(len(self.vocabulary.emotions))
        return np.where(np.isnan(self.shares), hard, self.shares).astype(np.float32)

    def prior(self, labels):
        """p(expression), K numbers, of the training rows, by hard or soft labels."""
        train, k = self.of("train"), len(self.vocabulary.emotions)
        n = np.nansum(train.soft(), 0, float) if labels == "soft" else counts(train.y_emo, k)
        return (np.array(n) / sum(n)).tolist()

    def of(self, split):
        """The faces of "train", "test" or "val"."""
        return self.select(self.split == SPLITS[split])

    def sha256(self):
        """A digest of names, labels and partition, or folds, which identifies the data set. AUs
        that no row codes do not count: the statistics of a run may have brought them."""
        coded = np.flatnonzero((self.y_au != NOT_CODED).any(0))
        aus = tuple(self.vocabulary.aus[j] for j in coded)
        parts = (self.split if self.fold is None else self.fold).tolist()
        rows = zip(self.names, self.y_emo.tolist(), parts, self.y_au[:, coded].tolist())
        own = Vocabulary(self.vocabulary.emotions, aus)
        own = [] if own == RAFCE else [own]
        own += [] if self.shares is None else [self.shares.tolist()]
        return hashlib.sha256(repr([*rows, *own]).encode()).hexdigest()


def plural(n, noun):
    """'1 row' or '2 rows'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def stem(name):
    """The name by which all lists know an image: 0001 for 0001.jpg and for 0001_aligned.png."""
    return Path(name).stem.removesuffix("_aligned")


def is_aligned(path):
    """Whether an image is an aligned crop, by its name or its folder's."""
    return path.stem.endswith("_aligned") or path.parent.name == "aligned"


@functools.cache
def image_suffixes():
    """The suffixes of the pictures that Pillow reads, with what is installed beside it."""
    formats = Image.registered_extensions()
    return {suffix for suffix, name in formats.items() if name not in NO_PICTURES}


def is_image(path):
    """Whether a file has the name of a picture that can be read, blanks at its end or not."""
    return os.path.splitext(path)[1].strip().lower() in image_suffixes()


def image_index(*folders):
    """{stem: path} of the images in the folders where copies of RAF-AU have them. Of two images
    with one stem it is the aligned crop, else the one in the first of these folders."""
    places = [base / sub for folder in folders for base in (folder, folder / "RAF-AU")
              for sub in ("aligned/aligned", "aligned", "")]
    paths = [path for place in places if place.is_dir() for path in sorted(place.iterdir())
             if is_image(path) and path.name[0] != "."]
    index = {}
    for path in sorted(paths, key=lambda path: not is_aligned(path)):
        index.setdefault(stem(path), path)
    return index


UNKNOWN_RANGE = "values {}: no known range (0..1, 0..255, 0..65535); convert it to 8 bits"


def read_image(path, size=None):
    """An image as a person sees it: upright, RGB, transparent parts on white. -> uint8 array
    (H, W, 3), or (size, size, 3) if a size is given."""
    with Image.open(path) as image:
        deep = any(";16" in str(tile[-1]) for tile in image.tile)  # Pillow makes 8 bits of colours
        with contextlib.suppress(Exception):  # broken EXIF data: the image stays as it is
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits
            image = Image.fromarray(to_8_bits(image))
        elif deep and 0 < max(np.ravel(image.convert("RGB").getextrema())) < 16:
            raise ValueError(UNKNOWN_RANGE.format("below 4096 in 16 bits"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image if image.mode == "RGB" else image.convert("RGB")
        image = image.resize((size, size), Image.Resampling.BILINEAR) if size else image
        return np.asarray(image)


def to_8_bits(pixels):
    """Grey values (H, W) of more than 8 bits as uint8 (H, W). Their range is taken to be the
    smallest of 0..1 (fractions), 0..255 and 0..65535 that holds all of them. ValueError for other
    values, and if the brightest is below 1/16 of white: 12-bit values (0..4095) look like a nearly
    black 16-bit image. 14-bit values are read as a dark 16-bit image."""
    pixels = np.asarray(pixels, np.float64)
    low, high = pixels.min(), pixels.max()
    top = 255 if high <= 255 else 65535
    if low >= 0 and high <= 1 and (pixels % 1).any():
        top = 1
    if not 0 <= low <= high <= top or 0 < high < top / 16:
        raise ValueError(UNKNOWN_RANGE.format(f"{low:g}..{high:g}"))
    if top != 65535:
        tell_once(f"Note: images of 16 or 32 bits whose values lie in 0..{top} are read as "
                  f"0..{top}")
    return (255 / top * pixels).astype(np.uint8)


def brief(error):
    """An exception's text in one line of bounded length."""
    return " ".join(str(error).split())[:120] or type(error).__name__


@contextlib.contextmanager
def refused(where, message, *kinds):
    """Make an InputError of any error of these kinds (OSError if none is given) but an InputError.
    {} in the message stands for the reason."""
    kinds = kinds or OSError
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or brief(error)
        raise InputError(f"{where}: {message.replace('{}', reason)}") from None


def try_read(path, size):
    """The array of read_image, or a sentence that says why the image cannot be read."""
    if not os.path.isfile(path):
        return f"{path}: no regular file"
    try:
        return read_image(path, size)
    except Exception as error:  # Pillow's plugins raise every kind, MemoryError included
        return f"{path}: not an image that can be read ({brief(error)})"


AHEAD = 256  # most images that are decoded before they are used


def decode(paths, size, desc="decoding"):
    """Yield try_read of each path, in order, decoded on all cores."""
    bar = progress(total=len(paths), desc=desc, unit=" faces")
    with bar, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), AHEAD):
            for image in pool.map(lambda path: try_read(path, size), paths[start : start + AHEAD]):
                bar.update()
                yield image


def image_paths(faces, folder):
    """The path of each face's image, or None if it has none. labels.csv has paths from its folder;
    RAF-CE's files have names, which image_index finds."""
    if faces.files == LABEL_FILES:
        index = image_index(Path(folder))
        return [index.get(stem(name)) for name in faces.names]
    paths = [Path(folder, name) for name in faces.names]
    return [path if os.path.exists(path) else None for path in paths]  # a name may be too long


def not_found(name, folder):
    """A sentence that says that an image is not there, and what there is of nearly its name."""
    place, wanted = os.path.split(name.replace("\\", "/"))
    beside = os.listdir(Path(folder, place)) if os.path.isdir(Path(folder, place)) else []
    like = [Path(place, file) for file in beside if file.casefold() == wanted.casefold()]
    return f"{name} is not found below {folder}" + (f", but {like[0]} is" if like else "")


def decode_all(paths, size, room=None):
    """The images of N paths in `room`, an array (N, 3, S, S) uint8 that is made if none is given,
    those that can be read first; and why not of the others, {number: sentence}."""
    images, bad = np.empty((len(paths), 3, size, size), np.uint8) if room is None else room, {}
    for i, image in enumerate(decode(paths, size)):
        if isinstance(image, str):
            bad[i] = image
        else:
            images[i - len(bad)] = image.transpose(2, 0, 1)
    return images, bad


def load_images(faces, folder, size, skip_bad=False, decoded=decode_all):
    """The faces with their images decoded once into one (N, 3, S, S) uint8 tensor."""
    paths = image_paths(faces, folder)
    found, there = list(filter(None, paths)), np.array([path is not None for path in paths], bool)
    bad = [not_found(name, folder) if i < 3 else name  # the first three are shown
           for i, name in enumerate(faces.select(~there).names)]
    faces = faces.select(there)
    images, unread = decoded(found, size)
    bad += unread.values()
    if bad and not skip_bad:
        place = "/aligned" if faces.files == LABEL_FILES else f", as {faces.files[0]} names them"
        raise InputError(f"{len(bad)} of {len(there)} images cannot be read: {'; '.join(bad[:3])}"
                         f"{'; ...' if len(bad) > 3 else ''}. Images belong in {folder}{place}; "
                         "--skip-bad-images goes on without them")
    if bad:
        click.echo(f"Warning: left out {len(bad)} images that cannot be read: {bad[0]}", err=True)
    plain = [path for path in found if not is_aligned(path)]
    if 0 < len(plain) < len(found):
        click.echo(f"Warning: {len(found) - len(plain)} aligned crops and {len(plain)} other "
                   f"images, such as {plain[0]}: faces should be cropped alike", err=True)
    good = np.delete(np.arange(len(found)), list(unread))
    return dataclasses.replace(faces.select(good), images=torch.from_numpy(images[: len(good)]))


def counts(y_emo, k):
    """The number of images of each of k expressions, from y_emo (N,)."""
    y_emo = np.asarray(y_emo)
    return tuple(np.bincount(y_emo[y_emo != NOT_NAMED], minlength=k).tolist())


# ---------------------------------------------------------------- metrics (Sec. 5.3)


def confusion_matrix(truth, pred, k):
    """Counts of truth (rows) by prediction (columns) of k expressions. (N,), (N,) -> (K, K)"""
    return np.bincount(np.asarray(truth) * k + np.asarray(pred), minlength=k * k).reshape(k, k)


def ratio(top, bottom):
    """top / bottom, None where it is undefined."""
    return float(top / bottom) if bottom else None


def mean_defined(values):
    """The mean of the values that are not None, or None if there are none."""
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None


def expression_f1(confusion):
    """F1 of each expression, None for those without images. confusion (K, K)"""
    counts_of = zip(confusion.diagonal(), confusion.sum(1), confusion.sum(0))
    return [2 * right / (true + called) if true else None for right, true, called in counts_of]


def expression_metrics(confusion, emotions):
    """Acc., Diag. (the mean of the expressions' rates) and macro F1 of a confusion matrix (K, K)
    of these expressions. Those without images are left out of both means; their rate is None."""
    right, n = confusion.diagonal(), confusion.sum(1)
    rates = [ratio(*pair) for pair in zip(right, n)]
    return {"n": int(n.sum()), "accuracy": ratio(right.sum(), n.sum()), "diag": mean_defined(rates),
            "macro_f1": mean_defined(expression_f1(confusion)),
            "per_class": dict(zip(emotions, rates)), "confusion": confusion.tolist()}


def au_metrics(y_au, active, aus):
    """F1 of each of these AUs, from y_au and predictions `active`, both (N, J), over the coded
    faces; None if an AU is neither present nor predicted. F1 is 2 both / total of its counts."""
    present, active = y_au == 1, active & (y_au != NOT_CODED)
    both, total = (present & active).sum(0), present.sum(0) + active.sum(0)
    pairs = dict(zip(map(str, aus), np.stack([both, total], 1).tolist()))
    f1 = {au: ratio(2 * b, t) for au, (b, t) in pairs.items()}
    return {"au_n": int((y_au != NOT_CODED).any(1).sum()), "au_f1": f1,
            "au_f1_macro": mean_defined(f1.values()), "au_counts": pairs}


def share_metrics(p_emo, q):
    """How predictions p_emo fit shares q, both (N, K): the mean of KL(q || p) = sum_k q_k log(q_k /
    p_k), and in how many of the faces that have two largest shares these are the two likeliest."""
    kl = (q * np.log(np.maximum(q, 1e-12) / np.maximum(p_emo, 1e-12))).sum(1)
    top, said = np.argsort(-q, 1)[:, :2], np.argsort(-p_emo, 1)[:, :2]
    third = np.sort(q, 1)[:, -3] if q.shape[1] > 2 else np.zeros(len(q))
    clear = np.take_along_axis(q, top[:, 1:], 1)[:, 0] > third
    right = (np.sort(top, 1) == np.sort(said, 1)).all(1)
    return {"shares_n": len(q), "kl": mean_defined(kl), "top_two_n": int(clear.sum()),
            "top_two": ratio(right[clear].sum(), clear.sum())}


def as_batch(images):
    """x (N, 3, S, S) uint8 of N arrays (S, S, 3)."""
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def predict_faces(net, images, batch=64):
    """p_emo (N, K) and p_au (N, J) of (N, 3, S, S) images, as arrays; BatchNorm in test mode."""
    device, mode = next(net.parameters()).device, net.training
    net.eval()
    with torch.no_grad():
        parts = torch.arange(len(images)).split(batch)
        outputs = [net(images[rows].to(device))[1:] for rows in parts]
    net.train(mode)
    p_emo, p_au = torch.cat([z for z, _ in outputs]).softmax(1), torch.cat([z for _, z in outputs])
    if not (p_emo.isfinite().all() and p_au.isfinite().all()):
        raise InputError(f"the net's outputs are not finite: its training {DIVERGED}")
    return p_emo.cpu().numpy(), p_au.sigmoid().cpu().numpy()


def find_trained(options, faces):
    """The AUs that a run with these options trains on faces: those that a training row codes, if
    the method trains the AU classifier at all. Outputs of others are those of random weights."""
    coded = (faces.y_au[faces.split == TRAIN] != NOT_CODED).any(0)
    known = zip(faces.vocabulary.aus, coded & any(loss_sources(options)[1:]))
    return [au for au, trained in known if trained]


def evaluate(net, faces, trained, predict=predict_faces):
    """All metrics of a net on faces of its vocabulary, and its predictions ("pred") for those whose
    expression is named. The F1 is None of AUs that are not among the `trained` ones."""
    p_emo, p_au = predict(net, faces.images)
    named, names, soft = faces.y_emo != NOT_NAMED, net.vocabulary, {}
    pred = p_emo.argmax(1)[named]
    confusion = confusion_matrix(faces.y_emo[named], pred, len(names.emotions))
    if faces.shares is not None:
        given = ~np.isnan(faces.shares).any(1)
        soft = share_metrics(p_emo[given], faces.shares[given])
    y_au = np.where(np.isin(names.aus, trained), faces.y_au.astype(np.int8), NOT_CODED)
    aus = au_metrics(y_au, p_au > ACTIVE, names.aus)
    return {**expression_metrics(confusion, names.emotions), **aus, **soft, "pred": pred.tolist()}


def percent(value):
    """A fraction as text in percent, "-" for None."""
    return "     -" if value is None else f"{100 * value:6.2f}"


# ---------------------------------------------------------------- training

FORMAT = "mmlfer checkpoint 1"
RUN_FILES = ("last.pt", "best.pt", "log.csv", "test.json", "config.yaml")


class Run:
    """The state of training: the nets, theta's optimiser, the schedule, and how far it is."""

    processes, mean = 1, tuple  # how many share a batch, and the mean over them
    prior, shift = None, 0.0  # p(expression), and tau log p, (K,)
    ORIGIN = ("data_sha256", "images_sha256", "table_sha256", "backbone", "train_names",
              "trained_aus", "template")  # where eyes and mouth are in its faces, for --photos
    VALUES = ("epoch", "step", "elapsed", "log", "hypergrad", "processes", *ORIGIN)  # as they are

    def __init__(self, cfg, steps, net, table, world=None, state=None):
        """A run of a base net with this number of steps per epoch and p(AU | expression) table
        (K, J). It is new, or continues from `state`, the content of its last.pt."""
        if world:
            self.world, self.processes, self.mean = world, world.size, world.mean
        self.cfg, self.steps, self.hypergrad = cfg, steps, cfg.hypergrad
        self.device, self.net, net.precision = pick_device(cfg.device), net, cfg.precision
        self.form = cfg.form
        if cfg.form == "auto":
            self.form = "lab" if cfg.stats == "lab" else "wild"
        self.table = torch.tensor(table, dtype=torch.float32, device=self.device)
        self.statistics = Statistics.of(self.table, self.form)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.meta = make_meta_net(cfg.method, net.backbone.num_features)
        if self.meta:
            self.meta.to(self.device)
        self.opt, self.scheduler = theta_optimizer(self.net, cfg, steps)
        parts = {"net": self.net, "meta": self.meta, "opt": self.opt, "scheduler": self.scheduler}
        self.parts = {name: part for name, part in parts.items() if part}
        self.epoch, self.step, self.elapsed, self.log = 0, 0, 0.0, []
        self.data_sha256 = self.images_sha256 = self.table_sha256 = ""  # what it is trained on
        self.backbone, self.train_names, self.trained_aus, self.template = "", [], [], None
        self.trace = torch.zeros(steps, len(STEP_LABELS), device=self.device)  # the epoch's Steps
        if state:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            for name in self.VALUES:
                setattr(self, name, state[name])
            self.trace.copy_(state["trace"])

    def state(self):
        """Everything that a resumed run needs."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        values = {name: getattr(self, name) for name in self.VALUES}
        return {**inference_state(self), **parts, **values, "trace": self.trace.cpu()}


def theta_optimizer(net, cfg, steps):
    """SGD with each part's own alpha, and the one-cycle schedule over all steps, or None."""
    heads = [*net.fe.parameters(), *net.au.parameters()]
    groups = [{"params": list(net.backbone.parameters()), "lr": cfg.lr_backbone},
              {"params": heads, "lr": cfg.lr_heads}]
    opt = torch.optim.SGD(groups, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    if cfg.schedule == "constant":
        return opt, None
    return opt, torch.optim.lr_scheduler.OneCycleLR(
        opt, [cfg.lr_backbone, cfg.lr_heads], cfg.epochs * steps, cycle_momentum=False)


def inference_state(run):
    """What prediction needs: nets, options, vocabulary, and what the run was trained on."""
    return {"format": FORMAT, "config": dataclasses.asdict(run.cfg),
            "emotions": list(run.net.vocabulary.emotions), "aus": list(run.net.vocabulary.aus),
            "table": run.table.cpu(), "epoch": run.epoch, "prior": run.prior,
            **{name: getattr(run, name) for name in Run.ORIGIN},
            "net": run.net.state_dict(), "meta": run.meta.state_dict() if run.meta else {}}


def read_checkpoint(path):
    """A checkpoint of this program, checked, as a dict."""
    state = torch_load(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of mmlfer; give best.pt or last.pt of a run")
    return check_state(state, path)


def check_state(state, where):
    """A checkpoint's dict, checked, with all options of Config."""
    try:
        cfg, vocabulary = Config(**state["config"]), Vocabulary.of(state)
        known = (cfg.method in METHODS and (cfg.arch in ARCHS or TIMM.fullmatch(cfg.arch))
                 and cfg.size in range(32, 513) and isinstance(cfg.data, str)
                 and isinstance(state["net"], dict) and {*Run.ORIGIN} <= {*state}
                 and all(isinstance(p, float) and 0 <= p <= 1 for p in state.get("prior") or ())
                 and len(state.get("prior") or vocabulary.emotions) == len(vocabulary.emotions)
                 and all(isinstance(name, str) for name in vocabulary.emotions)
                 and {*state["trained_aus"]} <= {*vocabulary.aus} <= {*AU_NAMES})
    except (KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"{where}: of another version of mmlfer, or damaged")
    return {"prior": None, **state, "config": dataclasses.asdict(cfg)}


def load_net(path, device="auto", precision="float32", read=read_checkpoint):
    """The base net of a checkpoint file, in test mode on a device, and the checkpoint."""
    state = read(path)
    return base_net_of(state, path, device, precision), state


def base_net_of(state, where, device="auto", precision="float32"):
    """The base net of a checkpoint's dict, in test mode on a device."""
    config = state["config"]
    net = make_base_net(config["arch"], vocabulary=Vocabulary.of(state), size=config["size"])
    net.precision = precision
    try:
        net.load_state_dict(state["net"])
    except RuntimeError as error:
        raise InputError(f"{where}: {str(error).splitlines()[-1].strip()[:200]}") from None
    check_weights(net, where)
    return net.to(pick_device(device)).eval()


def check_weights(net, where):
    """InputError if a number in a net is not finite; for nets to be written and nets just read."""
    for name, tensor in net.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{where}: {name} is not finite: training {DIVERGED}")


def save_checkpoint(state, path):
    """Write a checkpoint's dict; there is never half a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


class Batches:
    """The faces, on the training device or `at` another, and each epoch's batches, which follow
    from the seed. Each of several processes takes its share of every batch.

    A training epoch is a permutation cut into whole batches (the rest is dropped, and is another
    in each epoch). Validation batches, for the meta-test, run through permutations of the
    validation faces whose expression is named. Each sample is flipped with probability 1/2, and
    moved with --augment.
    """

    def __init__(self, faces, cfg, device, at=None, share=slice(None)):
        self.device, self.share, self.at = device, share, at
        self.seed, self.size, self.augment = cfg.seed, cfg.batch_size, cfg.augment
        self.rows = [np.flatnonzero(faces.split == TRAIN),
                     np.flatnonzero((faces.split == VAL) & (faces.y_emo != NOT_NAMED))]
        self.steps = len(self.rows[0]) // self.size
        y_emo = faces.soft() if cfg.labels == "soft" else faces.y_emo
        self.images = faces.images.to(at or device)
        self.y_emo = torch.from_numpy(y_emo).to(at or device)
        self.y_au = torch.from_numpy(faces.y_au).to(at or device).float()

    def epoch(self, epoch):
        """The arguments of `pair` for each step of an epoch."""
        rng, n = np.random.default_rng([self.seed, Stream.BATCHES, epoch]), self.steps * self.size
        plan = []
        for rows in self.rows:
            index = np.concatenate([rng.permutation(rows) for _ in range(-(-n // len(rows)))])[:n]
            flip = rng.random(n) < 0.5
            plan += [index, flip]
        if self.augment:
            rng = np.random.default_rng([self.seed, Stream.MOVES, epoch])
            plan += list(rng.uniform(-1, 1, (2, n, 4)).astype(np.float32))
        parts = [torch.from_numpy(part).to(self.images.device).split(self.size) for part in plan]
        return [tuple(part[self.share] for part in step) for step in zip(*parts)]

    def pair(self, index, flip, val_index, val_flip, moves=None, val_moves=None):
        """The training and the validation batch of one step of an epoch."""
        return self.take(index, flip, moves), self.take(val_index, val_flip, val_moves)

    def take(self, index, flip, moves=None):
        """x (B, 3, S, S), y_emo (B,) or (B, K), y_au (B, J) of an index; moves keep labels."""
        x = self.images[index]
        x = torch.where(flip[:, None, None, None], x.flip(3), x).to(self.device)
        x = x if moves is None else moved(x, moves.to(self.device))
        y_emo, y_au = (y[index].to(self.device) for y in (self.y_emo, self.y_au))
        return x.contiguous(memory_format=torch.channels_last), y_emo, y_au


def moved(x, moves):
    """Images x (B, 3, S, S) rotated and scaled about their centres, then shifted, edges repeated.
    moves (B, 4) in -1..1: shares of SHIFT right, SHIFT down, SCALE up and TURN clockwise."""
    right, down = 2 * SHIFT * moves[:, :2].T  # in halves of the side
    angle, scale = math.radians(TURN) * moves[:, 3], 1 + SCALE * moves[:, 2]
    c, s = angle.cos() / scale, angle.sin() / scale
    back = torch.stack([c, s, -c * right - s * down, -s, c, s * right - c * down], 1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(back, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x.float(), grid, padding_mode="border",
                                           align_corners=False)


# ---------------------------------------------------------------- files


def write_whole(path, content):
    """Write bytes under a temporary name and rename it: there is never half a file. Links are
    followed, modes kept; devices, pipes and "-" (standard output) are written directly."""
    if str(path) == "-":
        return click.echo(bytes(content), nl=False)
    target = Path(os.path.realpath(path))
    part = target.parent / f".{target.name}.{os.getpid()}.part"  # of this process alone
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return Path(path).write_bytes(content)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    except OSError as error:
        if os.path.isfile(part):
            part.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror}); free some space or name "
                         "another file; nothing that stood there is lost") from None


class Bar(tqdm):
    def close(self):  # removed and cleared in one go: another thread may be writing a line
        with self.get_lock():
            super().close()


def progress(*args, **options):
    """A tqdm bar if standard error is a terminal; nothing is shown otherwise."""
    return Bar(*args, disable=None if sys.stderr else True, leave=False, **options)


tell_once = functools.cache(functools.partial(click.echo, err=True))  # to standard error


# ---------------------------------------------------------------- command line

COMMANDS = (  # mmlfer_commands/NAME.py
    "train", "eval", "pretrain", "synth", "demo", "build", "convert", "merge", "stats", "search",
    "table", "plot", "gradcam", "predict", "video", "crop", "serve", "export", "bench")

UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that only writing gives
METAVARS = {"integer range": "N", "float range": "X"}  # in --help, by the types' names
device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
precision_option = click.option("--precision", default="float32", type=PRECISION,
                                help="Number format of the backbone.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


class Program(click.Group):
    """The program: its commands, and one line that says what is wrong with the input of any."""

    def main(self, *args, **options):
        if sys.stdout:
            sys.stdout.reconfigure(errors="replace")  # where the locale has no ±
        try:
            return super().main(*args, **options)
        except OSError as error:  # Click has ended quietly where `| head` closed a pipe
            if error.filename is None and error.errno in UNWRITTEN:
                sys.stdout = None  # Python would fail again, at its end
                error = f"standard output: cannot be written ({error.strerror})"
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            sys.exit(1)

    def invoke(self, ctx):
        warnings.filterwarnings("ignore", module="PIL")  # about images that it can still read
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(128 + signal.SIGINT)

    def list_commands(self, ctx):
        return COMMANDS

    def get_command(self, ctx, name):
        if name in COMMANDS:
            command = importlib.import_module(f"mmlfer_commands.{name}").command
            for option in command.params:
                option.metavar = option.metavar or METAVARS.get(option.type.name)
            return command

    def format_commands(self, ctx, formatter):
        """The first sentence of each command's docstring, not cut."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.get_command(ctx, name).get_short_help_str(limit=200))
                                for name in self.list_commands(ctx)])


@click.group(cls=Program, context_settings={"show_default": True})
@click.version_option(__version__, prog_name="mmlfer")
def main():
    """Compound facial expressions with action units, by meta multi-task learning."""


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
