"""AU statistics (Sec. 3.2): Table 1, the paper's or one's own, as an array."""

from pathlib import Path

import numpy as np
import yaml

from mmlfer import AUS, EMOTIONS, HERE, OBSERVED, InputError, brief


def load_stats(name):
    """Table 1, p(AU | expression), of "wild", "lab" or a YAML file. -> (K, J) float array.

    AUs below 20 % count as 0; AU 11, of the lab table alone, is no AU of RAF-CE and is dropped.
    """
    if name in ("wild", "lab"):
        own = HERE / "stats" if (HERE / "stats").is_dir() else HERE / "mmlfer_stats"  # installed
        rows = yaml.safe_load((own / f"{name}.yaml").read_text(encoding="utf-8"))
    else:
        rows = read_stats(name)
    table = np.zeros((len(EMOTIONS), len(AUS)))
    for k, emotion in enumerate(EMOTIONS):
        for au, p in rows[emotion].items():
            if au != 11 and p >= OBSERVED:
                table[k, AUS.index(au)] = p
    return table


class StatsLoader(yaml.SafeLoader):
    """Plain YAML: no aliases, whose nesting can grow without end, and no key twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*); write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = [str(key) for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} stands there twice; keep one")
        return super().construct_mapping(node, deep)


def read_stats(path):
    """The rows of a file as `stats --out` writes them, checked: {expression: {AU: fraction}}."""

    def expect(ok, message):
        if not ok:
            raise InputError(f"{path}: {message}")

    try:
        rows = yaml.load(Path(path).read_text(encoding="utf-8"), StatsLoader)
    except Exception as error:  # yaml raises many kinds for odd tags and nesting
        raise InputError(f"{path}: cannot be read as YAML ({brief(error)}); --stats takes wild, "
                         "lab or a file of `mmlfer stats --out`") from None
    expect(isinstance(rows, dict), "expected expressions with their AUs, as in stats/wild.yaml")
    unknown = [e for e in rows if e not in EMOTIONS]
    if unknown:
        raise InputError(f"{path}: unknown expression {unknown[0]!r:.40}; see stats/wild.yaml")
    missing = ", ".join(e for e in EMOTIONS if e not in rows)
    expect(not missing, f"no row for {missing}; see stats/wild.yaml")
    for emotion, row in rows.items():
        expect(isinstance(row, dict), f"{emotion}: expected AUs with fractions, like {{12: 0.58}}")
        for au, p in row.items():
            expect(type(au) is int and au in (*AUS, 11),
                   f"{emotion}: unknown AU {au!r:.20}; the AUs are {AUS}")
            expect(type(p) in (int, float) and 0 <= p <= 1,
                   f"{emotion}: AU {au}: expected a fraction 0..1, got {str(p)[:20]!r}")
        expect(any(p >= OBSERVED for au, p in row.items() if au != 11),
               f"{emotion}: no AU of 0.2 or more, and Eq. 7 divides by their sum")
    return rows
