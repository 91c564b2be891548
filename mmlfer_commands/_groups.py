"""A checkpoint's figures by groups of faces, and by how much two groups differ at most."""

import numpy as np

from mmlfer import ACTIVE, NOT_CODED, percent
from mmlfer_commands._inputs import by_numbers

FIGURES = {"accuracy": "Acc.", "diag": "Diag.", "au_f1_macro": "AU F1"}
PEOPLE = 10  # fewest people, or images where nobody is named, of a group that is compared


def groups_of(texts, least):
    """{group: its rows} by a column's texts (N,); those of fewer than `least` rows are joined."""
    texts = np.where(texts == "", "(none)", texts)
    rows = {text: np.flatnonzero(texts == text) for text in sorted({*texts}, key=by_numbers)}
    small = [name for name in rows if len(rows[name]) < least]
    if len(small) > 1:
        joined = np.concatenate([rows.pop(name) for name in small])
        rows[f"below {least}, joined: {', '.join(small)}"] = joined
    return rows


def terms_of(faces, p_emo, p_au, trained):
    """What a face adds to each of FIGURES: tops and bottoms, both (N, C), for `figure`."""
    named = faces.y_emo[:, None] == np.arange(p_emo.shape[1])  # (N, K)
    right = named & (p_emo.argmax(1) == faces.y_emo)[:, None]
    coded = (faces.y_au != NOT_CODED) & np.isin(faces.vocabulary.aus, trained)
    present, active = coded & (faces.y_au == 1), coded & (p_au > ACTIVE)
    terms = [[x.any(1, keepdims=True) for x in (right, named)], (right, named),
             (2 * (present & active), present + 1 * active)]
    return dict(zip(FIGURES, terms))


def figure(tops, bottoms):
    """The mean of tops / bottoms, without columns of 0 / 0. Sums (..., C) -> (...)"""
    with np.errstate(invalid="ignore"):
        return (tops / np.maximum(bottoms, 1)).sum(-1) / (bottoms > 0).sum(-1)


def jackknife(tops, bottoms, people, rows):
    """A figure of rows of faces (N, C) of people (N,), 0..P-1; the number of these; and how far it
    moves if one of them is left out, (P,): the sum of the squares is its variance."""
    t, b = np.zeros((2, people.max() + 1, tops.shape[1]))
    np.add.at(t, people[rows], tops[rows])
    np.add.at(b, people[rows], bottoms[rows])
    here, without = b.any(1), figure(t.sum(0) - t, b.sum(0) - b)
    moves = np.where(here, without - without[here].mean(), 0) * np.sqrt(1 - 1 / here.sum())
    return figure(t.sum(0), b.sum(0)), here.sum(), moves


def largest(groups, tops, bottoms, people, least):
    """The largest difference of two groups {name: rows} in a figure, and its 95 % interval.

    Half the interval is the 95 % quantile of the range of normal noise with the groups' covariance
    by the jackknife, so that it holds for whichever two lie furthest apart. A group's variance is
    at least that of all faces at its size: twenty faces may all be right by luck. None if fewer
    than two groups have `least` faces with such a label, of PEOPLE people.
    """
    alone = {name: jackknife(tops, bottoms, people, rows) for name, rows in groups.items()
             if bottoms[rows].any(1).sum() >= least}
    names = [name for name, (_, n, _) in alone.items() if n >= PEOPLE]
    if len(names) < 2:
        return None
    values, n, moves = (np.array(x) for x in zip(*map(alone.get, names)))
    _, n_all, of_all = jackknife(tops, bottoms, people, slice(None))
    covariance = moves @ moves.T
    np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), (of_all**2).sum() * n_all / n))
    noise = np.random.default_rng(0).multivariate_normal(0 * values, covariance, 20_000)
    half, order = float(np.quantile(np.ptp(noise, 1), 0.95)), np.argsort(values)
    difference = float(np.ptp(values))
    return {"high": names[order[-1]], "low": names[order[0]], "difference": difference,
            "interval": [difference - half, min(difference + half, 1.0)]}


def by_group(faces, by, least, p_emo, p_au, trained):
    """What `eval --json` has of the groups by a column of the faces."""
    groups, terms = groups_of(faces.columns[by], least), terms_of(faces, p_emo, p_au, trained)
    given = faces.columns.get("person", np.arange(len(faces.names)))
    people = np.unique(given.astype(str), return_inverse=True)[1]
    rows = [{"group": name, "n": len(of)} for name, of in groups.items()]
    for row, of in zip(rows, groups.values()):
        values = {key: float(figure(t[of].sum(0), b[of].sum(0))) for key, (t, b) in terms.items()}
        row |= {key: None if np.isnan(value) else value for key, value in values.items()}
    return {"by": by, "groups": rows, "largest": {
        key: largest(groups, *of, people, least) for key, of in terms.items()}}


def group_lines(found):
    """by_group's answer as lines of text, in percent."""
    heads = "".join(f"{name + ' %':>9}" for name in FIGURES.values())
    yield f"\n{'by ' + found['by']:24}{'images':>7}{heads}"
    for row in found["groups"]:
        cells = "".join(f"{percent(row[key]):>9}" for key in FIGURES)
        yield f"{row['group']:24.80}{row['n']:7}{cells}"
    for key, one in found["largest"].items():
        text = "no two groups are large enough to be compared"
        if one:
            difference, low, high = (100 * x for x in (one["difference"], *one["interval"]))
            text = (f"{difference:.2f} [{low:.2f}, {high:.2f}] with 95 %, {one['high']} over "
                    f"{one['low']}")
        yield f"largest difference of two, {FIGURES[key]}: {text}"
