"""mmlfer pretrain: your own backbone, a ResNet that tells people apart.

Softmax over the cosines to one centre per person; after a warm-up with the margin of CosFace or
ArcFace. Under torchrun each process takes its share of every batch, and the first one writes.
"""

import collections
import contextlib
import io
import math
import os
import shlex
import signal
import sys
import time
import types
from pathlib import Path

import click
import numpy as np

from mmlfer import (
    ARCHS, COUNT, NORMS, PATH, RATE, SEED, SHARE, SIZE, FiniteRange, InputError, Stream,
    device_option, make_backbone, precision_option, progress, save_checkpoint, torch, torch_load)
from mmlfer_commands._backbones import BACKBONE_FORMAT, PRETRAINING_FORMAT
from mmlfer_commands._outputs import check_output, locked, remove_parts, write_rows
from mmlfer_commands._people import (
    Images, draw_pairs, people_sha256, read_batches, read_pairs, read_people)
from mmlfer_commands._processes import join_world, one_voice
from mmlfer_commands._runs import (
    caught_signals, check_kept, given_options, has_bf16, stopped_line, versions)

MARGINS = {"cosface": 0.35, "arcface": 0.5}  # usual ones, by the loss
BELOW_1 = FiniteRange(0, 1, max_open=True)
MOVABLE = ("faces", "pairs", "pairs_root", "device", "workers", "skip_bad_images")  # by --resume

# ---------------------------------------------------------------- net and loss


def make_people_net(arch, people, bf16):
    """The net that tells people apart, its backbone perhaps in bf16."""

    class PeopleNet(torch.nn.Module):  # defined here: importing must not load torch.nn
        """x (B, 3, S, S) uint8 -> cosines (B, people) to each person's centre."""

        def __init__(self):
            super().__init__()
            self.backbone = make_backbone(arch)
            self.mean, self.std = (values[0] for values in NORMS["half"])  # the same for R, G, B
            width = self.backbone.num_features
            self.neck = torch.nn.BatchNorm1d(width)  # a ResNet's f is never negative: centre it
            self.centres = torch.nn.Parameter(torch.randn(people, width) * 0.01)

        def embed(self, x):
            """e (B, F), of length 1."""
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                f = self.backbone((x.float() / 255 - self.mean) / self.std)
            return torch.nn.functional.normalize(self.neck(f.float()))

        def forward(self, x):
            return self.embed(x) @ torch.nn.functional.normalize(self.centres).T

    return PeopleNet()


def with_margin(cosines, y, loss, margin):
    """The cosines (B, people), with that of the right person y (B,) reduced by the margin.
    CosFace: cos t - m. ArcFace: cos(t + m), continued downwards where t + m is above pi."""
    right = cosines.gather(1, y[:, None])
    if loss == "cosface":
        right = right - margin
    else:
        angle = right.clamp(-1 + 1e-6, 1 - 1e-6).acos() + margin
        right = torch.where(angle <= math.pi, angle.cos(), -2 - angle.cos())
    return cosines.scatter(1, y[:, None], right)


# ---------------------------------------------------------------- verification


def note_bad(bad, source, opt, known):
    """Report images of a batch that cannot be read, the rows in `bad` (B,), else -1: InputError,
    or with --skip-bad-images a warning for each image not yet `known`."""
    for row in sorted(set(bad[bad >= 0].tolist()) - known):
        reason = source.read(row, opt.size)
        if not opt.skip_bad_images:
            raise InputError(f"{reason}; --resume --skip-bad-images goes on without it")
        known.add(row)
        if len(known) <= 20:
            click.echo(f"Warning: left out {reason}", err=True)


def best_threshold(similarity, same):
    """The least similarity to call "the same" that judges most pairs rightly. Both (P,)"""
    order = np.argsort(-similarity, kind="stable")
    s, right = similarity[order], np.cumsum(np.where(same[order], 1, -1))
    ends = np.append(s[1:] < s[:-1], True)  # a threshold cannot part equal similarities
    k = np.flatnonzero(ends)[right[ends].argmax()]
    return (s[k] + s[k + 1]) / 2 if k + 1 < len(s) else s[k]


def fold_accuracies(similarity, same, fold):
    """Each fold's accuracy, with the best threshold of the other folds. All (P,) -> (folds,)"""
    accuracies = []
    for one in np.unique(fold):
        here = fold == one
        threshold = best_threshold(similarity[~here], same[~here])
        accuracies.append(np.mean((similarity[here] >= threshold) == same[here]))
    return np.array(accuracies)


def embed(net, images, opt, known):
    """Embeddings e (N, F) of length 1, of face and mirror image, and a mask (N,) of bad images."""
    device, parts, bad = next(net.parameters()).device, [], []
    net.eval()
    with torch.no_grad():
        batches, count = read_batches(images, 256, opt), math.ceil(len(images) / 256)
        for x, _, rows in progress(batches, "verifying", count, unit=" batches"):
            note_bad(rows, images.source, opt, known)
            x = x.to(device)
            parts.append(torch.nn.functional.normalize(net.embed(x) + net.embed(x.flip(3))).cpu())
            bad.append(rows >= 0)
    net.train()
    return torch.cat(parts).numpy(), torch.cat(bad).numpy()


def verify(net, test, opt, known):
    """Mean and standard deviation of the folds' accuracies; test: (source, pairs, same, fold)."""
    source, pairs, same, fold = test
    rows, index = np.unique(pairs, return_inverse=True)
    e, bad = embed(net, Images(source, rows, rows, opt.size, tries=1), opt, known)
    one, other = index.reshape(-1, 2).T
    good = ~(bad[one] | bad[other])
    if len(np.unique(fold[good])) < 2:
        raise InputError(f"verification: {good.sum()} of {len(good)} pairs can be read; fix images")
    accuracies = fold_accuracies((e[one] * e[other]).sum(1)[good], same[good], fold[good])
    return float(accuracies.mean()), float(accuracies.std())


# ---------------------------------------------------------------- training


# sums over an epoch's steps of loss, right answers and gradient norm, each the mean over the
# processes, and the number of bad images
Totals = collections.namedtuple("Totals", "loss right norm bad")


class Pretraining:
    """The state of pre-training: the net, its optimiser, the schedule, and how far it is."""

    def __init__(self, opt, people, images, world):
        self.opt, self.world, self.people = opt, world, people
        self.steps = images // opt.batch_size
        torch.manual_seed(opt.seed)
        net = make_people_net(opt.arch, people, opt.precision == "bf16").to(world.device)
        if world.device.type == "cuda":
            net = net.to(memory_format=torch.channels_last)
            if world.size > 1:
                net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
        self.net = self.parallel = net
        if world.size > 1:
            self.parallel = torch.nn.parallel.DistributedDataParallel(net)
        self.sgd = torch.optim.SGD(net.parameters(), opt.lr * opt.batch_size / 512, opt.momentum,
                                   weight_decay=opt.weight_decay)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(
            self.sgd, [math.ceil(opt.epochs * share) for share in (0.5, 0.75)], 0.1)
        self.epoch, self.step, self.elapsed, self.log = 0, 0, 0.0, []
        self.totals = torch.zeros(len(Totals._fields), dtype=torch.float64)
        self.fresh = self.totals.to(world.device, copy=True)  # not yet in totals
        self.known_bad = set()

    PARTS, VALUES = ("net", "sgd", "schedule"), ("epoch", "step", "elapsed", "log", "totals")

    def state(self, digest):
        """The content of a checkpoint: all that a resumed run needs, and a digest of its images."""
        return {"format": PRETRAINING_FORMAT, "options": vars(self.opt), "digest": digest,
                **{name: getattr(self, name) for name in ("people", "steps", *self.VALUES)},
                **{name: getattr(self, name).state_dict() for name in self.PARTS}}

    def restore(self, state):
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in self.VALUES:
            setattr(self, name, state[name])


def epoch_batches(run, images):
    """The rest of this epoch's batches, this process's share of each: x, y, bad, flip."""
    opt, world = run.opt, run.world
    sampler = torch.utils.data.DistributedSampler(images, world.size, world.rank, seed=opt.seed)
    sampler.set_epoch(run.epoch)
    share = opt.batch_size // world.size
    order = list(sampler)[run.step * share : run.steps * share]
    for step, batch in enumerate(read_batches(images, share, opt, order), run.step):
        rng = np.random.default_rng([opt.seed, Stream.FLIPS, run.epoch, step])
        flip = torch.from_numpy(rng.random(opt.batch_size) < 0.5)[world.rank :: world.size]
        yield *batch, flip


def pretrain_step(run, x, y, flip):
    """One step of SGD. -> (3,): this share's mean loss and accuracy, the whole gradient's norm."""
    opt, device = run.opt, run.world.device
    x, y, flip = (t.to(device, non_blocking=True) for t in (x, y, flip))
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    cosines = run.parallel(x)
    margin = 0 if run.epoch < opt.warmup else opt.margin
    logits = opt.scale * (with_margin(cosines, y, opt.loss, margin) if margin else cosines)
    loss = torch.nn.functional.cross_entropy(logits, y)
    run.sgd.zero_grad()
    loss.backward()
    run.sgd.step()
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.net.parameters()])
    return torch.stack([loss.detach(), (cosines.argmax(1) == y).float().mean(), norm])


def check_numbers(run, what, *tensors):
    """InputError if a number in these tensors is not finite."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise InputError(f"epoch {run.epoch + 1}, step {run.step}: {what} is not finite. The "
                         "last checkpoint is kept; --overwrite with less --lr or more --warmup")


def pretrain_epoch(run, images, caught):
    """Train to the end of the epoch, or until a signal came to any process."""
    every = 1 if run.world.device.type == "cpu" else 50  # steps: each check waits for the device
    start = time.perf_counter() - run.elapsed
    where = io.StringIO() if run.world.rank else None  # one bar for all processes
    with progress(epoch_batches(run, images), f"epoch {run.epoch + 1}/{run.opt.epochs}", run.steps,
                  initial=run.step, unit=" steps", file=where) as bar:
        for x, y, bad, flip in bar:
            note_bad(bad, images.source, run.opt, run.known_bad)
            if (y < 0).any():
                raise InputError(f"{run.opt.faces}: of {images.tries} images not one can be read; "
                                 "fix the images")
            means = pretrain_step(run, x, y, flip) / run.world.size
            run.fresh += torch.stack(Totals(*means, (bad >= 0).sum().to(means)))
            run.step += 1
            if run.step % every == 0 or run.step == run.steps:
                fresh = run.world.sum(run.fresh.clone())
                check_numbers(run, "the loss or its gradient", fresh)
                run.totals += fresh
                run.fresh.zero_()
                bar.set_postfix(loss=f"{Totals(*run.totals).loss / run.step:.3f}")
                if run.world.told_to_stop(caught):
                    break
    run.elapsed = time.perf_counter() - start


def end_pretraining_epoch(run, tests, paths, digest):
    """Verification, a checkpoint and the log's row, by the first process; the schedule's step."""
    check_numbers(run, "the net", *run.net.state_dict().values())
    if run.world.rank == 0:
        means, told = Totals(*(run.totals / run.steps).tolist()), ""
        rate = run.steps * run.opt.batch_size / run.elapsed
        row = {"epoch": run.epoch + 1, "loss": means.loss, "train_acc": means.right,
               "lr": run.sgd.param_groups[0]["lr"], "seconds": round(run.elapsed, 3),
               "images_per_second": round(rate, 2), "bad_images": int(run.totals[-1])}
        for name, test in tests.items():
            mean, sd = verify(run.net, test, run.opt, run.known_bad)
            row |= {f"{name}_acc": mean, f"{name}_sd": sd}
            told += f", {name} {mean:.2%} ± {sd:.2%}"
        run.log.append(row)
        click.echo("epoch {epoch}: loss {loss:.3f}, {train_acc:.2%} right{}, "
                   "{images_per_second:.0f} images/s, {bad_images} bad images".format(told, **row))
    run.schedule.step()
    run.epoch, run.step, run.elapsed = run.epoch + 1, 0, 0.0
    run.totals.zero_()
    if run.world.rank == 0:
        save_checkpoint(run.state(digest), paths["last"])
        write_rows(run.log, run.log[0], paths["csv"])


def pretrain_epochs(run, images, tests, paths, digest):
    """All epochs still to do; a signal ends the program after a checkpoint."""
    with caught_signals() as caught:
        while run.epoch < run.opt.epochs:
            pretrain_epoch(run, images, caught)
            if run.step == run.steps:
                end_pretraining_epoch(run, tests, paths, digest)
            elif run.world.rank == 0:
                save_checkpoint(run.state(digest), paths["last"])
            if run.world.told_to_stop(caught):  # it waits until the first process has written
                run.world.say(stopped_line(paths["last"], "pretrain", paths["out"]), err=True)
                sys.exit(128 + (caught or [signal.SIGTERM])[-1])


# ---------------------------------------------------------------- a run


def hold_out_people(labels, holdout, seed):
    """The rows to train on, and those of the held-out people, who have at least two images each."""
    people, counts = np.unique(labels, return_counts=True)
    n = max(2, round(holdout * len(people))) if holdout else 0
    able = people[counts > 1]
    if n > len(able) or len(people) - n < 2:
        raise InputError(f"--holdout {holdout}: {n} of {len(people)} people to hold out, of whom "
                         f"{len(able)} have two images; give more people, or --holdout 0")
    held = np.random.default_rng([seed, Stream.HELD_OUT]).permutation(able)[:n]
    is_held = np.isin(labels, held)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def prepare(opt, world):
    """The images to train on, how many people they show, the verification tests, and a digest."""
    source, notes = read_people(opt.faces, opt.skip_bad_images)
    train, held = hold_out_people(source.labels, opt.holdout, opt.seed)
    people, labels = np.unique(source.labels[train], return_inverse=True)
    world.say(f"{opt.faces}: {len(source.labels)} images of {source.labels.max() + 1} people; "
              f"{len(train)} images of {len(people)} people to train on")
    for note in notes:
        world.say(f"Warning: {note}", err=True)
    if len(train) < opt.batch_size:
        raise InputError(f"{opt.faces}: {len(train)} images, under --batch-size {opt.batch_size}")
    world.check_batch(opt.batch_size)
    tests = {}
    if len(held):
        pairs, same, fold = draw_pairs(source.labels[held], opt.seed)
        tests["holdout"] = source, held[pairs], same, fold
    if opt.pairs:
        tests["pairs"] = read_pairs(opt.pairs, opt.pairs_root)
    return Images(source, train, labels, opt.size), len(people), tests, people_sha256(source)


def run_paths(out):
    """The paths of a run's files: the weights, the log beside it, the checkpoint."""
    if out.suffix not in (".pth", ".pt") or out.is_dir():
        raise InputError(f"{out}: expected a file name that ends in .pth or .pt")
    return {"out": out, "csv": out.with_suffix(".csv"), "last": out.with_suffix(".last.pt")}


def new_options(paths, options, overwrite):
    """The options of a new run. InputError if its files exist and are not to be replaced."""
    for path in paths.values():
        check_output(path, options["faces"])
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists; --resume goes on with it, --overwrite replaces it")
    usual = {"margin": MARGINS[options["loss"]], "workers": min(8, os.cpu_count() or 1)}
    paths = {name: str(Path(options[name]).resolve())  # they hold wherever the run is resumed from
             for name in ("faces", "pairs", "pairs_root") if options[name]}
    given = {name: value for name, value in options.items() if value is not None}
    return types.SimpleNamespace(**{**options, **usual, **given, **paths})


def read_written(path, kind, wanted):
    """The content of a file that `pretrain` wrote in this format."""
    state = torch_load(path)
    if not isinstance(state, dict) or state.get("format") != kind:
        raise InputError(f"{path}: not {wanted}")
    return state


def resumed_options(paths, given):
    """A stopped run's options, with those given that may differ, and its state."""
    state = read_written(paths["last"], PRETRAINING_FORMAT, "a run of `mmlfer pretrain`")
    check_kept(given, state["options"], MOVABLE, paths["last"])
    return types.SimpleNamespace(**{**state["options"], **given}), state


def pretrain(opt, paths, state, world):
    """Train as the options say, or go on from a state; write the backbone at the end."""
    images, people, tests, digest = prepare(opt, world)
    if state and state["digest"] != digest:
        raise InputError(f"{opt.faces}: not the images that {paths['last']} was trained on")
    gpu = world.device.type == "cuda"
    if opt.precision == "bf16" and gpu and not has_bf16(world.device):
        raise InputError("--precision bf16: not on this GPU; leave it out")
    if world.size > 1 and not gpu:
        world.say(f"Warning: on a CPU each of the {world.size} processes normalises its share of a "
                  "batch on its own: the net differs from that of one process", err=True)
    run, out = Pretraining(opt, people, len(images), world), paths["out"]
    lock = out.with_name(f".{out.stem}.lock")
    with contextlib.nullcontext() if world.rank else locked(out, lock):
        if world.rank == 0:
            remove_parts(*paths.values())
        if state:
            run.restore(state)
        world.check_same(paths["last"], (run.epoch, run.step))
        if state:
            world.say(f"going on after epoch {run.epoch}, step {run.step} of {run.steps}")
        elif world.rank == 0:
            for path in paths.values():
                path.unlink(missing_ok=True)
            save_checkpoint(run.state(digest), paths["last"])  # one to go on from, always
        pretrain_epochs(run, images, tests, paths, digest)
        if world.rank == 0:
            write_rows(run.log, run.log[0], paths["csv"])  # if it was killed before it could
            mean, std = map(list, NORMS["half"])
            save_checkpoint({
                "format": BACKBONE_FORMAT, "arch": opt.arch, "mean": mean, "std": std,
                "people": people, "options": vars(opt), "versions": versions(),
                "accuracy": {k: v for k, v in run.log[-1].items() if k.endswith(("_acc", "_sd"))},
                "state_dict": {k: v.cpu() for k, v in run.net.backbone.state_dict().items()}}, out)
            click.echo(f"{out}: mmlfer train --arch {opt.arch} --weights {shlex.quote(str(out))}")


@click.command("pretrain")
@click.option("--faces", type=click.Path(), help="A folder with a folder of images for each "
              "person, or with insightface's train.rec and train.idx.")
@click.option("--out", required=True, type=PATH, help="The backbone's file, for `train "
              "--weights`. Its log (.csv) and checkpoint (.last.pt) are written beside it.")
@click.option("--arch", default="resnet34", type=click.Choice(ARCHS), help="Backbone.")
@click.option("--epochs", default=40, type=COUNT, help="Passes over the images.")
@click.option("--batch-size", default=512, type=click.IntRange(min=2),
              help="Images of a batch, over all processes.")
@click.option("--lr", default=0.1, type=RATE, help="Learning rate for a batch of 512, scaled with "
              "the batch size; divided by 10 after half and after three quarters of the epochs.")
@click.option("--momentum", default=0.9, type=BELOW_1, help="SGD momentum.")
@click.option("--weight-decay", default=5e-4, type=SHARE, help="SGD weight decay.")
@click.option("--loss", default="cosface", type=click.Choice([*MARGINS]), help="Kind of margin.")
@click.option("--margin", type=SHARE, help="Margin.  [default: 0.35 for cosface, 0.5 for arcface]")
@click.option("--scale", default=64.0, type=RATE, help="What the cosines are multiplied by.")
@click.option("--warmup", default=2, type=click.IntRange(min=0), help="Epochs without the margin.")
@click.option("--size", default=112, type=SIZE, help="Side of the square face, pixels.")
@precision_option
@click.option("--holdout", default=0.02, type=BELOW_1, help="Share of the people to verify on.")
@click.option("--pairs", type=click.Path(), help="LFW's pairs.txt: verify on these pairs too.")
@click.option("--pairs-root", type=click.Path(), help="Folder with --pairs' NAME/NAME_0001.jpg.")
@click.option("--workers", type=click.IntRange(min=0),
              help="Processes that read images.  [default: as many as cores, at most 8]")
@click.option("--seed", default=0, type=SEED, help="Seed of all random numbers.")
@device_option
@click.option("--skip-bad-images", is_flag=True, help="Go on without images that cannot be read.")
@click.option("--resume", is_flag=True, help="Continue the run of --out, if there is one.")
@click.option("--overwrite", is_flag=True, help="Replace the run of --out.")
@click.pass_context
@one_voice()
def command(ctx, out, resume, overwrite, **options):
    """Train a backbone to tell people apart, for `train --weights`.

    On several GPUs: torchrun --nproc-per-node 8 mmlfer.py pretrain ...
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other.")
    if bool(options["pairs"]) != bool(options["pairs_root"]):
        raise click.UsageError("--pairs and --pairs-root go together.")
    paths, given, state = run_paths(out), given_options(ctx, options), None
    if resume and out.exists():
        done = read_written(out, BACKBONE_FORMAT, "a file of `mmlfer pretrain`; name another --out")
        check_kept(given, done["options"], MOVABLE, out)
        return click.echo(f"{out}: complete, nothing to do")
    if resume and paths["last"].exists():
        opt, state = resumed_options(paths, given)
    elif not options["faces"]:
        raise click.UsageError("Missing option '--faces'.")
    else:
        opt = new_options(paths, options, overwrite)
    pretrain(opt, paths, state, join_world(opt.device))
