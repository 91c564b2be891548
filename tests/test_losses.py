"""Eqs. 1-9 against naive loops in float64, the statistics and the metrics against the paper."""

import math

import numpy as np
import pytest
import torch

import mmlfer
from mmlfer_commands import _stats

rng = np.random.default_rng(0)
Z_EMO, Z_AU = rng.normal(0, 2, (5, 14)), rng.normal(0, 2, (5, 32))
Y_EMO, Y_AU = rng.integers(0, 14, 5), rng.random((5, 32)) < 0.2
TABLE = {name: _stats.load_stats(name) for name in ("wild", "lab")}


def t(array):
    return torch.tensor(array, dtype=None if array.dtype.kind in "ib" else torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(z):
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def naive_q_au(i, table, form):
    p = softmax(Z_EMO[i])
    if form == "wild":
        return [sum(p[k] * sigmoid(table[k, j]) for k in range(14)) for j in range(32)]
    return [sigmoid(sum(p[k] * (table[k, j] >= 0.2) for k in range(14))) for j in range(32)]


def naive_q_emo(i, table):
    p = [sigmoid(v) for v in Z_AU[i]]
    return [sum(p[j] * row[j] for j in range(32)) / sum(row) for row in table]


def test_eq01_matches_naive_loop():
    naive = [-sum(math.log(sigmoid(Z_AU[i, j])) if Y_AU[i, j] else math.log(1 - sigmoid(Z_AU[i, j]))
                  for j in range(32)) for i in range(5)]
    assert np.allclose(mmlfer.loss_au(t(Z_AU), t(Y_AU)), naive, rtol=1e-12)


def test_aus_that_are_not_coded_count_as_nothing():
    """They count neither in the loss (naive sums over the coded AUs) nor in its gradient."""
    y_au = np.where(rng.random((5, 32)) < 0.4, -1, Y_AU)
    y_au[2] = -1
    naive = [-sum(math.log(sigmoid(Z_AU[i, j])) if y_au[i, j] else math.log(1 - sigmoid(Z_AU[i, j]))
                  for j in range(32) if y_au[i, j] >= 0) for i in range(5)]
    z_au = t(Z_AU).requires_grad_()
    loss = mmlfer.loss_au(z_au, t(y_au))
    assert np.allclose(loss.detach(), naive, rtol=1e-12) and loss[2] == 0
    gradient = torch.autograd.grad(loss.sum(), z_au)[0].numpy()
    wanted = np.where(y_au < 0, 0, 1 / (1 + np.exp(-Z_AU)) - y_au)
    assert np.allclose(gradient, wanted, rtol=1e-9, atol=0)


def test_eq02_matches_naive_loop():
    naive = [-math.log(softmax(Z_EMO[i])[Y_EMO[i]]) for i in range(5)]
    assert np.allclose(mmlfer.loss_emo(t(Z_EMO), t(Y_EMO)), naive, rtol=1e-12)


def test_expressions_that_are_not_named_count_as_nothing():
    """Neither in the loss nor in its gradient; the others' values do not change by a bit."""
    y_emo = np.where([True, False, True, False, False], -1, Y_EMO)
    z_emo = t(Z_EMO).requires_grad_()
    loss = mmlfer.loss_emo(z_emo, t(y_emo))
    naive = [0 if k < 0 else -math.log(softmax(Z_EMO[i])[k]) for i, k in enumerate(y_emo)]
    assert np.allclose(loss.detach(), naive, rtol=1e-12) and (loss[[1, 3, 4]] == mmlfer.loss_emo(t(Z_EMO), t(Y_EMO))[[1, 3, 4]]).all()
    gradient = torch.autograd.grad(loss.sum(), z_emo)[0].numpy()
    wanted = [[0 if y_emo[i] < 0 else p - (k == y_emo[i]) for k, p in enumerate(softmax(Z_EMO[i]))] for i in range(5)]
    assert np.allclose(gradient, wanted, rtol=1e-9, atol=1e-15) and not gradient[[0, 2]].any()


def test_eq02_with_shares_matches_naive_loop():
    """-sum_k q_k log p_k, 0 in value and gradient where there is no share; shares of 1 are the hard label."""
    q = rng.dirichlet(np.ones(14), 5)
    q[2], q[3] = 0, np.eye(14)[Y_EMO[3]]
    z_emo = t(Z_EMO).requires_grad_()
    loss = mmlfer.loss_emo(z_emo, torch.tensor(q, dtype=torch.float32))
    q = q.astype(np.float32).astype(float)
    naive = [-sum(share * math.log(p) for share, p in zip(q[i], softmax(Z_EMO[i]))) for i in range(5)]
    assert np.allclose(loss.detach(), naive, rtol=1e-12) and loss[2] == 0
    assert loss[3].item() == pytest.approx(mmlfer.loss_emo(t(Z_EMO), t(Y_EMO))[3].item(), rel=1e-12)
    gradient = torch.autograd.grad(loss.sum(), z_emo)[0].numpy()
    wanted = [[sum(q[i]) * p - q[i, k] for k, p in enumerate(softmax(Z_EMO[i]))] for i in range(5)]
    assert np.allclose(gradient, wanted, rtol=1e-6, atol=1e-12) and not gradient[2].any()


@pytest.mark.parametrize("soft", [False, True])
def test_a_row_without_any_label_has_l_am_alone(soft):
    """All three losses of rows with both labels, one or none; L^AM is as without the masks."""
    y_emo, y_au = np.where([0, 1, 0, 1, 0], -1, Y_EMO), np.where(np.array([[0, 0, 1, 1, 0]]).T, -1, Y_AU)
    q = np.where((y_emo >= 0)[:, None], np.eye(14)[Y_EMO], 0)
    statistics = mmlfer.Statistics.of(t(TABLE["wild"]), "wild")
    losses = mmlfer.all_losses(t(Z_EMO), t(Z_AU), t(q) if soft else t(y_emo), t(y_au), statistics)
    whole = mmlfer.all_losses(t(Z_EMO), t(Z_AU), t(Y_EMO), t(Y_AU), statistics)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1]])
    assert torch.allclose(losses, whole * mask, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["wild", "lab"])
def test_eq05_to_eq09_match_naive_loops(form):
    table = TABLE[form]
    used = (table >= 0.2).astype(float) if form == "lab" else table
    dm1 = [-sum(sigmoid(Z_AU[i, j]) * math.log(naive_q_au(i, table, form)[j]) for j in range(32))
           for i in range(5)]
    dm2 = [-sum(softmax(Z_EMO[i])[k] * math.log(naive_q_emo(i, used)[k]) for k in range(14))
           for i in range(5)]
    z_emo, z_au = t(Z_EMO), t(Z_AU)
    assert np.allclose(mmlfer.loss_dm1(z_emo, z_au, t(used), form), dm1, rtol=1e-12)
    assert np.allclose(mmlfer.loss_dm2(z_emo, z_au, t(used)), dm2, rtol=1e-12)
    assert np.allclose(mmlfer.loss_am(z_emo, z_au, mmlfer.Statistics.of(t(table), form)), np.add(dm1, dm2), rtol=1e-12)


@pytest.mark.parametrize("form", ["wild", "lab"])
def test_without_any_statistics_the_alignment_loss_is_nothing(form):
    z_emo, z_au = (torch.randn(3, n, generator=torch.manual_seed(n), requires_grad=True) for n in (5, 7))
    loss = mmlfer.loss_am(z_emo, z_au, mmlfer.Statistics.of(torch.zeros(5, 7), form))
    gradients = torch.autograd.grad(loss.sum(), (z_emo, z_au))
    assert all(part.abs().max() < 1e-4 for part in (loss, *gradients))


@pytest.mark.parametrize("form", ["wild", "lab"])
def test_expressions_left_out_match_naive_loops(form):
    """Expressions whose row in the table is all zeros: they are neither in the softmax nor in the sums of Eqs. 5, 7 and
    8, and the loss is multiplied by the others' share of the whole softmax. That share has no gradient, and neither have
    the logits that are left out."""
    table, kept = TABLE[form].copy(), [k for k in range(14) if k not in (2, 7)]
    table[[2, 7]] = 0
    used = (table >= 0.2).astype(float) if form == "lab" else table
    naive = []
    for i in range(5):
        p = dict(zip(kept, softmax(Z_EMO[i, kept])))
        p_au = [sigmoid(v) for v in Z_AU[i]]
        if form == "wild":
            q_au = [sum(p[k] * sigmoid(table[k, j]) for k in kept) for j in range(32)]
        else:
            q_au = [sigmoid(sum(p[k] * used[k, j] for k in kept)) for j in range(32)]
        q_emo = {k: sum(a * v for a, v in zip(p_au, used[k])) / sum(used[k]) for k in kept}
        both = -sum(a * math.log(q) for a, q in zip(p_au, q_au)) - sum(p[k] * math.log(q_emo[k]) for k in kept)
        naive.append(sum(softmax(Z_EMO[i])[k] for k in kept) * both)
    z_emo, z_au = t(Z_EMO).requires_grad_(), t(Z_AU).requires_grad_()
    loss = mmlfer.loss_am(z_emo, z_au, mmlfer.Statistics.of(t(table), form))
    assert np.allclose(loss.detach(), naive, rtol=1e-12)
    share = t(Z_EMO).softmax(1)[:, kept].sum(1)
    alone = share * mmlfer.loss_am(z_emo[:, kept], z_au, mmlfer.Statistics.of(t(table[kept]), form))
    for ours, theirs in zip(*(torch.autograd.grad(x.sum(), [z_emo, z_au]) for x in (loss, alone))):
        assert np.allclose(ours, theirs, rtol=1e-9, atol=1e-15)
    assert not torch.autograd.grad(mmlfer.loss_am(z_emo, z_au, mmlfer.Statistics.of(t(table), form)).sum(), z_emo)[0][:, [2, 7]].any()


def test_paper_example_of_au_9():
    p = torch.zeros(1, 14, dtype=torch.float64)
    p[0, mmlfer.EMOTIONS.index("fearfully angry")] = 1
    q = mmlfer.aus_from_expressions(p, t(TABLE["wild"]), "wild")
    assert q[0, mmlfer.AUS.index(9)].item() == pytest.approx(sigmoid(0.56))


def test_losses_stay_finite_at_extreme_logits():
    z_emo = torch.full((2, 14), -80.0)
    z_emo[:, 3] = 80
    z_au = torch.tensor([[-120.0] * 32, [120.0] * 32])
    z_emo.requires_grad_(), z_au.requires_grad_()
    for form, table in TABLE.items():
        losses = mmlfer.all_losses(z_emo, z_au, torch.tensor([0, 3]), torch.zeros(2, 32),
                                   mmlfer.Statistics.of(t(table).float(), form))
        grads = torch.autograd.grad(losses.sum(), [z_emo, z_au])
        assert torch.isfinite(losses).all() and all(torch.isfinite(g).all() for g in grads)


def summary(table):
    """The number of observed AUs; the mean sums of p over expressions: of observed, prototypical and variant AUs."""
    observed, high = table >= 0.2, table >= 0.7
    sums = [(table * m).sum(1).mean() for m in (observed, high, observed & ~high)]
    return int(observed.any(0).sum()), *np.round(sums, 2)


def test_committed_tables_give_the_papers_sums():
    assert summary(TABLE["wild"]) == (13, 2.85, 0.73, 2.12)
    assert summary(TABLE["lab"])[0] == 15
    k = mmlfer.EMOTIONS.index("fearfully angry")
    assert TABLE["wild"][k].sum() == pytest.approx(5.54)
    assert TABLE["lab"][k].sum() == pytest.approx(3.90)


# Table 2 as counts of right answers over the test sizes of the 14 expressions
TEST_SIZES = (126, 54, 36, 44, 25, 178, 43, 113, 6, 44, 194, 37, 1, 8)
TABLE_2 = {
    "STL": ((57.14, 18.52, 11.11, 9.09, 12.0, 73.03, 39.53, 78.76, 0, 29.55, 64.95, 0, 0, 0),
            51.49, 28.12),
    "MTL": ((62.7, 18.52, 8.33, 11.36, 24.0, 71.35, 41.86, 74.34, 0, 27.27, 71.65, 2.7, 0, 0),
            53.25, 29.58),
    "MML": ((77.78, 7.41, 27.78, 13.64, 20.0, 62.92, 41.86, 61.95, 0, 25.0, 84.54, 8.11, 0, 12.5),
            55.23, 31.68),
}


@pytest.mark.parametrize("method", TABLE_2)
def test_metrics_give_the_papers_table_2(method):
    rates, acc, diag = TABLE_2[method]
    confusion = np.zeros((14, 14), int)
    for k, (rate, n) in enumerate(zip(rates, TEST_SIZES)):
        right = round(rate / 100 * n)
        assert 100 * right / n == pytest.approx(rate, abs=0.006)
        confusion[k, k], confusion[k, (k + 1) % 14] = right, n - right
    numbers = mmlfer.expression_metrics(confusion, mmlfer.EMOTIONS)
    assert (round(100 * numbers["accuracy"], 2), round(100 * numbers["diag"], 2)) == (acc, diag)


def test_metrics_leave_out_what_is_undefined():
    numbers = mmlfer.expression_metrics(mmlfer.confusion_matrix([0, 0, 1], [0, 1, 1], 14), mmlfer.EMOTIONS)
    assert numbers["diag"] == 0.75 and numbers["macro_f1"] == pytest.approx(2 / 3)
    assert numbers["per_class"]["happily sad"] is None
    y, p = np.zeros((4, 32), int), np.zeros((4, 32), bool)
    y[:3, 0], p[1:4, 0], p[0, 1] = 1, True, True
    aus = mmlfer.au_metrics(y, p, mmlfer.AUS)
    assert aus["au_f1"]["1"] == pytest.approx(2 / 3) and aus["au_f1"]["2"] == 0
    assert aus["au_f1"]["4"] is None and aus["au_f1_macro"] == pytest.approx(1 / 3)
