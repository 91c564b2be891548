"""mmlfer eval: a checkpoint's metrics on a part of the data."""

import json

import click
import numpy as np

from mmlfer import (
    AU_NAMES, COUNT, EMOTIONS, SPLITS, InputError, Vocabulary, device_option, evaluate,
    expression_f1, json_option, load_images, percent, plural, precision_option, predict_faces)
from mmlfer_commands._labels import describe, recode, recorded_folder
from mmlfer_commands._folds import load_fold_of
from mmlfer_commands._compounds import only_compounds
from mmlfer_commands._groups import by_group, group_lines
from mmlfer_commands._models import load_model, model_options
from mmlfer_commands._nets import folded
from mmlfer_commands._rafce import is_rafce
from mmlfer_commands._results import PRINTED


def report(numbers, untrained=()):
    """The metrics of `evaluate` as text: those of Table 2, AU F1, the confusion matrix."""
    confusion = np.array(numbers["confusion"])
    lines = [f"{'expression':24}{'images':>7}{'right %':>9}{'F1 %':>9}"]
    rows = zip(numbers["per_class"].items(), confusion.sum(1), expression_f1(confusion))
    for (name, rate), n, f1 in rows:
        lines.append(f"{name:24}{n:7}{percent(rate):>9}{percent(f1):>9}")
    for name, key in (("Acc.", "accuracy"), ("Diag.", "diag"), ("macro F1", "macro_f1")):
        lines.append(f"{name:24}{numbers['n']:7}{percent(numbers[key]):>9}")
    if numbers.get("shares_n"):
        lines.append(f"\n{'mean KL(shares || p)':24}{numbers['shares_n']:7}{numbers['kl']:9.4f}")
        lines.append(f"{'two largest shares':24}{numbers['top_two_n']:7}"
                     f"{percent(numbers['top_two']):>9}")
    lines.append(f"\nAU F1 %, {plural(numbers['au_n'], 'coded face')} (AUs neither present nor "
                 "predicted are left out)")
    for au, f1 in numbers["au_f1"].items():
        if f1 is not None:
            lines.append(f"AU {au:>2} {AU_NAMES[int(au)]:25}{percent(f1):>9}")
    lines.append(f"{'macro':31}{percent(numbers['au_f1_macro']):>9}")
    if untrained:
        lines.append(f"not trained: AU {', '.join(map(str, untrained))}")
    lines.append("\nconfusion: true expressions down, predicted across, in the order above")
    lines += ["".join(f"{n:5}" for n in row) for row in confusion.tolist()]
    return "\n".join(lines)


@click.command("eval")
@model_options
@click.option("--data", type=click.Path(), help="Folder laid out like RAF-CE, or with a "
              "labels.csv.  [default: what the checkpoint was trained on]")
@click.option("--split", default="test", type=click.Choice(["all", *SPLITS]),
              help="Part of the data.")
@click.option("--by", metavar="COLUMN", help="Also report each group by a column of labels.csv, "
              "such as age or gender, and the largest difference of two, with its 95 % interval.")
@click.option("--least", default=20, type=COUNT, help="Groups of fewer images are joined.")
@json_option
@device_option
@precision_option
@click.option("--skip-bad-images", "skip_bad", is_flag=True, help="Go on without images that "
              "cannot be read.")
def command(ckpt, tau, compounds, data, split, by, least, as_json, device, precision, skip_bad):
    """Report a checkpoint's row of Table 2: accuracies, AU F1 and the confusion matrix."""
    net, state = load_model(ckpt, device, precision, tau, compounds)
    data = data or recorded_folder(state["config"]["data"], ckpt)
    everything = load_fold_of(state, data, (by, "person") if by else ())
    if by and by not in everything.columns:
        raise InputError(f"{data}/{everything.files[0]}: no column {by}, which --by names")
    papers = split == "test" and state["emotions"] == [*EMOTIONS] and is_rafce(everything)
    if compounds:
        everything = only_compounds(everything, state["emotions"], data)
    everything = recode(everything, Vocabulary.of(state), data)
    part = everything if split == "all" else everything.of(split)
    faces = load_images(part, data, state["config"]["size"], skip_bad)
    if not faces.names:
        raise InputError(f"{data}: no {split} images; see {everything.files[1]}")
    bad = {*part.names} - {*faces.names}
    everything = everything.select([name not in bad for name in everything.names])
    trained = set(state["train_names"]) & set(faces.names)
    if trained and split != "train":
        click.echo(f"Warning: {len(trained)} of these {len(faces.names)} {split} images bear names "
                   f"of {state['source']}'s training images, such as {min(trained)}", err=True)
    p = predict_faces(folded(net), faces.images)
    numbers = evaluate(net, faces, state["trained_aus"], lambda *_: p)
    del numbers["pred"]
    untrained = [au for au in state["aus"] if au not in state["trained_aus"]]
    text = f"{describe(everything, data)}\n\n{report(numbers, untrained)}"
    if by:
        numbers["groups"] = by_group(faces, by, least, *p, state["trained_aus"])
        text = "\n".join([text, *group_lines(numbers["groups"])])
    if papers and not bad:
        figures = "; ".join(f"{name} {acc} / {diag}" for name, (acc, diag) in PRINTED.items())
        text += f"\n\nthe paper's nets, trained on RAF-CE, Acc. / Diag. here: {figures}"
    click.echo(json.dumps(numbers) if as_json else text)
