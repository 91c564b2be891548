"""How far the hypergradient in float32 and in bf16 lies from float64's, while a net trains.

    python tests/compare_precision.py FACES STEPS [CKPT]

FACES: a folder of 48x48 faces, as `mmlfer synth FACES --n 2000 --size 48` draws it. ResNet-18, from
scratch or from a checkpoint's net, is trained with mml in float32, batch 16; before each step psi's
gradient is taken in both formats and both forms, at the same parameters and on the same batches,
and compared with float64's.
"""

import copy
import sys

import numpy as np
import torch

import mmlfer
from mmlfer_commands import _rafce, _stats, train

FORMS = ("create_graph", "jvp")
LABELS = [(precision, form) for precision in ("float32", "bf16") for form in FORMS]


def gradient(run, batch, val, form):
    """psi's gradient as one vector, in float64; BatchNorm's running statistics stay."""
    buffers = mmlfer.spare_buffers(run.net)
    parts = mmlfer.meta_test(run, *mmlfer.meta_train(run, batch), val, form)
    run.net.load_state_dict(buffers, strict=False)
    return torch.cat([part.flatten() for part in parts]).double()


def in_float64(run):
    """A copy of a run in float64."""
    other = copy.copy(run)
    other.net = copy.deepcopy(run.net).double()
    other.statistics = mmlfer.Statistics.of(run.table.double(), run.form)
    other.meta = copy.deepcopy(run.meta).double()
    other.opt = mmlfer.theta_optimizer(other.net, run.cfg, run.steps)[0]
    for group, own in zip(other.opt.param_groups, run.opt.param_groups):
        group["lr"] = own["lr"]
    return other


def compare(run, pairs):
    """Cosine and relative error, {(precision, form): (steps, 2)}, on (batch, val) of each step; the
    run takes the steps."""
    rows = {label: [] for label in LABELS}
    for batch, val in pairs:
        x, y_emo, y_au = batch
        exact = gradient(in_float64(run), (x, y_emo, y_au.double()), val, "jvp")
        for precision, form in LABELS:
            run.net.precision = precision
            own = gradient(run, batch, val, form)
            cosine = torch.cosine_similarity(own, exact, 0)
            rows[precision, form].append((float(cosine), float((own - exact).norm() / exact.norm())))
        run.net.precision, run.hypergrad = run.cfg.precision, "jvp"
        mmlfer.train_step(run, batch, val)
    return {label: np.array(values) for label, values in rows.items()}


def compare_on(folder, steps, size, batch_size, ckpt=None):
    """`compare`, on the first batches of a folder's faces, for this number of steps."""
    cfg = mmlfer.Config(data=str(folder), arch="resnet18", size=size, batch_size=batch_size,
                        weights="none", device="cpu")
    faces = _rafce.load_labels(folder)
    faces = mmlfer.load_images(faces.select(faces.split != mmlfer.TEST), folder, size)
    batches = mmlfer.Batches(faces, cfg, torch.device("cpu"))
    run = train.new_run(cfg, batches.steps, _stats.load_stats(cfg.stats), faces.vocabulary)[0]
    if ckpt:
        run.net.load_state_dict(mmlfer.read_checkpoint(ckpt)["net"])
    plan = [step for epoch in range(-(-steps // batches.steps)) for step in batches.epoch(epoch)]
    return compare(run, (batches.pair(*step) for step in plan[:steps]))


if __name__ == "__main__":
    print("format, form: cosine median, least; relative error median, greatest")
    rows = compare_on(sys.argv[1], int(sys.argv[2]), 48, 16, *sys.argv[3:])
    for (precision, form), values in rows.items():
        cosine, error = values.T
        print(f"{precision:8}{form:13} {np.median(cosine):.4f} {cosine.min():.4f}   "
              f"{np.median(error):.4f} {error.max():.4f}", flush=True)
