"""The intervals of `table`: by hand, against naive loops, and how often they leave out the truth."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import simulate_intervals as simulation
from conftest import ROOT, exported

from mmlfer_commands import table

EXAMPLE = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0]])  # means by image 2/3, 1/3, 1, 0; by seed 3/4, 1/4, 1/2


# ---------------------------------------------------------------- the computation

# The two-sided 95 % points of Student's distribution, as in printed tables
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 15: 2.131,
        20: 2.086, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980, 1e6: 1.960}


@pytest.mark.parametrize("df", T_95)
def test_t_quantiles_are_those_of_printed_tables(df):
    assert round(table.t_quantile(df), 3) == T_95[df]


def naive_t(df):
    """The t for any degrees of freedom, by sums of the density over fine steps."""
    t = np.arange(0, 13, 1e-5) + 5e-6
    constant = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    share = 2e-5 * np.cumsum(constant * (1 + t**2 / df) ** (-(df + 1) / 2))
    return t[np.searchsorted(share, 0.95)]


@pytest.mark.parametrize("df", [1.0, 1.3, 2.5, 3.7, 25.25, 200.5])
def test_t_quantiles_match_a_naive_sum(df):
    assert table.t_quantile(df) == pytest.approx(naive_t(df), abs=3e-5)


def test_interval_by_hand():
    ones = np.ones(4)
    (images, seeds, rest), free = table.mean_squares(EXAMPLE, ones)
    assert (images, seeds, rest) == pytest.approx((5 / 9, 1 / 4, 5 / 36)) and free == [3, 2, 6]
    # (5/9 + 1/4 - 5/36) / 12 = 1/18, of (2/3)^2 / ((5/9)^2 / 3 + (1/4)^2 / 2 + (5/36)^2 / 6) = 576 / 178 degrees
    half = naive_t(576 / 178) * math.sqrt(1 / 18)
    assert table.interval(EXAMPLE / 2, ones) == pytest.approx((0.25 - half / 2, 0.25 + half / 2), abs=1e-5)
    assert table.interval(EXAMPLE, ones)[1] == 1  # no difference is above 100 points
    # Seeds that differ less than the rest: MS images = 2 (1/36 + 1/36 + 1/9) / 2 = 1/6 alone, of two degrees of freedom.
    half = 4.30265 * math.sqrt(1 / 6 / 6)
    d = np.array([[1, 0, 0], [0, 1, 0]])
    assert table.interval(d / 3, np.ones(3)) == pytest.approx((1 / 9 - half / 3, 1 / 9 + half / 3), abs=1e-5)


def test_the_degrees_of_freedom_are_no_fewer_than_the_seeds_own():
    """Each image is right with one seed: MS images 0, seeds 7/6, rest 1/6, and Satterthwaite's degrees are 1.46."""
    d = np.array([[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]) / 4
    half = 4.30265 * math.sqrt((7 / 6 - 1 / 6) / 18) / 4
    assert table.interval(d, np.ones(6)) == pytest.approx((1 / 12 - half, 1 / 12 + half), abs=1e-5)


def test_interval_of_one_seed_is_of_images_alone():
    # 1, 1, 1, 0: mean 3/4, MS images (3/16 + 9/16) / 3 = 1/4, of three degrees of freedom
    half = 3.18245 * math.sqrt(1 / 4 / 4)
    assert table.interval(EXAMPLE[:1] / 2, np.ones(4)) == pytest.approx((0.375 - half / 2, 0.375 + half / 2), abs=1e-5)


def test_interval_where_nothing_varies_and_of_one_image():
    for value in (-1, 0, 0.7):
        low, high = table.interval(np.full((3, 5), value), np.array([0.5, 0.5, 0.5, 0.5, 3]))
        assert low == pytest.approx(value, abs=1e-12) and high == pytest.approx(value, abs=1e-12)
    assert table.interval(np.array([[0.0], [1.0], [1.0]]), np.ones(1)) == (-1, 1)


def test_images_weigh_by_expression_in_diag():
    truth = np.array([0, 3, 0, 0, 9, 9])
    assert table.image_weights(truth, False).tolist() == [1] * 6
    assert table.image_weights(truth, True) == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3, 1, 1])
    assert simulation.weights(401, "Diag.") == pytest.approx(table.image_weights(np.repeat(np.arange(14), simulation.COUNTS[401]), True))


def naive_interval(d, weights):
    """The mean squares one by one, in loops."""
    seeds, images = d.shape
    m = sum(weights[i] * d[s, i] for s in range(seeds) for i in range(images)) / (seeds * images)
    e = [[weights[i] * (d[s, i] - m) for i in range(images)] for s in range(seeds)]
    of_image = [sum(e[s][i] for s in range(seeds)) / seeds for i in range(images)]
    of_seed = [sum(e[s]) / images for s in range(seeds)]
    ms_images = seeds * sum(x**2 for x in of_image) / (images - 1)
    ms_seeds = images * sum(x**2 for x in of_seed) / (seeds - 1)
    ms_rest = sum((e[s][i] - of_image[i] - of_seed[s]) ** 2 for s in range(seeds) for i in range(images))
    ms_rest /= (seeds - 1) * (images - 1)
    total, df = ms_images, images - 1
    if ms_seeds > ms_rest:
        total = ms_images + ms_seeds - ms_rest
        df = total**2 / (ms_images**2 / (images - 1) + ms_seeds**2 / (seeds - 1) + ms_rest**2 / ((seeds - 1) * (images - 1)))
    half = naive_t(max(df, seeds - 1)) * (total / (seeds * images)) ** 0.5
    return m - half, m + half


@pytest.mark.parametrize(("seeds", "deviation"), [(2, 0), (2, 0.3), (3, 0), (3, 0.3), (5, 0), (5, 0.3)])
def test_interval_matches_naive_loops(seeds, deviation):
    rng = np.random.default_rng(seeds)
    for _ in range(5):
        truth = np.array([0, 1, *rng.integers(0, 4, 28)])
        d = 0.2 * (rng.integers(-1, 2, (seeds, 30)) + rng.integers(-1, 2, 30) + rng.normal(0, deviation, (seeds, 1)))
        for by_expression in (False, True):
            weights = table.image_weights(truth, by_expression)
            low, high = naive_interval(d, weights)
            assert table.interval(d, weights) == pytest.approx((max(low, -1), min(high, 1)), abs=1e-5)


# ---------------------------------------------------------------- images of one person


def test_each_image_a_person_is_as_without_persons():
    rng = np.random.default_rng(2)
    d, weights = rng.integers(-1, 2, (3, 40)), table.image_weights(rng.integers(0, 3, 40), True)
    people = rng.permutation(40)
    assert table.interval(d, weights, people) == pytest.approx(table.interval(d, weights), abs=1e-12)
    assert table.interval(d, weights, np.zeros(40, int)) == (-1, 1)  # one person tells nothing


def test_an_interval_of_persons_by_hand():
    """Persons with equal numbers of images: as of their means. One with half of the images counts by 1 - 1/2, twice."""
    d = np.array([[1, 1, 0, 0, 1, 0, -1, 0, 0, 0], [1, 0, 0, 1, 1, 1, 0, 0, -1, 0], [0, 1, 1, 0, 0, 0, -1, 1, 0, 0]])
    people, ones = np.array([0, 1, 0, 1, 2, 2, 3, 4, 4, 3]), np.ones(10)
    means = np.stack([d[:, people == c].mean(1) for c in range(5)], 1)
    assert table.interval(d, ones, people) == pytest.approx(table.interval(means, np.ones(5)), abs=1e-12)
    # sums of e = d - 1/4 of the persons 1, -1/2, -1/2; times 3/4 (1 - 1/3) / (1 - n / 4): 1, -1/3, -1/3
    d, people = np.array([[1, 1, -1, 0]]) / 4, np.array([0, 0, 1, 2])
    e = np.array([2 * (1 - 1 / 4), -1 - 1 / 4, -1 / 4]) / 4 * (3 / 4) * (2 / 3) / (1 - np.array([2, 1, 1]) / 4)
    half = 4.30265 * math.sqrt((e @ e) / 2 / 3)
    assert table.interval(d, np.ones(4), people) == pytest.approx((1 / 16 - half, 1 / 16 + half), abs=1e-5)


@pytest.mark.parametrize("d", [[0, 0], [3], [5, -2, 1, 1], [1, 1, 1, -4, 0, 2, 2], [7, 7, -7, 3, -1, 2, 2, -2, 11], [-6, 1, 1]])
def test_mcnemars_p_of_persons_is_that_of_all_signs(d):
    sums = np.array(list(itertools.product((1, -1), repeat=len(d)))) @ d
    assert table.mcnemar(np.array(d)) == pytest.approx(np.mean(np.abs(sums) >= abs(sum(d))), abs=1e-12)


def test_mcnemars_p_of_many_images_is_exact():
    """Against exact fractions, and far in the tail not below 0."""
    for b, c in ((520, 500), (1_000, 940), (900, 100)):
        few = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
        assert table.mcnemar(np.repeat([1, 0, -1], [b, 500, c])) == pytest.approx(float(Fraction(2 * few, 2 ** (b + c))), abs=1e-11)


@pytest.mark.parametrize("persons", simulation.PERSONS)
def test_images_of_persons_err_as_often_as_they_say_by_persons_alone(persons):
    """3 to 7 % of 1,000 sets by persons, and 9 to 50 % by images; here of 300, where chance adds at most 1.5 %."""
    for name, (images, by_persons) in simulation.errors_of_persons(persons, 3, 0, 300).items():
        assert by_persons <= 11 and images >= 1.5 * by_persons, name


# ---------------------------------------------------------------- how often it errs


def test_the_simulation_has_the_counts_of_the_raw_results():
    _, truth = exported(ROOT / "tests/results/401/clean")
    assert tuple(np.bincount(truth, minlength=14)) == simulation.COUNTS[401]
    assert {n: sum(counts) for n, counts in simulation.COUNTS.items()} == {909: 909, 401: 401}


@pytest.mark.parametrize("measure", simulation.MEASURES)
@pytest.mark.parametrize("difference", [0, 4])
def test_the_simulation_has_the_difference_that_it_names(measure, difference):
    d = simulation.simulate(401, 2, 2, measure, difference, 800, np.random.default_rng(0)) @ simulation.weights(401, measure) / 401
    assert 100 * d.mean() == pytest.approx(difference, abs=3 * 100 * d.mean(1).std() / 800**0.5)


@pytest.mark.parametrize("measure", simulation.MEASURES)
def test_the_seeds_of_the_simulation_differ_by_so_many_points(measure):
    """The variance over seeds of a difference of two methods is twice a method's own variance, plus the nets' noise."""
    varies = []
    for points in (0, 2):
        d = simulation.simulate(401, 5, points, measure, 0, 600, np.random.default_rng(points))
        varies.append((d @ simulation.weights(401, measure) / 401).var(1, ddof=1).mean())
    assert 100 * ((varies[1] - varies[0]) / 2) ** 0.5 == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("measure", simulation.MEASURES)
@pytest.mark.parametrize(("images", "seeds", "points"), [(401, 3, 0), (401, 3, 2), (401, 5, 0), (401, 5, 2), (909, 3, 0), (909, 3, 2)])
def test_intervals_of_equal_methods_leave_out_0_in_about_one_of_twenty(images, seeds, points, measure):
    """2.4 to 6.7 % of 1,000 sets; here of 600, where chance adds a standard deviation of at most 1 %."""
    assert 1.2 <= simulation.percent_without(simulation.intervals(images, seeds, points, measure, sets=600), 0) <= 9


@pytest.mark.parametrize(("measure", "least"), [("Acc.", 70), ("Diag.", 62)])
def test_intervals_of_five_seeds_see_a_difference_of_4_points(measure, least):
    found = simulation.intervals(401, 5, 0, measure, difference=4, sets=300)
    assert simulation.percent_without(found, 0) >= least and simulation.percent_without(found, 0.04) <= 9
