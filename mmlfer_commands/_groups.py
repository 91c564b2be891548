"""A checkpoint's figures by groups of faces, and by how much two groups differ at most."""

from pathlib import Path

import numpy as np

from mmlfer import ACTIVE, LABEL_FILES, NOT_CODED, InputError, percent
from mmlfer_commands._labels import read_rows
from mmlfer_commands._inputs import by_numbers

FIGURES = {"accuracy": "Acc.", "diag": "Diag.", "au_f1_macro": "AU F1"}
PEOPLE = 10  # fewest people, or images where nobody is named, of a group that is compared


def check_column(faces, by, folder):
    """InputError if faces of a folder were not read with this column, because it is not there."""
    if by not in faces.columns:
        path, columns = Path(folder, faces.files[0]), ()
        if faces.files != LABEL_FILES:
            (_, columns), *_ = read_rows(path)
        raise InputError(f"{path}: no column {by} for --by; it has {', '.join(columns) or 'none'}")


def groups_of(texts, least):
    """{group: its rows} by a column's texts (N,); those of fewer than `least` rows are joined."""
    rows = {name: np.flatnonzero(texts == name) for name in sorted({*texts}, key=by_numbers)}
    small = [name for name in rows if len(rows[name]) < least]
    if len(small) > 1:
        joined = np.concatenate([rows.pop(name) for name in small])
        rows[f"below {least}, joined: {', '.join(name or '(none)' for name in small)}"] = joined
    return rows


def terms_of(faces, p_emo, p_au, trained):
    """What a face adds to each of FIGURES: tops and bottoms, both (N, C), for `figure`."""
    named = faces.y_emo[:, None] == np.arange(p_emo.shape[1])  # (N, K)
    right = named & (p_emo.argmax(1) == faces.y_emo)[:, None]
    coded = (faces.y_au != NOT_CODED) & np.isin(faces.vocabulary.aus, trained)
    present, active = coded & (faces.y_au == 1), coded & (p_au > ACTIVE)
    any_of = [x.any(1, keepdims=True) for x in (right, named)]
    terms = any_of, (right, named), (2 * (present & active), 1 * present + active)
    return dict(zip(FIGURES, terms))


def figure(tops, bottoms):
    """The mean of tops / bottoms, without columns of 0 / 0. Sums (..., C) -> (...)"""
    with np.errstate(invalid="ignore"):
        return (tops / np.maximum(bottoms, 1)).sum(-1) / (bottoms > 0).sum(-1)


def jackknife(tops, bottoms, people):
    """A figure of faces (n, C) of people (n,) -> the people (m,), the figure, and how far it moves
    if one of them is left out (m,): the sum of squares is its variance."""
    who, index = np.unique(people, return_inverse=True)
    t, b = np.zeros((2, len(who), tops.shape[1]))
    np.add.at(t, index, tops)
    np.add.at(b, index, bottoms)
    without = figure(t.sum(0) - t, b.sum(0) - b)
    return who, figure(t.sum(0), b.sum(0)), (without - without.mean()) * np.sqrt(1 - 1 / len(who))


def largest(groups, tops, bottoms, people, least):
    """The largest difference of two groups {name: rows} in a figure, and its 95 % interval.

    Half the interval is the 95 % quantile of the range of normal noise with the groups' covariance
    by the jackknife, so that it holds for whichever two lie furthest apart. A group's variance is
    at least that of all faces at its size: twenty faces may all be right by luck. None if fewer
    than two groups have `least` faces with such a label, of PEOPLE people.
    """
    labelled = {name: rows[bottoms[rows].any(1)] for name, rows in groups.items()}
    kept = {name: rows for name, rows in labelled.items()
            if len(rows) >= least and len({*people[rows]}) >= PEOPLE}
    if len(kept) < 2:
        return None
    alone = [jackknife(tops[rows], bottoms[rows], people[rows]) for rows in kept.values()]
    rows = np.concatenate([*kept.values()])
    *_, of_all = jackknife(tops[rows], bottoms[rows], people[rows])
    moves = np.zeros((len(kept), people.max() + 1))
    for row, (who, _, moved) in zip(moves, alone):
        row[who] = moved
    least_variance = [(of_all**2).sum() * len(of_all) / len(who) for who, *_ in alone]
    covariance = moves @ moves.T
    np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), least_variance))
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(len(kept)), covariance, 20_000)
    half, order = float(np.quantile(np.ptp(noise, 1), 0.95)), np.argsort([x for _, x, _ in alone])
    difference = float(alone[order[-1]][1] - alone[order[0]][1])
    return {"high": [*kept][order[-1]], "low": [*kept][order[0]], "difference": difference,
            "interval": [difference - half, min(difference + half, 1.0)]}


def by_group(faces, by, least, p_emo, p_au, trained):
    """What `eval --json` has of the groups by a column of the faces."""
    groups, rows = groups_of(faces.columns[by], least), []
    terms = terms_of(faces, p_emo, p_au, trained)
    given = faces.columns.get("person", np.arange(len(faces.names)))
    people = np.unique(given.astype(str), return_inverse=True)[1]
    for name, of in groups.items():
        rows.append({"group": name, "n": len(of)})
        for key, (t, b) in terms.items():
            value = float(figure(t[of].sum(0), b[of].sum(0)))
            rows[-1][key] = None if np.isnan(value) else value
    return {"by": by, "groups": rows, "largest": {
        key: largest(groups, *of, people, least) for key, of in terms.items()}}


def group_lines(found):
    """by_group's answer as lines of text, in percent."""
    heads = "".join(f"{name + ' %':>9}" for name in FIGURES.values())
    lines = [f"\n{'by ' + found['by']:24}{'images':>7}{heads}"]
    for row in found["groups"]:
        cells = "".join(f"{percent(row[key]):>9}" for key in FIGURES)
        lines.append(f"{row['group'] or '(none)':24.80}{row['n']:7}{cells}")
    for key, name in FIGURES.items():
        if one := found["largest"][key]:
            low, high = (100 * x for x in one["interval"])
            lines.append(f"largest difference, {name}: {100 * one['difference']:.2f} [{low:.2f}, "
                         f"{high:.2f}], {one['high'] or '(none)'} over {one['low'] or '(none)'}")
    return lines
