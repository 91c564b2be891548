"""mmlfer predict: expressions and AUs of one's own faces."""

import itertools
import json
import sys
from pathlib import Path

import click
import numpy as np

from mmlfer import (
    AU_NAMES,
    AUS,
    EMOTIONS,
    FOLDER,
    IMAGES,
    InputError,
    decode,
    device_option,
    json_option,
    load_net,
    predict_faces,
    torch,
    trains_aus,
    write_rows,
)  # fmt: skip


def as_batch(images):
    """x (N, 3, S, S) uint8 of N arrays (S, S, 3)."""
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def list_images(paths):
    """The images among these paths and in these folders, in order."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no images ({', '.join(IMAGES)}) there")
    return found


def predict_paths(ckpt, paths, top, device, batch=64):
    """Yield (path, result or the reason why not) for each image; result is what --json prints."""
    net, state = load_net(ckpt, device)
    trained_aus = trains_aus(state["config"]["method"])
    images = decode(paths, state["config"]["size"], "predicting")
    for chunk in iter(lambda: list(itertools.islice(zip(paths, images), batch)), []):
        good = [image for _, image in chunk if not isinstance(image, str)]
        if good:
            p = zip(*predict_faces(net, as_batch(good)))
        for path, image in chunk:
            if isinstance(image, str):
                yield path, image
                continue
            p_emo, p_au = next(p)
            best = np.argsort(-p_emo)[:top]
            yield path, {
                "image": str(path).encode(errors="replace").decode(),
                "expressions": [{"name": EMOTIONS[k], "p": float(p_emo[k])} for k in best],
                "aus": [{"au": au, "name": AU_NAMES[au], "p": float(q)}
                        for au, q in zip(AUS, p_au) if q > 0.5] if trained_aus else None,
            }


def prediction_line(result):
    expressions = ", ".join(f"{e['name']} {100 * e['p']:.1f} %" for e in result["expressions"])
    aus = ("not trained" if result["aus"] is None else
           ", ".join(f"{a['au']} {a['name']}" for a in result["aus"]) or "none")
    return f"{result['image']}: {expressions}; AUs: {aus}"


def write_predictions(predictions, top, path):
    rows = []
    for result in predictions:
        row = {"image": result["image"]}
        for i, e in enumerate(result["expressions"], 1):
            row |= {f"expression_{i}": e["name"], f"p_{i}": round(e["p"], 6)}
        rows.append(row | {"aus": "+".join(str(a["au"]) for a in result["aus"] or ())})
    names = [f"{c}_{i}" for i in range(1, top + 1) for c in ("expression", "p")]
    write_rows(rows, ["image", *names, "aus"], path)


@click.command("predict")
@click.option("--ckpt", required=True, type=FOLDER, help="best.pt of a run.")
@click.argument("paths", nargs=-1, required=True, type=FOLDER)
@click.option("--top", default=3, type=click.IntRange(1, len(EMOTIONS)), help="Expressions a face.")
@json_option
@click.option("--csv", "csv_path", type=FOLDER, help="Write all to this file too, a row a face.")
@device_option
def command(ckpt, paths, top, as_json, csv_path, device):
    """Expressions and active AUs of aligned face crops: images, or folders of them.

    Images that cannot be read are named and skipped, and the exit code is then 1.
    """
    good, bad = [], 0
    for _, result in predict_paths(ckpt, list_images(paths), top, device):
        if isinstance(result, str):
            bad += 1
            click.echo(f"Warning: skipped {result}", err=True)
            continue
        good.append(result)
        if not as_json:
            click.echo(prediction_line(result))
    if as_json:
        click.echo(json.dumps(good))
    if csv_path:
        write_predictions(good, top, csv_path)
    if bad:
        sys.exit(1)
