"""mmlfer synth: stand-in faces, drawn from AUs, in RAF-CE's own layout or with labels.csv."""

import os
import shutil
from pathlib import Path

import click
import numpy as np

from mmlfer import (
    AU_NAMES, COUNT, LABEL_FILES, PATH, RAFCE, SEED, SIZE, TEST, TRAIN, FiniteRange, InputError,
    Stream, Vocabulary, counts, progress, stem, write_whole)
from mmlfer_commands._drawing import DRAWN, write_face
from mmlfer_commands._labels import describe, load_faces, split_faces, write_labels_csv
from mmlfer_commands._outputs import new_folder
from mmlfer_commands._processes import in_processes
from mmlfer_commands._rafce import (
    RAFCE_TOTALS, load_labels, parse_aus, parse_code, read_labels, write_labels)
from mmlfer_commands._stats import PAPERS, load_stats, read_stats


def draw_labels(n, table, seed, stream=Stream.LABELS, vocabulary=RAFCE):
    """Labels of n stand-ins: expressions in RAF-CE's proportions (others are as frequent as each
    other), AUs by the statistics (K, J), sides for some, 1 row in 100 null. -> y_emo, AU strings"""
    rng, numbers = np.random.default_rng([seed, stream]), np.array(vocabulary.aus)
    totals = RAFCE_TOTALS if vocabulary == RAFCE else [1] * len(vocabulary.emotions)
    y_emo = rng.choice(len(totals), n, p=np.array(totals) / sum(totals))
    active = (rng.random((n, len(numbers))) < table[y_emo]) & (rng.random((n, 1)) > 0.01)
    aus = []
    for row in active:
        sides = rng.choice(["", "L", "R"], len(numbers), p=[0.9, 0.05, 0.05])
        aus.append("+".join(f"{s}{au}" for s, au in zip(sides[row], numbers[row])) or "null")
    return y_emo, aus


def draw_shares(aus, y_emo, table, vocabulary, seed):
    """Shares of the expressions among 40 annotators of each face, who see its AUs alone, less sure
    than the statistics (K, J): drawn in proportion to p(k) prod_j p(y_j | k)^(1/4). -> (N, K)"""
    seen = [{au for au, _ in parse_aus(text, AU_NAMES)} for text in aus]
    y_au = np.array([[au in row for au in vocabulary.aus] for row in seen], float)
    p, n = table.clip(1e-3, 1 - 1e-3), counts(y_emo, len(vocabulary.emotions))
    log_p = (y_au @ np.log(p).T + (1 - y_au) @ np.log(1 - p).T) / 4 + np.log(np.add(n, 1e-9))
    q = np.exp(log_p - log_p.max(1, keepdims=True))
    rng = np.random.default_rng([seed, Stream.SHARES])
    return rng.multinomial(40, q / q.sum(1, keepdims=True)) / 40


def draw_rows(n, test, table, seed, vocabulary=RAFCE):
    """Names, expressions, parts and AU strings of n stand-ins and `test` further test faces. These
    have random streams of their own, so that the n do not change."""
    y_emo, aus = draw_labels(n, table, seed, vocabulary=vocabulary)
    more_emo, more_aus = draw_labels(test, table, seed, Stream.TEST_LABELS, vocabulary)
    names = [f"{i:04d}.jpg" for i in range(1, n + test + 1)]
    return names, [*y_emo, *more_emo], [*split_faces(y_emo, seed), *[TEST] * test], aus + more_aus


def draw_all(jobs):
    """write_face for each job, on all cores."""
    workers = min(os.cpu_count() or 1, 1 + len(jobs) // 200)  # a process takes a second to start
    faces = in_processes(workers, write_face, jobs, 4) if workers > 1 else map(write_face, jobs)
    for _ in progress(faces, "drawing", len(jobs), unit=" faces"):
        pass


def mislabel(folder, share, seed):
    """Give a share of the training rows the AU string of another of them, and say in a line what
    changed; InputError if nothing did. All else stays."""
    rng, path = np.random.default_rng([seed, Stream.AU_NOISE]), folder / LABEL_FILES[2]
    split = read_labels(folder / LABEL_FILES[1], parse_code)
    rows = {name: aus for name, (_, aus) in read_labels(path, str).items()}
    train = [name for name in rows if split[name][1] == TRAIN]
    wrong = rng.permutation(train)[: round(share * len(train))].tolist()
    given = {name: rows[other] for name, other in zip(wrong, wrong[1:] + wrong[:1])}
    differ = sum(rows[name] != aus for name, aus in given.items())
    write_whole(path, "".join(f"{name} {aus}\n" for name, aus in (rows | given).items()).encode())
    n, said = len(train), f"{len(given)} of {len(train)} training rows got another row's AUs"
    if share and not differ:
        raise InputError(f"--au-noise {share:g} changes no AU labels ({said}); give a larger share")
    click.echo(f"AU noise: {said}; {differ} ({100 * differ / n:.1f} % of {n}) differ from before")


def draw_faces(folder, names, aus, size, seed, test=0):
    """Draw a face for each row into a folder's aligned/, the last `test` from their own stream."""
    (folder / "aligned").mkdir()
    seeds = [[seed, Stream.FACES, i] for i in range(len(names) - test)]
    seeds += [[seed, Stream.TEST_FACES, i] for i in range(test)]
    draw_all([(str(folder / aligned(name)), row, size, own)
              for name, row, own in zip(names, aus, seeds)])


def aligned(name):
    """The path of an image's crop in a folder laid out like RAF-CE."""
    return f"aligned/{stem(name)}_aligned.jpg"


def synthesize(out, n, stats, labels, size, seed, au_noise=0.0, test=0):
    """Write stand-in faces in RAF-CE's own layout, for drawn labels or for those of a folder."""
    with new_folder(out) as part:
        if labels:
            names = load_labels(labels).names  # InputError unless all three files fit together
            for file in LABEL_FILES:
                shutil.copyfile(Path(labels) / file, part / file)
            rows = read_labels(part / LABEL_FILES[2], str)
            aus = [rows[name][1] for name in names]
        else:
            names, y_emo, split, aus = draw_rows(n, test, load_stats(stats), seed)
            write_labels(part, names, y_emo, split, aus)
        if au_noise:
            mislabel(part, au_noise, seed)
        draw_faces(part, names, aus, size, seed, test)


def drawable(stats):
    """The vocabulary of statistics for --form csv: RAF-CE's for the paper's, else a file's."""
    if stats in PAPERS:
        return RAFCE
    rows = read_stats(stats)
    aus = sorted({au for row in rows.values() for au in row})
    if odd := [au for au in aus if au not in DRAWN]:
        raise InputError(f"{stats}: AU {', '.join(map(str, odd))}: synth draws AUs "
                         f"{', '.join(map(str, DRAWN))}; leave out the others")
    return Vocabulary(tuple(rows), tuple(aus))


def synthesize_csv(out, n, stats, size, seed, test=0, uncoded=0.0, soft=False):
    """Write stand-in faces with labels.csv, a share of it not coded; `soft` adds shares."""
    vocabulary = drawable(stats)
    rng = np.random.default_rng([seed, Stream.UNCODED])
    with new_folder(out) as part:
        table = load_stats(stats, vocabulary)
        names, y_emo, split, aus = draw_rows(n, test, table, seed, vocabulary)
        told = np.array(aus, object)
        told[rng.permutation(len(told))[: round(uncoded * len(told))]] = "?"
        shares = draw_shares(aus, y_emo, table, vocabulary, seed) if soft else None
        write_labels_csv(part, map(aligned, names), y_emo, split, told, vocabulary.emotions, shares)
        draw_faces(part, names, aus, size, seed, test)


def synthesize_people(out, people, per_person, stats, size, seed):
    """Write a folder of faces for each of some drawn people, as `pretrain` reads them."""
    with new_folder(out) as part:
        _, aus = draw_labels(people * per_person, load_stats(stats), seed)
        jobs = []
        for i, row in enumerate(aus):
            person, face = divmod(i, per_person)
            folder = part / f"{person + 1:05d}"
            folder.mkdir(exist_ok=True)
            jobs.append((str(folder / f"{face + 1:03d}.jpg"), row, size, [seed, Stream.FACES, i],
                         [seed, Stream.PEOPLE, person]))
        draw_all(jobs)


@click.command("synth")
@click.argument("out", type=PATH)
@click.option("--n", default=1400, type=COUNT, help="Number of faces.")
@click.option("--test", default=0, type=click.IntRange(min=0), metavar="N", help="Draw N further "
              "test faces; all others are drawn as without them.")
@click.option("--stats", default="wild", help="p(AU | expression): wild, lab or a YAML file.")
@click.option("--form", default="rafce", type=click.Choice(["rafce", "csv"]), help="Labels in "
              "RAF-CE's files, or in labels.csv: for any expressions in the file of --stats.")
@click.option("--uncoded", default=0.0, type=FiniteRange(0, 1), help="Share of the rows of "
              "labels.csv whose AUs are not coded.")
@click.option("--soft", is_flag=True, help="Also write to labels.csv which share of 40 drawn "
              "annotators, who see the AUs alone, names each expression.")
@click.option("--labels", type=click.Path(), help="Draw a face for each row of the label files "
              "in this folder instead, and copy them.")
@click.option("--au-noise", default=0.0, type=FiniteRange(0, 1), help="Share of training "
              "rows given another row's AU labels. Faces and all other rows are unchanged.")
@click.option("--people", type=COUNT, metavar="N", help="Draw N people instead, for `pretrain`.")
@click.option("--per-person", default=20, type=COUNT, help="Faces of each of the --people.")
@click.option("--size", default=112, type=SIZE, help="Side of a face, pixels.")
@click.option("--seed", default=0, type=SEED, help="Seed of all random numbers.")
def command(out, n, test, stats, form, uncoded, soft, labels, au_noise, people, per_person, size,
            seed):
    """Write stand-in faces, drawn from AUs, in RAF-CE's own layout to the folder OUT."""
    if people and (labels or au_noise or test):
        raise click.UsageError("--people has no label files: no --labels, --au-noise or --test.")
    if labels and test:
        raise click.UsageError("--labels says which faces to draw: no --test.")
    if form == "csv" and (labels or au_noise or people):
        raise click.UsageError("--form csv has no --labels, --au-noise or --people.")
    if (uncoded or soft) and form != "csv":
        raise click.UsageError("--uncoded and --soft need --form csv: RAF-CE's files have neither.")
    if people:
        synthesize_people(out, people, per_person, stats, size, seed)
        return click.echo(f"{out}: {people} people of {per_person} faces")
    if form == "csv":
        synthesize_csv(out, n, stats, size, seed, test, uncoded, soft)
    else:
        synthesize(out, n, stats, labels, size, seed, au_noise, test)
    click.echo(describe(load_faces(out), out))
