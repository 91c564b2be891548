"""How often `table`'s intervals leave out the truth: simulated runs of two methods.

`python tests/simulate_intervals.py --sets 1000` prints the whole table, in a minute or two. Nothing
here is the program's but the interval that is put to the test.

Net (method m, seed s) has image i of expression k right where

    cut_k + gain_m + seed_ms + leaning_msk + ease_i + taste_mi + noise_msi > 0

with normal terms: ease, taste and noise have variance 1 together, so Phi(cut_k) is about the
expression's rate. ease is an image's own, whoever looks; taste a method's with an image, 0 in the
mean; leaning a net's towards some expressions at the cost of others, which changes neither Acc. nor
Diag.; seed the ability of a net in all of them. The methods' difference is 0 over seeds and images
where gain is. Variances and rates are near those of the raw results in tests/results.

Where images are of persons, taste has a part that is a person's own, the same for all of its images,
and each of ten folds of persons is tested by a net of its own.
"""

import argparse
import functools
import itertools
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mmlfer_commands import table  # noqa: E402

NORMAL = NormalDist()
COUNTS = {909: (126, 54, 36, 44, 25, 178, 43, 113, 6, 44, 194, 37, 1, 8),  # RAF-CE's test images
          401: (66, 22, 16, 18, 8, 70, 18, 57, 4, 17, 87, 15, 1, 2)}  # the stand-ins'
RATES = {909: (66, 15, 16, 11, 19, 69, 41, 72, 2, 27, 74, 4, 2, 4),  # of right answers, percent
         401: (61, 33, 16, 15, 5, 48, 61, 52, 2, 12, 65, 7, 2, 2)}
EASE, TASTE, NOISE, LEANING = 0.64**0.5, 0.07**0.5, 0.29**0.5, 0.25  # deviations
PERSON = 0.1**0.5  # deviation of a method with a person
PERSONS = {"40, alike": np.full(40, 1 / 40), "40, unlike": 1 / np.arange(1, 41), "10, alike": np.full(10, 1 / 10)}
FOLDS = 10
MEASURES = ("Acc.", "Diag.")


def shares(images, measure):
    """What an expression's rate counts in a measure, (14,)."""
    counts = np.array(COUNTS[images])
    return counts / images if measure == "Acc." else np.full(14, 1 / 14)


def weights(images, measure):
    """What an image counts in a measure, (images,), 1 in the mean."""
    counts = np.array(COUNTS[images])
    return np.repeat(images * shares(images, measure) / counts, counts)


def nets(images, points, measure):
    """cut (14,), the seed's deviation for so many points of a measure, and the map of leanings,
    (14, 14), that leaves out what would change Acc. or Diag."""
    cut = np.array([NORMAL.inv_cdf(rate / 100) for rate in RATES[images]])
    slope = np.array([NORMAL.pdf(c) for c in cut])
    change = np.stack([shares(images, one) * slope for one in MEASURES])
    deviation = points / 100 / change[MEASURES.index(measure)].sum()
    return cut, deviation, np.eye(14) - np.linalg.pinv(change) @ change


@functools.cache
def gain_of(images, points, measure, difference):
    """The gain that makes a difference, in points of a measure, over seeds and images."""
    cut, deviation, free = nets(images, points, measure)
    total = np.sqrt(1 + deviation**2 + LEANING**2 * (free**2).sum(1))

    def rate(gain):
        return shares(images, measure) @ [NORMAL.cdf(z) for z in (cut + gain) / total]

    low, high = 0.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) - rate(0) < difference / 100 else (low, middle)
    return low


def simulate(images, seeds, points, measure, difference, sets, rng):
    """Right answers of the first method minus the second's, (sets, seeds, images): seeds and methods
    differ by so many points of the measure, the seeds as deviation."""
    cut, deviation, free = nets(images, points, measure)
    expression = np.repeat(np.arange(14), COUNTS[images])
    ability = cut + rng.normal(0, deviation, (sets, 2, seeds, 1))
    ability = ability + rng.normal(0, LEANING, (sets, 2, seeds, 14)) @ free
    ability[:, 0] += gain_of(images, points, measure, difference)
    image = (rng.normal(0, EASE, (sets, 1, 1, images)) + rng.normal(0, TASTE, (sets, 2, 1, images)))
    right = ability[..., expression] + image + rng.normal(0, NOISE, (sets, 2, seeds, images)) > 0
    return right[:, 0].astype(float) - right[:, 1]


def intervals(images, seeds, points, measure, difference=0, sets=1000, seed=0):
    """Intervals, (sets, 2), of runs with a true difference in points."""
    rng = np.random.default_rng([seed, images, seeds, points, MEASURES.index(measure), difference])
    found = [table.interval(d, weights(images, measure)) for part in range(0, sets, 50) for d in
             simulate(images, seeds, points, measure, difference, min(50, sets - part), rng)]
    return np.array(found)


def simulate_persons(persons, seeds, points, sets, rng):
    """Of two equal methods, right answers of the first minus the second's, (sets, seeds, 401), and the images' persons,
    (401,): with these shares of the images in the mean, numbered from 0."""
    cut, deviation, free = nets(401, points, "Acc.")
    shares = PERSONS[persons] / PERSONS[persons].sum()
    expression, person = np.repeat(np.arange(14), COUNTS[401]), rng.permutation(len(shares))[rng.choice(len(shares), 401, p=shares)]
    ability = cut + rng.normal(0, deviation, (sets, 2, seeds, FOLDS, 1))
    ability = ability + rng.normal(0, LEANING, (sets, 2, seeds, FOLDS, 14)) @ free
    image = rng.normal(0, EASE, (sets, 1, 1, 401)) + rng.normal(0, TASTE, (sets, 2, 1, 401))
    image = image + rng.normal(0, PERSON, (sets, 2, 1, len(shares)))[..., person]
    right = ability[..., person % FOLDS, expression] + image + rng.normal(0, NOISE, (sets, 2, seeds, 401)) > 0
    return right[:, 0].astype(float) - right[:, 1], np.unique(person, return_inverse=True)[1]


def errors_of_persons(persons, seeds, points, sets=1000, seed=0):
    """Of equal methods the percent of intervals that leave out 0, {measure: (of images, of persons)}, and of McNemar's p
    of the first seeds below 0.05, "p": (of images, of persons)."""
    rng, found = np.random.default_rng([seed, list(PERSONS).index(persons), seeds, points]), []
    for _ in range(0, sets, 20):
        several, people = simulate_persons(persons, seeds, points, 20, rng)
        for d in several:
            without = [[percent_without(np.array([table.interval(d, weights(401, measure), who)]), 0) / 100 for who in (None, people)]
                       for measure in MEASURES]
            found.append([*without, [table.mcnemar(one) < 0.05 for one in (d[0], table.by_person(d[:1], people)[0])]])
    return dict(zip((*MEASURES, "p"), 100 * np.mean(found, 0)))


def percent_without(found, value):
    """How many in a hundred intervals leave a value out."""
    return 100 * np.mean((found[:, 0] > value + 1e-9) | (found[:, 1] < value - 1e-9))


def lines(sets):
    yield (f"{sets} simulated data sets a setting: percent of 95 % intervals that leave out 0 where the "
           "methods are equal\n(false) and where they differ by 4 points (seen), and that leave out "
           "these 4 points (missed);\nhalf: half the mean width of those of equal methods, in points.\n")
    yield "images seeds  points over seeds  measure   false   seen  missed   half"
    for images in COUNTS:
        for measure in MEASURES:
            for seeds in (2, 3, 5):
                for points in (0, 1, 2):
                    equal, other = (intervals(images, seeds, points, measure, difference, sets)
                                    for difference in (0, 4))
                    yield (f"{images:6} {seeds:5} {points:18}  {measure:7} {percent_without(equal, 0):7.1f}"
                           f"{percent_without(other, 0):7.1f}{percent_without(other, 0.04):8.1f}"
                           f"{50 * np.ptp(equal, axis=1).mean():7.2f}")


def lines_of_persons(sets):
    yield (f"\n{sets} sets of 401 images of persons in {FOLDS} folds, equal methods: percent of intervals that leave out 0, and of "
           "McNemar's p below 0.05,\nby images and by persons.\n")
    yield "persons     seeds  points over seeds   Acc.: images persons   Diag.: images persons   McNemar: images persons"
    for persons in PERSONS:
        for seeds in (3, 5):
            for points in (0, 2):
                errors = errors_of_persons(persons, seeds, points, sets)
                yield (f"{persons:11} {seeds:5} {points:18} " + " ".join(f"{errors[name][0]:14.1f}{errors[name][1]:8.1f} " for name in errors))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    sets = parser.parse_args().sets
    for line in itertools.chain(lines(sets), lines_of_persons(sets)):
        print(line, flush=True)
