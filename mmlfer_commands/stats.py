"""mmlfer stats: the AU analysis (Sec. 3.2, Table 1, Fig. 2)."""

from pathlib import Path

import click
import numpy as np

from mmlfer import (
    AUS,
    EMOTIONS,
    FOLDER,
    LABEL_FILES,
    OBSERVED,
    PROTOTYPICAL,
    SPLITS,
    InputError,
    counts,
    describe,
    load_labels,
    load_stats,
    write_whole,
)  # fmt: skip
from mmlfer_commands.plot import pyplot, save_figure
from mmlfer_commands.table import markdown


def au_frequencies(faces):
    """p(AU | expression), NaN for expressions without images. -> (K, J)"""
    with np.errstate(invalid="ignore"):
        return np.stack([faces.y_au[faces.y_emo == k].sum(0) / (faces.y_emo == k).sum()
                         for k in range(len(EMOTIONS))])


def au_sums(p):
    """Mean activated AUs over expressions: prototypical, variant and observed. p (K, J)"""
    p = p[~np.isnan(p).any(1)]
    observed = np.where(p >= OBSERVED, p, 0).sum(1)
    prototypical = np.where(p >= PROTOTYPICAL, p, 0).sum(1)
    return [float(x.mean()) for x in (prototypical, observed - prototypical, observed)]


def table_1(p, n, there):
    """Table 1 in Markdown: p (K, J) of n images each, and, starred, what to compare with."""
    rows = [(f"{e} ({c})", row) for e, c, row in zip(EMOTIONS, n, p)]
    if there is not None:
        starred = [(f"{e}*", row) for e, row in zip(EMOTIONS, there)]
        rows = [row for pair in zip(rows, starred) for row in pair]
    columns = [j for j in range(len(AUS)) if any(row[j] >= OBSERVED for _, row in rows)]
    def cell(value):
        if not value >= OBSERVED:
            return ""
        return f"**{100 * value:.0f}**" if value >= PROTOTYPICAL else f"{100 * value:.0f}"

    return markdown(["expression (images)", *(f"AU {AUS[j]}" for j in columns)],
                    [[name, *(cell(row[j]) for j in columns)] for name, row in rows])


def observations(p, there):
    """The paper's three observations as numbers, here and there."""
    def some(table):
        return {AUS[j] for j in np.flatnonzero((table >= OBSERVED).any(0))}

    def numbers(name, table):
        of = {au: int((table[:, AUS.index(au)] >= OBSERVED).sum()) for au in (12, 25)}
        sums = "{:.2f} prototypical + {:.2f} variant = {:.2f} observed".format(*au_sums(table))
        return (f"{name}: {len(some(table))} observed AUs; AU 12 in {of[12]} and AU 25 in {of[25]} "
                f"expressions; mean activated AUs {sums}")

    lines = [numbers("here", p)]
    if there is not None:
        for name, aus in (("here", some(p) - some(there)), ("there", some(there) - some(p))):
            lines.append(f"observed {name} only: AU {', '.join(map(str, sorted(aus))) or 'none'}")
        lines.append(numbers("there", there))
    few = (p >= OBSERVED).sum(1) == 0
    if few.any():
        lines.append("no observed AU, and so not for --stats: " +
                     ", ".join(e for e, f in zip(EMOTIONS, few) if f))
    return "\n".join(lines)


def write_stats(p, n, source, path):
    """YAML that --stats reads: the observed AUs of each expression as fractions."""
    lines = [f"# p(AU active | compound expression) of {source}, {sum(n)} images, by mmlfer stats.",
             "# Fractions by AU number; AUs below 0.20 count as 0 and are left out."]
    for emotion, count, row in zip(EMOTIONS, n, p):
        cells = ", ".join(f"{au}: {x:.4f}" for au, x in zip(AUS, row) if x >= OBSERVED)
        lines.append(f"{emotion}: {{{cells}}}  # {count} images")
    write_whole(path, ("\n".join(lines) + "\n").encode())


def plot_stats(p, there, path):
    """Fig. 2's content: expression x AU, here above and there below (where given)."""
    plt = pyplot()
    tables = [("here", p)] + ([("there", there)] if there is not None else [])
    columns = [j for j in range(len(AUS)) if any((t[:, j] >= OBSERVED).any() for _, t in tables)]
    figure, axes = plt.subplots(len(tables), 1, figsize=(8.5, 4.6 * len(tables)), squeeze=False,
                                layout="constrained")
    for axis, (name, table) in zip(axes[:, 0], tables):
        shown = np.where(table >= OBSERVED, 100 * table, np.nan)[:, columns]
        picture = axis.imshow(shown, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(columns)), [f"AU {AUS[j]}" for j in columns], rotation=60)
        axis.set_yticks(range(len(EMOTIONS)), EMOTIONS)
        axis.set_title(f"{name}: observed AUs (20 % or more)")
        for (k, j), value in np.ndenumerate(shown):
            if value == value:
                axis.text(j, k, f"{value:.0f}", ha="center", va="center", fontsize=7,
                          color="black" if value > 60 else "white")
        figure.colorbar(picture, ax=axis, label="p(AU | expression), %")
    save_figure(plt, figure, path)


@click.command("stats")
@click.option("--data", required=True, type=FOLDER, help="Folder with the three label files.")
@click.option("--split", default="all", type=click.Choice(["all", *SPLITS]), help="Which images.")
@click.option("--out", type=FOLDER, help="Write YAML that --stats takes.")
@click.option("--against", help="Compare with wild, lab or a YAML file.")
@click.option("--plot", type=FOLDER, help="Write a heat map, e.g. stats.png (extra `plot`).")
def command(data, split, out, against, plot):
    """The AU analysis (Sec. 3.2): Table 1 for these labels, and the observations as numbers."""
    faces = load_labels(data)
    there = load_stats(against) if against else None
    faces = faces if split == "all" else faces.select(faces.split == SPLITS[split])
    if not faces.names:
        raise InputError(f"{data}/{LABEL_FILES[1]}: no {split} images")
    click.echo(describe(faces, data), err=True)
    p, n = au_frequencies(faces), counts(faces.y_emo)
    click.echo(table_1(p, n, there))
    click.echo("\n" + observations(p, there))
    if out:
        write_stats(p, n, f"{Path(data).name} ({split})", out)
    if plot:
        plot_stats(p, there, plot)
