"""mmlfer gradcam: where a checkpoint looks (Fig. 4)."""

from pathlib import Path

import click

from mmlfer import (
    AUS,
    EMOTIONS,
    FOLDER,
    InputError,
    decode,
    device_option,
    image_index,
    load_labels,
    load_net,
    stem,
    torch,
    trains_aus,
)  # fmt: skip
from mmlfer_commands.plot import pyplot, save_figure
from mmlfer_commands.predict import as_batch


def gradcam(net, x, k=None):
    """Grad-CAM of the last residual stage for expression k, (B,), or the predicted one.

    a_c = mean over space of d z_k / d A_c, map = ReLU(sum_c a_c A_c), scaled to a maximum of 1.
    x (B, 3, S, S) -> maps (B, S, S), z_emo (B, K), z_au (B, J). Hooks are taken off again.
    """
    stage = []
    hook = net.backbone.layer4.register_forward_hook(lambda m, i, output: stage.append(output))
    try:
        _, z_emo, z_au = net(x)
    finally:
        hook.remove()
    k = z_emo.argmax(1) if k is None else k
    gradient = torch.autograd.grad(z_emo.gather(1, k[:, None]).sum(), stage)[0]  # (B, C, h, w)
    maps = (gradient.mean((2, 3), keepdim=True) * stage[0]).sum(1, keepdim=True).relu()
    maps = torch.nn.functional.interpolate(maps, x.shape[-2:], mode="bilinear")[:, 0].detach()
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return maps, z_emo.detach(), z_au.detach()


def known_truths(paths, data):
    """The labelled expression of each image that lies in the data set, else None."""
    try:
        faces = load_labels(data)
    except InputError:
        return [None] * len(paths)
    places = {p.resolve(): key for key, p in image_index(Path(data)).items()}
    labels = {stem(name): k for name, k in zip(faces.names, faces.y_emo)}
    truths = [labels.get(places.get(Path(path).resolve())) for path in paths]
    return [None if k is None else EMOTIONS[k] for k in truths]


def plot_gradcam(ckpts, paths, out, device):
    """Fig. 4: a row an image; the face, then each checkpoint's attention, prediction and AUs."""
    plt = pyplot()
    if len(paths) > 100:
        raise InputError(f"{len(paths)} images are too many for one figure; give at most 100")
    figure, axes = plt.subplots(len(paths), 1 + len(ckpts), squeeze=False, layout="constrained",
                                figsize=(2.9 * (1 + len(ckpts)), 3.3 * len(paths)))
    for axis in axes.flat:
        axis.axis("off")
    for column, ckpt in enumerate(ckpts, 1):
        net, state = load_net(ckpt, device)
        size, name = state["config"]["size"], f"{state['config']['method']} ({ckpt})"
        images = list(decode(paths, size))
        bad = [image for image in images if isinstance(image, str)]
        if bad:
            raise InputError(f"cannot be read as an image: {bad[0]}")
        x = as_batch(images).to(next(net.parameters()).device)
        maps, z_emo, z_au = (t.cpu() for t in gradcam(net, x))
        truths = known_truths(paths, state["config"]["data"])
        for row, path in enumerate(paths):
            axes[row, 0].imshow(images[row])
            true = truths[row] or "unknown"
            axes[row, 0].set_title(f"{Path(path).name}\ntrue: {true}", fontsize=8)
            axes[row, column].imshow(images[row])
            axes[row, column].imshow(maps[row], cmap="jet", alpha=0.45, vmin=0, vmax=1)
            p, aus = z_emo[row].softmax(0), [a for a, z in zip(AUS, z_au[row]) if z > 0]
            seen = " ".join(map(str, aus)) or "none"
            if not trains_aus(state["config"]["method"]):
                seen = "not trained"
            title = f"{EMOTIONS[int(p.argmax())]}, {100 * float(p.max()):.0f} %\nAUs: {seen}"
            axes[row, column].set_title((f"{name}\n" if row == 0 else "") + title, fontsize=8)
    save_figure(plt, figure, out)


@click.command("gradcam")
@click.option("--ckpt", "ckpts", required=True, multiple=True, type=FOLDER,
              help="Checkpoint; give it twice to compare two.")
@click.option("--out", required=True, type=FOLDER, help="Figure to write, e.g. gradcam.png.")
@click.argument("images", nargs=-1, required=True, type=FOLDER)
@device_option
def command(ckpts, out, images, device):
    """Fig. 4: where each checkpoint looks in these images, what it predicts and the AUs it sees."""
    plot_gradcam(ckpts, images, out, device)
    click.echo(out)
