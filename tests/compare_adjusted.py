"""Acc. and Diag. of checkpoints adjusted afterwards, beside those of nets trained with --logit-adjust.

    python tests/compare_adjusted.py RUNS FIGURE.png

RUNS: a folder of finished runs (best.pt and test.json each) of one data set, of which those with the same method and
seed differ in --logit-adjust alone. For each method it prints Acc. and Diag. with tau 0, 0.5 and 1, in training and
afterwards (a net trained with 0), their differences to 0 with `table`'s intervals, and draws Acc. across and Diag. up.
"""

import json
import sys
from pathlib import Path

import numpy as np

import mmlfer
from mmlfer_commands._figures import pyplot, save_figure
from mmlfer_commands._labels import load_faces
from mmlfer_commands._models import load_model
from mmlfer_commands._nets import folded
from mmlfer_commands.table import gain, image_weights, spread

TAUS = (0.0, 0.5, 1.0)
LINE = np.linspace(0, 1.5, 16)  # of tau afterwards, for the figure


def lowered(path, faces):
    """p_emo of a checkpoint for faces, and log p(expression), each (.., K)."""
    net, state = load_model(path)
    net.precision = state["config"]["precision"]
    return mmlfer.predict_faces(folded(net), faces.images)[0], np.log(state["prior"])


def rights(p_emo, log_p, taus, truth):
    """Which faces are right with each tau, {tau: (N,)}."""
    return {tau: (np.log(np.maximum(p_emo, 1e-30)) - tau * log_p).argmax(1) == truth for tau in taus}


def read(folder):
    """{method: {(tau, "in training" or "afterwards"): (seeds, N)}}, {method: (taus, 2)} for the line, and the truth."""
    runs = [(json.loads(path.read_text()), path.with_name("best.pt")) for path in sorted(Path(folder).glob("*/test.json"))]
    options, truth = runs[0][0]["options"], np.array(runs[0][0]["truth"])
    faces = mmlfer.load_images(load_faces(options["data"]).of("test"), options["data"], options["size"])
    found, lines = {}, {}
    for run, ckpt in runs:
        method, tau = run["method"], run["options"].get("logit_adjust", 0.0)
        rows = found.setdefault(method, {})
        own = np.equal(run["truth"], run["best"]["pred"])
        if tau:
            rows.setdefault((tau, "in training"), []).append(own)
            continue
        after = rights(*lowered(ckpt, faces), [*TAUS, *LINE], truth)
        print(f"{ckpt}: {(after[0.0] != own).sum()} answers other than in test.json", file=sys.stderr)
        for value in TAUS:
            rows.setdefault((value, "afterwards"), []).append(after[value])
        lines.setdefault(method, []).append([figures(after[value], truth) for value in LINE])
    return found, lines, truth


def figures(right, truth):
    """Acc. and Diag. of right answers (N,)."""
    return [(right * image_weights(truth, by_expression)).mean() for by_expression in (False, True)]


def main(folder, out):
    found, lines, truth = read(folder)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 4.5))
    for i, (method, rows) in enumerate(sorted(found.items())):
        base = np.array(rows[0.0, "afterwards"], float)
        for (tau, when), right in sorted(rows.items(), key=lambda row: (row[0][1], row[0][0])):
            accs, diags = zip(*(figures(one, truth) for one in right))
            name = [f"tau {tau:g} {when}"] if tau else []
            gains = [gain(np.array(right, float) - base, image_weights(truth, by)) for by in (False, True)] if tau else ["", ""]
            print(f"| {' '.join([method, *name])} | {len(right)} | {spread(accs)} | {spread(diags)} | {' | '.join(gains)} |")
            if when == "in training":
                axis.plot(100 * np.mean(accs), 100 * np.mean(diags), "s", color=f"C{i}", fillstyle="none")
                axis.annotate(f"{tau:g}", (100 * np.mean(accs), 100 * np.mean(diags)), xytext=(5, -10), textcoords="offset points")
        line = 100 * np.mean(lines[method], 0)
        axis.plot(*line.T, ".-", color=f"C{i}", label=f"{method}, afterwards")
        axis.plot([], [], "s", color=f"C{i}", fillstyle="none", label=f"{method}, in training")
        for tau in TAUS:
            axis.annotate(f"{tau:g}", line[int(np.argmin(abs(LINE - tau)))], xytext=(5, 5), textcoords="offset points")
    axis.set(xlabel="Acc., %", ylabel="Diag., %")
    axis.legend()
    save_figure(figure, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
