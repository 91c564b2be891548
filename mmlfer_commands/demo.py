"""mmlfer demo: everything, end to end, on drawn faces, in minutes."""

import shlex
import time

import click
import numpy as np

from mmlfer import LABEL_FILES, PATH, TEST, Config, InputError, counts, device_option, percent
from mmlfer_commands._rafce import load_labels
from mmlfer_commands._stats import load_stats
from mmlfer_commands.eval import report
from mmlfer_commands.synth import synthesize
from mmlfer_commands.train import fit, holds_run

DEMO_FACES = 1400
DEMO = {"stats": "lab", "size": 48, "schedule": "onecycle", "lr_backbone": 0.005, "epochs": 3}


def best_by_aus(y_au, y_emo, table):
    """Accuracy of a perfect reader of the AUs, who knows `table` and how common each expression
    is: argmax_k p(k) prod_j p(y_j | k). y_au (N, J), y_emo (N,), table (K, J) -> a fraction."""
    p = table.clip(1e-3, 1 - 1e-3)
    log_p = y_au @ np.log(p).T + (1 - y_au.astype(float)) @ np.log(1 - p).T
    log_p += np.log(np.array(counts(y_emo, len(p))) / len(y_emo) + 1e-9)
    return float((log_p.argmax(1) == y_emo).mean())


@click.command("demo")
@click.option("--out", default="runs/demo", type=PATH, help="Folder of the faces and the run.")
@device_option
def command(out, device):
    """Draw stand-in faces, train on them and test, in minutes."""
    started, data = time.perf_counter(), out / "faces"
    if holds_run(out):
        raise InputError(f"{out}: holds a run; give another --out, or go on with it: mmlfer train "
                         f"--out {shlex.quote(str(out))} --resume")
    if not (data / LABEL_FILES[0]).exists():  # else drawn by a demo that was stopped after that
        synthesize(data, DEMO_FACES, DEMO["stats"], None, DEMO["size"], 0)
    numbers = fit(Config(data=str(data.resolve()), device=device, **DEMO), out)["best"]
    click.echo("\n" + report(numbers))
    faces = load_labels(data)
    test = faces.select(faces.split == TEST)
    commonest = np.bincount(test.y_emo).max() / len(test.y_emo)
    perfect = best_by_aus(test.y_au, test.y_emo, load_stats(DEMO["stats"]))
    click.echo(f"""
On these {numbers['n']} stand-in test faces, in {time.perf_counter() - started:.0f} s:
  accuracy of this model               {percent(numbers['accuracy'])} %
  of always the commonest expression   {percent(commonest)} %
  of a perfect reader of the AUs       {percent(perfect)} %
Pictures: {data}/aligned; numbers: {out}/log.csv, {out}/test.json; checkpoint: {out}/best.pt.
With RAF-CE: mmlfer train --data ./rafce""")
