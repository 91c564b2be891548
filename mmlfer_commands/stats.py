"""mmlfer stats: the AU analysis (Sec. 3.2, Table 1, Fig. 2)."""

import click
import numpy as np
import yaml

from mmlfer import OBSERVED, PATH, PROTOTYPICAL, SPLITS, InputError, counts, write_whole
from mmlfer_commands._figures import pyplot, save_figure
from mmlfer_commands._labels import describe, load_faces
from mmlfer_commands._outputs import check_output, check_two_outputs, markdown, name_of
from mmlfer_commands._stats import frequencies, load_stats, with_aus


def au_sums(p):
    """Mean activated AUs over expressions: prototypical, variant and observed. p (K, J)"""
    p = p[~np.isnan(p).all(1)]
    prototypical, observed = (p[p >= least].sum() / len(p) for least in (PROTOTYPICAL, OBSERVED))
    return prototypical, observed - prototypical, observed


def cell(p):
    """A cell of Table 1: percent if the AU is observed, in bold if it is prototypical."""
    bold = "**" if p >= PROTOTYPICAL else ""
    return f"{bold}{100 * p:.0f}{bold}" if p >= OBSERVED else ""


def table_1(p, n, reference, vocabulary):
    """Table 1 in Markdown: p (K, J) of n images each, and, starred, what to compare with."""
    rows = []
    for k, emotion in enumerate(vocabulary.emotions):
        rows.append((f"{emotion} ({n[k]})", p[k]))
        rows += [] if reference is None else [(f"{emotion}*", reference[k])]
    columns = np.flatnonzero(np.any([row >= OBSERVED for _, row in rows], 0))
    return markdown(["expression (images)", *(f"AU {vocabulary.aus[j]}" for j in columns)],
                    [[name, *(cell(row[j]) for j in columns)] for name, row in rows])


def observation(name, p, aus):
    """The paper's three observations (Sec. 3.2) for one table p (K, J), as a line."""
    if np.isnan(p).all():
        return f"{name}: no row has an expression and coded AUs"
    aus = {au: k for au, k in zip(aus, (p >= OBSERVED).sum(0)) if k}  # in k expressions
    sums = "{:.2f} prototypical + {:.2f} variant = {:.2f} observed".format(*au_sums(p))
    return (f"{name}: {len(aus)} observed AUs; AU 12 in {aus.get(12, 0)} and AU 25 in "
            f"{aus.get(25, 0)} expressions; mean activated AUs {sums}")


def observations(p, n, reference, vocabulary):
    """The paper's three observations as numbers, of p (K, J), "here", and a reference, "there"."""
    emotions, numbers = vocabulary.emotions, vocabulary.aus
    lines = [observation("here", p, numbers)]
    if reference is not None:
        here, there = ({*np.array(numbers)[(q >= OBSERVED).any(0)]} for q in (p, reference))
        for name, aus in (("here", here - there), ("there", there - here)):
            lines.append(f"observed {name} only: AU {', '.join(map(str, sorted(aus))) or 'none'}")
        lines.append(observation("there", reference, numbers))
    bare = [f"{e} ({c} images)" for e, c, row in zip(emotions, n, p) if not (row >= OBSERVED).any()]
    if bare:
        lines.append(f"no observed AU, and so left out of L^AM: {', '.join(bare)}")
    return "\n".join(lines)


def write_stats(p, n, source, vocabulary, path):
    """YAML that --stats reads: the observed AUs of each expression as fractions."""
    lines = [f"# p(AU active | compound expression) of {source}, {sum(n)} images, by mmlfer stats.",
             "# Fractions by AU number; AUs below 0.20 count as 0 and are left out."]
    for emotion, count, row in zip(vocabulary.emotions, n, p):
        aus = {au: round(float(x), 4) for au, x in zip(vocabulary.aus, row) if x >= OBSERVED}
        row = yaml.safe_dump({emotion: aus}, default_flow_style=None, allow_unicode=True, width=999)
        lines.append(f"{row.strip()}  # {count} images")
    write_whole(path, ("\n".join(lines) + "\n").encode())


def plot_stats(tables, aus, path):
    """Figure 2's content: a heat map for each (title, row names, p (K, J)), of the same AUs."""
    columns = np.flatnonzero(np.any([(p >= OBSERVED).any(0) for *_, p in tables], 0))
    if not len(columns):
        raise InputError(f"{path}: nothing to draw, no AU is at 20 % or more")
    figure, axes = pyplot().subplots(len(tables), 1, figsize=(8.5, 4.6 * len(tables)),
                                     squeeze=False, layout="constrained")
    for axis, (title, names, p) in zip(axes[:, 0], tables):
        shown = np.where(p >= OBSERVED, 100 * p, np.nan)[:, columns]
        picture = axis.imshow(shown, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(columns)), [f"AU {aus[j]}" for j in columns], rotation=60)
        axis.set_yticks(range(len(names)), names, parse_math=False)
        axis.set_title(f"{title}: observed AUs (20 % or more)", parse_math=False)
        for (k, j), value in np.ndenumerate(shown):
            if not np.isnan(value):
                axis.text(j, k, f"{value:.0f}", ha="center", va="center", fontsize=7,
                          color="black" if value > 60 else "white")
        figure.colorbar(picture, ax=axis, label="p(AU | expression), %")
    save_figure(figure, path)


@click.command("stats")
@click.option("--data", required=True, type=PATH, help="Folder laid out like RAF-CE, or with "
              "a labels.csv.")
@click.option("--split", default="all", type=click.Choice(["all", *SPLITS]), help="Which part.")
@click.option("--out", type=PATH, help="Write YAML that --stats takes; - is standard output, and "
              "the table then goes to standard error.")
@click.option("--against", help="Compare with wild, lab or a YAML file.")
@click.option("--plot", type=PATH, help="Write a heat map, e.g. stats.png (extra `plot`).")
def command(data, split, out, against, plot):
    """Count AUs by expression: Table 1 and Figure 2 for these labels.

    The paper's observations (Section 3.2) follow as numbers.
    """
    piped = "-" in map(str, (out, plot))
    for path in filter(None, (out, plot)):
        check_output(path, data, *([against] if against else []))
    check_two_outputs(out=out, plot=plot)
    faces = load_faces(data)
    faces = with_aus(faces, against, data) if against else faces
    vocabulary = faces.vocabulary
    reference = load_stats(against, vocabulary) if against else None
    faces = faces if split == "all" else faces.select(faces.split == SPLITS[split])
    if not faces.named().names:
        raise InputError(f"{data}/{faces.files[1]}: no images with an expression, --split {split}")
    source = f"{name_of(data.resolve())} ({split})"
    click.echo(describe(faces, data), err=True)
    p, n = frequencies(faces)[0], counts(faces.y_emo, len(vocabulary.emotions))
    given = (p, n, reference, vocabulary)
    click.echo(f"{table_1(*given)}\n\n{observations(*given)}", err=piped)
    if out:
        write_stats(p, n, source, vocabulary, out)
    if plot:
        tables = [(source, [f"{e} ({c})" for e, c in zip(vocabulary.emotions, n)], p)]
        if against:
            tables.append((name_of(against), vocabulary.emotions, reference))
        plot_stats(tables, vocabulary.aus, plot)
