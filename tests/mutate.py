"""Put plausible faults into a copy of the tree, one at a time, and see whether the tests notice.

    python tests/mutate.py [NAME ...] [-j N] [--list]

A NAME selects the faults whose name begins with it; without one, all run. For each fault the tests
that must fail are run, the nearest alone, in a temporary copy of the checkout's files, in a child
process that has torch already. Exit code 1 if a fault survives that is not explained as
equivalent. No part of pytest or CI; for Linux and macOS.
"""

import argparse
import concurrent.futures
import functools
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    name: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: str  # "losses::test_x, psi[mal]": of tests/test_losses.py, and a short name of NEAREST
    why: str = ""  # why it may survive: it changes nothing


M = "mmlfer.py"
WEIGHTS = "mmlfer_commands/pretrain.py"
STATS, TABLE, BUILD, PREDICT, CROP, EXPORT, SYNTH, PLOT = (
    f"mmlfer_commands/{name}.py" for name in ("stats", "table", "build", "predict", "crop", "export", "synth", "plot"))
NEAREST = {  # short names of tests that many faults name
    "theta": "reference::test_theta", "psi": "reference::test_psi", "log": "reference::test_log",
    "buffers": "reference::test_running_statistics",
    "seeds": "reference::test_seed_reaches_the_net_and_the_batches",
    "am_loss": "losses::test_eq05_to_eq09_match_naive_loops",
    "half": "bilevel::test_psi_starts_at_weights_of_one_half", "fixed": "bilevel::test_fixed_weights_are_the_methods",
    "constants": "details::test_constants_of_the_paper_are_the_defaults",
    "resume": "details::test_a_resumed_run_has_its_meta_net_its_schedule_and_its_batches",
    "skip": "details::test_labels_stay_with_their_images_when_bad_ones_are_left_out",
    "numbers": "details::test_evaluation_of_150_faces_matches_naive_counts",
    "rafce": "data::test_rafce_is_recognised_by_its_counts",
    "nearly": "data::test_what_is_nearly_rafce_is_not_called_so",
    "labels": "data::test_label_files_as_people_have_them",
    "found": "data::test_images_are_found_where_people_have_them",
    "place": "details::test_the_inner_place_of_an_image_is_preferred",
    "resized": "details::test_images_are_resized_bilinearly",
    "disk": "details::test_a_file_is_whole_on_the_disk_before_it_takes_its_name",
    "least": "details::test_least_numbers_of_images",
    "best": "details::test_best_is_the_first_epoch_of_the_highest_validation_accuracy",
    "tested": "details::test_best_and_last_of_the_test_are_those_checkpoints",
}

FAULTS = [
    # the losses
    Fault("loss-au-mean", M, 'reduction="none").sum(1)', 'reduction="none").mean(1)',
          "losses::test_eq01_matches_naive_loop"),
    Fault("loss-emo-smoothed", M, 'cross_entropy(z_emo, y_emo, reduction="none")',
          'cross_entropy(z_emo, y_emo, reduction="none", label_smoothing=0.1)', "losses::test_eq02_matches_naive_loop"),
    Fault("eq5-sigmoid-outside", M, "return p_emo @ torch.sigmoid(table)", "return torch.sigmoid(p_emo @ table)",
          "am_loss[wild]"),
    Fault("lab-sigmoid-inside", M, "return torch.sigmoid(p_emo @ table)", "return p_emo @ torch.sigmoid(table)",
          "am_loss[lab]"),
    Fault("eq7-counts", M, "table.sum(1).log()", "(table > 0).sum(1).log()", "am_loss[wild]"),
    Fault("eq7-undivided", M, " - table.sum(1).log()", "", "am_loss[wild]"),
    Fault("eq7-unstable", M, "torch.logsumexp(log_p_au + table.log(), 2)", "(log_p_au.exp() * table).sum(2).log()",
          "losses::test_losses_stay_finite_at_extreme_logits"),
    Fault("dm1-reversed", M, "-(z_au.sigmoid() * q_au.log())", "-(q_au * z_au.sigmoid().log())", "am_loss[wild]"),
    Fault("dm2-reversed", M, "-(z_emo.softmax(1) * expressions_from_aus(z_au, table))",
          "-(z_emo.log_softmax(1) * expressions_from_aus(z_au, table).exp())", "am_loss[wild]"),
    Fault("am-without-dm1", M, "loss_dm1(z_emo, z_au, table, form) + loss_dm2", "loss_dm2", "am_loss[wild]"),
    Fault("am-without-dm2", M, " + loss_dm2(z_emo, z_au, table)", "", "am_loss[wild]"),
    Fault("lab-keeps-p", M, "table = (table > 0).to(table.dtype)", "pass", "am_loss[lab]"),
    Fault("losses-order", M, "loss_au(z_au, y_au), l_am], 1)", "l_am, loss_au(z_au, y_au)], 1)", "log[mtl]"),
    # their weights
    Fault("weights-attached", M, "meta(f.detach())", "meta(f)",
          "bilevel::test_weights_are_no_path_back_to_the_backbone"),
    Fault("weights-softmax", M, ".sigmoid().unbind(1)", ".softmax(1).unbind(1)", "half[mal-1]"),
    Fault("weights-batch-mean", M, "return torch.stack(columns, 1)",
          "return torch.stack(columns, 1).mean(0, keepdim=True).expand(len(f), -1)", "theta[mal]"),
    Fault("mtl-all-three", M, '"mtl": (1.0, "rho", 0.0)', '"mtl": (1.0, "rho", "rho_am")', "fixed"),
    Fault("mal-weighs-emo", M, '"mal": (1.0, "meta", 0.0)', '"mal": ("meta", 1.0, 0.0)', "half[mal-1]"),
    Fault("am-rhos-swapped", M, '(1.0, "rho", "rho_am")', '(1.0, "rho_am", "rho")', "fixed"),
    Fault("stl-with-aus", M, '"stl": (1.0, 0.0, 0.0)', '"stl": (1.0, "rho", 0.0)', "fixed"),
    Fault("meta-not-zero", M, "torch.nn.init.zeros_(meta.weight)", "pass", "half[mal-1]"),
    Fault("meta-bias-not-zero", M, "torch.nn.init.zeros_(meta.bias)", "pass", "half[mal-1]"),
    # the hypergradient
    Fault("theta-star-uphill", M, "{n: p - alpha[n] * g for", "{n: p + alpha[n] * g for", "psi[mal2]"),
    Fault("theta-star-one-rate", M, '{id(p): group["lr"] for', '{id(p): optimizer.param_groups[0]["lr"] for',
          "psi[mal]"),
    Fault("look-ahead-moves-buffers", M, "{name: b.clone() for", "{name: b for", "buffers[mal]"),
    Fault("val-summed", M, "loss_emo(outputs[1], y_emo).mean()", "loss_emo(outputs[1], y_emo).sum()", "psi[mal]"),
    Fault("jvp-without-alpha", M, "v_n.mul_(alpha[name])", "v_n", "psi[mal]"),
    Fault("tangent-conv-weight-alone", M, "return out if dx is None else", "return out if True else", "psi[mal]"),
    Fault("tangent-bn-input-lost", M, "        dx, x, layer.weight, None, None, mean",
          "        0 * dx, x, layer.weight, None, None, mean", "psi[mal]"),
    Fault("tangent-relu-open", M, "torch.ops.aten.threshold_backward(dx, y, 0)", "dx", "psi[mal]"),
    Fault("tangent-pool-of-tangents", M, 'return dx.flatten(2).gather(2, where.flatten(2)).view_as(y)',
          "return pool(dx, layer.kernel_size, layer.stride, layer.padding)[0]", "psi[mal]"),
    Fault("tangent-linear-input-lost", M, ' + linear(dx, layer.weight)', "", "psi[mal]"),
    # the step
    Fault("gradients-add-up", M, "run.opt.zero_grad()", "pass", "theta[stl]"),
    Fault("theta-never", M, "run.opt.step()", "pass", "theta[stl]"),
    # the nets
    Fault("no-scaling", M, "x.to(self.mean.dtype) / 255", "x.to(self.mean.dtype)",
          "details::test_a_backbone_is_normalised_as_it_was_trained"),
    Fault("normalisation-swapped", M, "- self.mean) / self.std", "- self.std) / self.mean",
          "details::test_a_backbone_is_normalised_as_it_was_trained"),
    Fault("weights-not-finite", "mmlfer_commands/pretrain.py", "not given.to_dense().isfinite().all()",
          "given.to_dense().isnan().all()",
          "details::test_weights_that_are_not_finite_are_refused"),
    Fault("imagenet-not-loaded", WEIGHTS,
          'net.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})', "pass",
          "details::test_imagenet_tensors_are_all_loaded"),
    Fault("partition-codes", M, "TRAIN, TEST, VAL = 0, 1, 2", "TRAIN, TEST, VAL = 0, 2, 1",
          "details::test_names_and_numbers_are_the_papers"),
    Fault("expressions-order", M, '"sadly fearful", "sadly angry",', '"sadly angry", "sadly fearful",',
          "details::test_names_and_numbers_are_the_papers"),
    Fault("au-table-order", M, '43: "eyes closed",', '43: "eyes closed", 44: "squint",',
          "details::test_names_and_numbers_are_the_papers"),
    Fault("partition-by-row", M, "np.array([split[n][1] for n in names])",
          "np.array([value for _, value in split.values()])", "labels"),
    Fault("aus-by-row", M, "for number, _ in aus[name][1]]] = 1", "for number, _ in list(aus.values())[i - 1][1]]] = 1",
          "labels"),
    Fault("aus-sides-kept-apart", M, "(match[1] + match[3]).upper()", "match[1] + match[3]",
          "data::test_au_tokens_keep_their_sides_for_drawing"),
    Fault("byte-order-mark", M, 'encoding="utf-8-sig"', 'encoding="utf-8"', "labels"),
    Fault("doubled-rows", M, "if rows.get(parts[0], (0, value))[1] != value:", "if False:",
          "data::test_broken_label_files_end_in_one_line[twice]"),
    Fault("missing-rows", M, "for i, j in ((0, 1), (1, 0), (0, 2), (2, 0)):", "for i, j in ((0, 1), (0, 2)):",
          "data::test_broken_label_files_end_in_one_line[extra row]"),
    Fault("code-too-high", M, "int(text) > top", "int(text) > top + 1",
          "data::test_broken_label_files_end_in_one_line[partition 3]"),
    Fault("rafce-total", M, "RAFCE_TOTALS = (676,", "RAFCE_TOTALS = (667,", "rafce"),
    Fault("rafce-test-size", M, "RAFCE_TEST = (126, 54,", "RAFCE_TEST = (126, 45,", "rafce"),
    Fault("rafce-split", M, '"val": 931}', '"val": 913}', "rafce"),
    Fault("rafce-without-totals", M, "(counts(faces.y_emo), test, splits) == (RAFCE_TOTALS, RAFCE_TEST, RAFCE_SPLITS)",
          "(test, splits) == (RAFCE_TEST, RAFCE_SPLITS)", "nearly[expression]"),
    Fault("rafce-without-test-sizes", M,
          "(counts(faces.y_emo), test, splits) == (RAFCE_TOTALS, RAFCE_TEST, RAFCE_SPLITS)",
          "(counts(faces.y_emo), splits) == (RAFCE_TOTALS, RAFCE_SPLITS)", "nearly[test sizes]"),
    Fault("rafce-without-partition", M,
          "(counts(faces.y_emo), test, splits) == (RAFCE_TOTALS, RAFCE_TEST, RAFCE_SPLITS)",
          "(counts(faces.y_emo), test) == (RAFCE_TOTALS, RAFCE_TEST)", "nearly[partition]"),
    Fault("describe-transposed", M, "for code in SPLITS.values()]\n    for name",
          "for code in sorted(SPLITS.values(), reverse=True)]\n    for name",
          "details::test_describe_counts_every_expression_and_partition"),
    Fault("describe-without-aus", M, "(active == 0).sum()", "(active <= 1).sum()",
          "details::test_describe_counts_every_expression_and_partition"),
    Fault("least-off-by-one", M, "if n < least:", "if n <= least:", "least"),
    Fault("least-validation", M, "1 if code == TEST else batch_size", "1 if code != TRAIN else batch_size", "least"),
    Fault("least-aus", M, "if active < 0.1:", "if active < 0.01:", "least"),
    Fault("null-in-capitals", M, 'if text.lower() == "null":', 'if text == "null":',
          "details::test_au_tokens_in_every_spelling"),
    Fault("sides-before-the-number-alone", M, 'r"([A-Za-z]*)([0-9]{1,3})([A-Za-z]*)"', 'r"([A-Za-z]*)([0-9]{1,3})()"',
          "details::test_au_tokens_in_every_spelling"),
    # images
    Fault("stem-with-aligned", M, 'Path(name).stem.removesuffix("_aligned")', "Path(name).stem",
          "found[0001_aligned.jpg-aligned]"),
    Fault("place-last-wins", M, "index.setdefault(stem(path), path)", "index[stem(path)] = path", "place[]"),
    Fault("place-raf-au-first", M, 'for base in (folder, folder / "RAF-AU")', 'for base in (folder / "RAF-AU", folder)',
          "place[]"),
    Fault("alpha-on-black", M, 'Image.new("RGBA", image.size, "white")', 'Image.new("RGBA", image.size, "black")',
          "data::test_pictures_of_every_kind_are_read_as_a_person_sees_them[RGBA]"),
    Fault("resize-nearest", M, "Image.Resampling.BILINEAR", "Image.Resampling.NEAREST", "resized[64-64]"),
    Fault("resize-bicubic", M, "Image.Resampling.BILINEAR", "Image.Resampling.BICUBIC", "resized[64-64]"),
    Fault("images-bgr", M, "image.transpose(2, 0, 1), True", "image[:, :, ::-1].transpose(2, 0, 1), True", "skip"),
    Fault("images-turned", M, "image.transpose(2, 0, 1), True", "image.transpose(2, 1, 0), True", "log[stl]"),
    Fault("skip-images-shifted", M, "torch.from_numpy(images[good])", "torch.from_numpy(images[: good.sum()])", "skip"),
    # files
    Fault("not-atomic", M, "os.replace(part, target)", "target.write_bytes(part.read_bytes()), part.unlink()", "disk"),
    Fault("part-left", M, "part.unlink(missing_ok=True) if os.path.isfile(part) else None", "pass",
          "details::test_a_write_that_fails_leaves_the_old_file_alone"),
    # statistics
    Fault("observed-above", M, "if au != 11 and p >= OBSERVED:", "if au != 11 and p > OBSERVED:",
          "details::test_statistics_under_20_percent_count_as_nothing"),
    Fault("observed-25", M, "OBSERVED, PROTOTYPICAL = 0.2, 0.7", "OBSERVED, PROTOTYPICAL = 0.25, 0.7",
          "losses::test_committed_tables_give_the_papers_sums"),
    Fault("table-cell", "stats/wild.yaml", "9: 0.24", "9: 0.25",
          "details::test_table_1_has_the_papers_sums_along_both_sides[wild]"),
    Fault("table-columns-swapped", "stats/wild.yaml", "9: 0.29, 10: 0.29, 12: 0.22", "9: 0.22, 10: 0.29, 12: 0.29",
          "details::test_table_1_has_the_papers_sums_along_both_sides[wild]"),
    Fault("table-lab-cell", "stats/lab.yaml", "15: 0.83", "15: 0.38",
          "details::test_table_1_has_the_papers_sums_along_both_sides[lab]"),
    # metrics
    Fault("confusion-transposed", M, "np.asarray(truth) * k + np.asarray(pred)",
          "np.asarray(pred) * k + np.asarray(truth)", "numbers"),
    Fault("undefined-is-zero", M, "float(top / bottom) if bottom else None", "float(top / bottom) if bottom else 0.0",
          "losses::test_metrics_leave_out_what_is_undefined"),
    Fault("f1-of-absent", M, "2 * r / (a + b) if a else None", "2 * r / (a + b) if a + b else None", "numbers"),
    Fault("mean-over-undefined", M, "float(np.mean(defined)) if", "float(np.sum(defined) / len(values)) if", "numbers"),
    Fault("au-threshold", M, "p_au > 0.5)", "p_au > 0.1)", "numbers"),
    Fault("au-f1-is-recall", M, "y_au.sum(0) + active.sum(0)", "2 * y_au.sum(0)", "numbers"),
    Fault("evaluated-in-training-mode", M, "    net.eval()\n    with torch.no_grad", "    with torch.no_grad",
          "log[stl]"),
    Fault("report-columns-swapped", M, "zip(numbers[\"per_class\"].items(), confusion.sum(1), expression_f1(confusion))",
          "zip(numbers[\"per_class\"].items(), confusion.sum(0), expression_f1(confusion))",
          "details::test_the_report_says_what_the_numbers_are"),
    Fault("report-transposed", M, "for row in confusion.tolist()]\n    return", "for row in confusion.T.tolist()]\n    return",
          "details::test_the_report_says_what_the_numbers_are"),
    # what a run is made of
    Fault("form-always-wild", M, '"lab" if cfg.stats == "lab" else "wild"', '"wild"',
          "details::test_form_follows_the_statistics_unless_given[lab-auto-lab], psi[mml-lab]"),
    Fault("stats-always-wild", M, "torch.tensor(load_stats(cfg.stats)", 'torch.tensor(load_stats("wild")',
          "psi[mml-lab]"),
    Fault("seed-not-to-net", M, "torch.manual_seed(cfg.seed)", "torch.manual_seed(0)", "seeds"),
    Fault("backbone-at-heads-rate", M, '"lr": cfg.lr_backbone}', '"lr": cfg.lr_heads}', "theta[stl]"),
    Fault("heads-at-backbones-rate", M, '"lr": cfg.lr_heads}', '"lr": cfg.lr_backbone}', "theta[stl]"),
    Fault("no-momentum", M, "momentum=cfg.momentum, ", "", "theta[stl]"),
    Fault("no-weight-decay", M, ", weight_decay=cfg.weight_decay)", ")", "theta[stl]"),
    Fault("nesterov", M, "weight_decay=cfg.weight_decay)", "weight_decay=cfg.weight_decay, nesterov=True)",
          "theta[stl]"),
    Fault("onecycle-swapped", M, "[cfg.lr_backbone, cfg.lr_heads], cfg", "[cfg.lr_heads, cfg.lr_backbone], cfg",
          "theta[mtl], log[mtl]"),
    Fault("onecycle-length", M, "cfg.epochs * steps, cycle", "cfg.epochs * steps + 1, cycle", "log[mtl]"),
    Fault("onecycle-momentum", M, ", cycle_momentum=False)", ")", "theta[mtl]"),
    Fault("onecycle-by-epochs", M, "if run.scheduler:", "if run.scheduler and i == run.steps - 1:", "log[mtl]"),
    Fault("digest-of-another-file", M, "hashlib.sha256(Path(__file__).read_bytes())",
          'hashlib.sha256((HERE / "setup.cfg").read_bytes())', "details::test_a_run_says_what_made_it"),
    Fault("places-from-here", M, "options[name] = str(Path(options[name]).resolve())", "pass",
          "details::test_places_given_from_here_hold_from_elsewhere"),
    # resuming
    Fault("step-not-restored", M, '("epoch", "step", "elapsed", "log"', '("epoch", "elapsed", "log"', "resume"),
    Fault("resume-other-batches", M, "batches.epoch(run.epoch), time", "batches.epoch(run.epoch + 9 * run.step), time",
          "resume"),
    Fault("resume-from-the-epochs-first-batch", M, "*batches.pair(*plan[i])", "*batches.pair(*plan.pop(0))", "resume"),
    Fault("signals-not-given-back", M, "signal.signal(number, handler)", "pass", "resume"),
    # batches
    Fault("seed-not-to-batches", M, "[self.seed, 3, epoch]", "[0, 3, epoch]", "seeds"),
    Fault("batches-of-epoch-0", M, "[self.seed, 3, epoch]", "[self.seed, 3, 0]", "seeds"),
    Fault("validation-not-permuted", M, "[rng.permutation(rows) for _",
          "[rng.permutation(rows) if rows is self.rows[0] else rows for _", "seeds, psi[mal]"),
    Fault("training-not-permuted", M, "[rng.permutation(rows) for _",
          "[rng.permutation(rows) if rows is self.rows[1] else rows for _", "seeds, theta[stl]"),
    Fault("validation-one-permutation", M, "[rng.permutation(rows) for _ in range(-(-n // len(rows)))]",
          "[rng.permutation(rows)] * -(-n // len(rows))", "seeds"),
    Fault("validation-is-test", M, "for code in (TRAIN, VAL)]", "for code in (TRAIN, TEST)]", "seeds"),
    Fault("no-flips", M, "rng.random(n) < 0.5", "rng.random(n) < 0", "seeds"),
    Fault("flips-upside-down", M, "torch.where(flip[:, None, None, None], x.flip(3), x)",
          "torch.where(flip[:, None, None, None], x.flip(2), x)", "data::test_batches_flip_images_and_keep_labels"),
    Fault("batch-labels-in-order", M, "self.y_emo[index], self.y_au[index]",
          "self.y_emo[index.sort()[0]], self.y_au[index]", "data::test_batches_flip_images_and_keep_labels"),
    Fault("validation-batch-is-training", M, "self.take(index, flip), self.take(val_index, val_flip)",
          "self.take(index, flip), self.take(index, flip)", "psi[mal]"),
    Fault("training-batch-is-validation", M, "self.take(index, flip), self.take(val_index, val_flip)",
          "self.take(val_index, val_flip), self.take(val_index, val_flip)", "theta[mtl]"),
    Fault("form-chosen-on-other-batches", M, "choose_hypergrad(run, *batches.pair(*batches.epoch(0)[0]))",
          "run.hypergrad.replace('auto', 'jvp')", "train::test_the_form_is_chosen_once_before_the_first_step"),
    # the loop
    Fault("best-on-ties", M, 'if numbers["accuracy"] > best:', 'if numbers["accuracy"] >= best:', "best"),
    Fault("best-always", M, 'if numbers["accuracy"] > best:', "if True:", "best"),
    Fault("best-by-diag", M, 'if numbers["accuracy"] > best:', 'if numbers["diag"] > best:', "best"),
    Fault("best-of-the-last-two", M, 'for row in run.log), default=-1.0)', 'for row in run.log[-1:]), default=-1.0)',
          "best"),
    Fault("best-and-last-exchanged", M, 'result["best"] = {"epoch": state["epoch"], **evaluate(net, test',
          'result["best"] = {"epoch": state["epoch"], **evaluate(run.net, test', "tested"),
    Fault("log-rate-of-heads", M, 'run.opt.param_groups[0]["lr"]', 'run.opt.param_groups[1]["lr"]', "log[stl]"),
    Fault("log-batches-a-second", M, "run.steps * run.cfg.batch_size / run.elapsed", "run.steps / run.elapsed",
          "details::test_the_log_counts_images_a_second"),
    Fault("not-finite-unseen", M, "if bad.any():", "if bad.all():",
          "train::test_what_is_not_finite_stops_before_the_checkpoint[l_emo-L^emo]"),
    # the paper's constants
    Fault("default-epochs", M, "epochs: int = setting(60,", "epochs: int = setting(50,", "constants"),
    Fault("default-batch", M, "batch_size: int = setting(16,", "batch_size: int = setting(32,", "constants"),
    Fault("default-size", M, "size: int = setting(112,", "size: int = setting(128,", "constants"),
    Fault("default-lr-backbone", M, "lr_backbone: float = setting(0.001,", "lr_backbone: float = setting(0.01,",
          "constants"),
    Fault("default-lr-heads", M, "lr_heads: float = setting(0.01,", "lr_heads: float = setting(0.001,", "constants"),
    Fault("default-lr-meta", M, "lr_meta: float = setting(0.01,", "lr_meta: float = setting(0.001,", "constants"),
    Fault("default-momentum", M, "momentum: float = setting(0.9,", "momentum: float = setting(0.8,", "constants"),
    Fault("default-decay", M, "weight_decay: float = setting(5e-4,", "weight_decay: float = setting(5e-3,",
          "constants"),
    # training, as it reads today
    Fault("onecycle-never", M, 'if cfg.schedule == "constant":', "if True:", "theta[mtl]"),
    Fault("parts-not-restored", M, "part.load_state_dict(state[name])", "pass", "resume"),
    Fault("meta-not-restored", M, "part.load_state_dict(state[name])",
          'name == "meta" or part.load_state_dict(state[name])', "resume"),
    Fault("schedule-not-restored", M, "part.load_state_dict(state[name])",
          'name == "scheduler" or part.load_state_dict(state[name])', "resume"),
    Fault("momentum-not-restored", M, "part.load_state_dict(state[name])",
          'name == "opt" or part.load_state_dict(state[name])', "resume"),
    Fault("values-not-restored", M, "setattr(self, name, state[name])", "pass", "resume"),
    Fault("trace-not-restored", M, 'self.trace.copy_(state["trace"])', "pass", "resume"),
    Fault("last-is-best", M, 'result["last"] = {"epoch": run.epoch, **evaluate(run.net, test, options)}',
          'result["last"] = {"epoch": run.epoch, **evaluate(load_net(out / "best.pt")[0], test, options)}', "tested"),
    Fault("best-is-last", M, '**evaluate(net, test, options)}', '**evaluate(run.net, test, options)}', "tested"),
    Fault("tested-on-validation", M, 'test, options = faces.of("test"), vars(run.cfg)',
          'test, options = faces.of("val"), vars(run.cfg)', "tested"),
    Fault("validated-on-training", M, 'val = faces.of("val")', 'val = faces.of("train")', "log[stl]"),
    Fault("log-losses-swapped", M, '"train_loss_au": means.l_au', '"train_loss_au": means.l_am', "log[mtl]"),
    Fault("log-weight-of-emo", M, '"w_au": means.w_au', '"w_au": means.w_emo', "log[mtl]"),
    Fault("form-wild-alone", M, '{"auto": "lab" if cfg.stats == "lab" else "wild"}.get(cfg.form, cfg.form)', '"wild"',
          "theta[mml-lab]"),
    Fault("au-f1-of-stl", M, "if trains_aus(config)", "if True",
          "runs::test_aus_of_a_classifier_that_nothing_trains_have_no_f1"),
    Fault("au-head-not-trained", M, "heads = [*net.fe.parameters(), *net.au.parameters()]", "heads = [*net.fe.parameters()]",
          "theta[mtl]"),
    Fault("place-outer-first", M, 'for sub in ("aligned/aligned", "aligned", "")', 'for sub in ("aligned", "aligned/aligned", "")',
          "place"),
    # the step, as it reads today
    Fault("val-of-training-batch", M, "args = omega, val[:2],", "args = omega, (val[0].flip(0), val[1]),", "psi[mal]"),
    Fault("jvp-uphill", M, "-d_losses / len(d_losses)", "d_losses / len(d_losses)", "psi[mal]"),
    Fault("jvp-summed", M, "-d_losses / len(d_losses)", "-d_losses", "psi[mal]"),
    Fault("jvp-first-order", M, "g.mul_(-alpha[name]).add_(p.detach())", "g.mul_(0).add_(p.detach())", "psi[mal]"),
    Fault("psi-uphill", M, "p.add_(g, alpha=-run.cfg.lr_meta)", "p.add_(g, alpha=run.cfg.lr_meta)", "psi[mal]"),
    Fault("psi-never", M, "p.add_(g, alpha=-run.cfg.lr_meta)", "pass", "psi[mal]"),
    Fault("psi-at-heads-rate", M, "alpha=-run.cfg.lr_meta", "alpha=-run.cfg.lr_heads", "psi[mal]"),
    Fault("psi-with-decay", M, "p.add_(g, alpha=-run.cfg.lr_meta)",
          "p.add_(g + run.cfg.weight_decay * p, alpha=-run.cfg.lr_meta)", "psi[mal]"),
    Fault("base-old-weights", M, "omega = loss_weights(run.meta, taped.f, run.cfg)  # (B, 3), of psi hat", "pass",
          "theta[mal]"),
    Fault("base-summed", M, "(omega.detach() * taped.losses).sum(1).mean()", "(omega.detach() * taped.losses).sum()",
          "theta[stl]"),
    Fault("base-unweighted", M, "(omega.detach() * taped.losses)", "(omega.detach().gt(0) * taped.losses)", "theta[mal]"),
    Fault("base-batch-mean", M, "(omega.detach() * taped.losses)", "(omega.detach().mean(0) * taped.losses)", "theta[mal]"),
    Fault("base-weights-attached", M, "(omega.detach() * taped.losses)", "(omega * taped.losses)", "theta[mal], psi[mal]",
          "the features are detached in loss_weights, and psi moves by meta-test's gradient alone"),
    Fault("tape-of-any-layer", M, "if recorded != name:", "if False:",
          "bilevel::test_a_tape_entry_must_be_of_the_layer_that_asks"),
    Fault("unknown-layers-pass", M, "        if strange:\n", "        if False:\n",
          "bilevel::test_layers_without_a_rule_are_refused"),
    Fault("conv-bias-dropped", M, 'd["weight"], d.get("bias"))  # like y', 'd["weight"], None)  # like y',
          "bilevel::test_tangents_match_finite_differences"),
    Fault("pool-dilation-dropped", M, "layer.padding, layer.dilation, layer.ceil_mode)", "layer.padding)",
          "bilevel::test_tangents_match_finite_differences"),
    Fault("layers-stay-patched", M, 'vars(layer).pop("forward", None)', "pass",
          "bilevel::test_tangents_match_finite_differences"),
    Fault("choosing-moves-buffers", M, "run.net.load_state_dict(buffers, strict=False)", "pass",
          "bilevel::test_auto_compares_both_forms_and_chooses_jvp"),
    Fault("choosing-always-jvp", M, "if difference < 1e-3 else", "if True else",
          "bilevel::test_auto_falls_back_when_the_forms_differ"),
    # images, files and run folders
    Fault("originals-win", M, "key=lambda path: not is_aligned(path)", "key=is_aligned",
          "images::test_aligned_crops_win_over_originals"),
    Fault("mixture-unsaid", M, "if 0 < len(plain) < len(found):", "if False:",
          "images::test_a_mixture_of_aligned_and_other_images_is_warned_of"),
    Fault("twins-share-an-image", M, "        if first != name:\n", "        if False:\n",
          "images::test_two_rows_of_one_image_are_an_error_that_names_both"),
    Fault("deep-images-black", "mmlfer_commands/crop.py", "(255 / top * pixels)", "(255 / 65535 * pixels)",
          "images::test_deep_images_are_scaled_by_what_they_hold"),
    Fault("exif-ignored", M, "image = ImageOps.exif_transpose(image)", "pass", "data::test_exif_rotation_is_undone"),
    Fault("labels-shifted-by-bad", M, "faces.select(good)", "faces.select(np.arange(int(good.sum())))",
          "images::test_labels_stay_with_their_images_past_every_chunk_and_bad_one"),
    Fault("chunks-lost", M, "range(0, len(paths), AHEAD)", "range(0, len(paths) - AHEAD % 3, AHEAD)",
          "images::test_labels_stay_with_their_images_past_every_chunk_and_bad_one",
          "256 % 3 is 1: one path less, and the last chunk still reaches the end unless it has one path alone"),
    Fault("chunks-overlap", M, "paths[start : start + AHEAD]", "paths[start : start + AHEAD + 1]",
          "images::test_labels_stay_with_their_images_past_every_chunk_and_bad_one"),
    Fault("pipes-hang", M, "    if not os.path.isfile(path):\n", "    if not os.path.exists(path):\n",
          "images::test_skip_bad_images_names_pipes_bombs_and_odd_formats"),
    Fault("no-fsync", M, "os.fsync(file.fileno())", "pass", "files::test_content_reaches_the_disk_before_the_name"),
    Fault("device-replaced", M, "if os.path.exists(path) and not os.path.isfile(path):", "if False:",
          "files::test_a_pipe_is_written_through"),
    Fault("link-replaced", M, "target = Path(os.path.realpath(path))", "target = Path(path)",
          "files::test_a_link_is_followed_and_the_mode_kept"),
    Fault("mode-lost", M, "shutil.copymode(target, part)", "pass", "files::test_a_link_is_followed_and_the_mode_kept"),
    Fault("resume-on-other-data", M, 'if state["data_sha256"] != faces.sha256():', "if False:",
          "runs::test_resume_refuses_another_data_set"),
    Fault("digest-without-partition", M, "self.split.tolist(), self.y_au.tolist())", "self.y_au.tolist())",
          "runs::test_resume_refuses_labels_or_a_partition_that_changed"),
    Fault("eval-of-trained-unsaid", M, 'if trained and split != "train":', "if False:",
          "runs::test_eval_says_so_when_test_images_were_trained_on"),
    Fault("no-lock", M, "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
          "runs::test_a_run_folder_has_one_process_at_a_time"),
    Fault("nan-is-expression-0", M, "if not (p_emo.isfinite().all() and p_au.isfinite().all()):", "if False:",
          "runs::test_outputs_that_are_not_finite_are_no_prediction"),
    Fault("left-in-test-mode", M, "    net.train(mode)\n", "", "runs::test_predicting_leaves_the_net_in_its_mode"),
    Fault("put-in-training-mode", M, "    net.train(mode)\n", "    net.train()\n",
          "runs::test_predicting_leaves_the_net_in_its_mode"),
    Fault("rho-0-counts", M, "any(config.get(source, 1) if", "any(1 if", "runs::test_what_trains_the_au_classifier"),
    Fault("aliases-read", "mmlfer_commands/stats.py", "if self.check_event(yaml.AliasEvent):", "if False:",
          "runs::test_doubled_keys_and_aliases_in_statistics_are_refused"),
    # predict, gradcam, plot, bench
    Fault("predict-zip-anew", "mmlfer_commands/predict.py", "next(answers) if isinstance(crop, np.ndarray) else None",
          "next(zip(*predict_faces(net, as_batch(crops)))) if isinstance(crop, np.ndarray) else None",
          "predict::test_every_image_has_its_own_answer_past_two_batches_with_bad_ones_between"),
    Fault("predict-shifted-by-bad", "mmlfer_commands/predict.py", "next(answers) if isinstance(crop, np.ndarray) else None",
          "next(answers, None)", "predict::test_every_image_has_its_own_answer_past_two_batches_with_bad_ones_between"),
    Fault("predict-bgr", "mmlfer_commands/predict.py", "np.stack(images).transpose(0, 3, 1, 2)",
          "np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)", "predict::test_predict_agrees_with_eval"),
    Fault("predict-none-as-untrained", "mmlfer_commands/predict.py", 'or "none"', 'or "not trained"',
          "predict::test_no_aus_and_no_trained_aus_are_told_apart"),
    Fault("predict-least-first", "mmlfer_commands/predict.py", "np.argsort(-p_emo,", "np.argsort(p_emo,",
          "predict::test_predict_names_expressions_and_aus"),
    Fault("gradcam-without-relu", "mmlfer_commands/gradcam.py", ".sum(1, keepdim=True).relu()", ".sum(1, keepdim=True).abs()",
          "gradcam::test_gradcam_matches_gradients_by_hand"),
    Fault("gradcam-class-0", "mmlfer_commands/gradcam.py", "k = z_emo.argmax(1) if k is None else k",
          "k = z_emo.argmin(1) if k is None else k", "gradcam::test_gradcam_matches_gradients_by_hand"),
    Fault("gradcam-class-ignored", "mmlfer_commands/gradcam.py", "k = z_emo.argmax(1) if k is None else k", "k = z_emo.argmax(1)",
          "gradcam::test_gradcam_matches_gradients_by_hand"),
    Fault("confusion-by-column", "mmlfer_commands/plot.py", "np.maximum(n, 1)[:, None]", "np.maximum(confusion.sum(0), 1)[None]",
          "plot::test_confusion_is_shown_as_shares_of_each_row"),
    Fault("bench-counts-warm-up", "mmlfer_commands/bench.py", "            if round_:\n", "            if True:\n", "bench::test_the_first_round_is_not_counted"),
    # synth, build, table
    Fault("synth-ignores-aus", "mmlfer_commands/synth.py", "draw_face(strengths(parse_aus(aus), rng), rng, size, *person)",
          "draw_face({}, rng, size, *person)", "synth::test_a_face_is_of_its_row_and_seed_alone"),
    Fault("synth-ignores-seed", "mmlfer_commands/synth.py",
          'f"{stem(name)}_aligned.jpg"), row, size, [seed, 2, i])', 'f"{stem(name)}_aligned.jpg"), row, size, [0, 2, i])',
          "synth::test_a_face_is_of_its_row_and_seed_alone"),
    Fault("synth-last-side-wins", "mmlfer_commands/synth.py", "(max(right, amount * (one != \"L\")), max(left, amount * (one != \"R\")))",
          "(amount * (one != \"L\"), amount * (one != \"R\"))", "synth::test_of_an_au_named_twice_the_stronger_moves_each_side"),
    Fault("build-happy-face-surprised", "mmlfer_commands/build.py", "    if second == 0:\n", "    if False:\n",
          "build::test_compound_matches_every_order_read_off"),
    Fault("build-last-of-ties", "mmlfer_commands/build.py", "in itertools.combinations(range(len(p)), 2):",
          "in list(itertools.combinations(range(len(p)), 2))[::-1]:", "build::test_compound_matches_every_order_read_off"),
    Fault("build-seed-ignored", "mmlfer_commands/build.py", "np.random.default_rng([seed, 20])", "np.random.default_rng([0, 20])",
          "build::test_split_is_stratified_and_of_the_seed"),
    Fault("build-originals-win", M, "key=lambda path: not is_aligned(path)", "key=is_aligned",
          "build::test_crops_win_over_originals"),
    Fault("table-signal-of-one-seed", "mmlfer_commands/table.py", "signal = len(d) > 2 and (", "signal = (",
          "table::test_a_loss_is_signal_as_well_but_not_of_two_seeds"),
    Fault("table-signal-one-sided", "mmlfer_commands/table.py", "(low > 1e-9 or high < -1e-9)", "(low > 1e-9)",
          "table::test_a_loss_is_signal_as_well_but_not_of_two_seeds"),
    Fault("table-am-rows-swapped", "mmlfer_commands/table.py", '"am lab": (54.12, 30.15), "am wild": (53.36, 28.02)',
          '"am wild": (54.12, 30.15), "am lab": (53.36, 28.02)', "table::test_the_papers_column_stands_beside_rafce_alone"),
    # what was found to pass unseen, and what stands beside it
    Fault("12-bits-saturated", "mmlfer_commands/crop.py", '("0..255", 255) if pixels.max(initial=0) <= 255', '("0..255", 255) if pixels.max(initial=0) <= 4095',
          "images::test_values_above_255_are_of_16_bits"),
    Fault("stats-above-70-alone-bold", STATS, "if p >= PROTOTYPICAL else f", "if p > PROTOTYPICAL else f",
          "stats::test_at_20_and_70_percent_exactly"),
    Fault("stats-above-70-alone-prototypical", STATS, "prototypical = np.where(p >= PROTOTYPICAL", "prototypical = np.where(p > PROTOTYPICAL",
          "stats::test_at_20_and_70_percent_exactly"),
    Fault("stats-of-all-images", STATS, "(faces.y_emo == k).sum()\n", "max(1, len(faces.names))\n",
          "stats::test_statistics_match_a_naive_count"),
    Fault("table-of-the-last-epoch", TABLE, 'run["best"], run["truth"], run["best"]["pred"]', 'run["last"], run["truth"], run["last"]["pred"]',
          "table::test_tables_give_means_and_spread"),
    Fault("table-deviation-of-a-population", TABLE, "np.std(values, ddof=1)", "np.std(values)", "table::test_tables_give_means_and_spread"),
    Fault("table-best-by-last-epoch", TABLE, 'accuracy = max(float(row["val_acc"]) for row in log)',
          'accuracy = [float(row["val_acc"]) for row in log][-1]', "table::test_best_names_the_options_of_the_best_run"),
    Fault("table-links-passed-over", TABLE, "os.walk(folder, followlinks=True)", "os.walk(folder)",
          "table::test_links_to_folders_are_followed_and_loops_are_not"),
    Fault("search-edge-of-one-value", TABLE, "and min(tried) < max(tried):", "and min(tried) <= max(tried):", "table::test_a_search_that_ends_at_its_edge_says_so"),
    Fault("search-edges-exchanged", TABLE, "((min, \"smallest\", \"smaller\"), (max, \"largest\", \"larger\"))",
          "((max, \"smallest\", \"smaller\"), (min, \"largest\", \"larger\"))", "table::test_a_search_that_ends_at_its_edge_says_so"),
    Fault("search-edge-on-stdout", TABLE, "try {beyond} ones too\", err=True)", "try {beyond} ones too\")", "table::test_a_search_that_ends_at_its_edge_says_so"),
    Fault("build-aus-in-order-of-names", BUILD, "[au[name][1] for name in names], notes", "[au[name][1] for name in sorted(names)], notes",
          "build::test_rows_in_any_order_keep_what_is_theirs"),
    Fault("build-columns-swapped", BUILD, 'BASIC = ("surprised", "fearful", "disgusted",', 'BASIC = ("surprised", "disgusted", "fearful",',
          "build::test_compound_of_six_probabilities"),
    Fault("build-test-as-validation", BUILD, "split[of_k[:n_test]] = TEST", "split[of_k[:n_test]] = VAL",
          "build::test_split_is_stratified_and_of_the_seed"),
    Fault("build-official-partition-passed-over", BUILD, 'for place in (folder, folder / "EmoLabel", folder / "RAF-AU"):',
          'for place in (folder, folder / "EmoLabel"):', "build::test_build_takes_an_official_partition_wherever_labels_are"),
    Fault("predict-aus-shifted", PREDICT, "for au, p in zip(AUS, p_au) if p > 0.5] if trained_aus",
          "for au, p in zip(AUS[1:], p_au) if p > 0.5] if trained_aus",
          "predict::test_every_image_has_its_own_answer_past_two_batches_with_bad_ones_between"),
    Fault("predict-prints-fractions", PREDICT, "{100 * e['p']:.1f} %\" for e", "{e['p']:.1f} %\" for e",
          "predict::test_predict_names_expressions_and_aus"),
    Fault("predict-two-outputs-in-one-file", PREDICT, "    check_two_outputs(csv=csv_path, jsonl=jsonl_path)\n", "",
          "predict::test_one_file_takes_no_two_outputs"),
    Fault("predict-draws-over-linked-photographs", PREDICT, "check_pictures_folder(draw, *paths, *(image.resolve() for image in images))",
          "check_pictures_folder(draw, *paths)", "predict::test_drawing_among_the_inputs_is_refused"),
    Fault("predict-right-to-left", "mmlfer_commands/crop.py", "key=lambda face: face.box[0])", "key=lambda face: -face.box[0])",
          "predict::test_faces_of_photographs_from_left_to_right"),
    Fault("gradcam-truth-by-name-alone", "mmlfer_commands/gradcam.py", "labels.get(places.get(Path(path).resolve()))", "labels.get(stem(path))",
          "gradcam::test_truth_is_known_for_images_of_the_data_alone"),
    Fault("gradcam-weights-of-the-batch", "mmlfer_commands/gradcam.py", "a = gradient.mean((2, 3), keepdim=True)",
          "a = gradient.mean((0, 2, 3), keepdim=True)", "gradcam::test_gradcam_matches_gradients_by_hand"),
    Fault("export-aus-as-logits", "mmlfer_commands/export.py", "return z_emo.softmax(1), z_au.sigmoid()", "return z_emo.softmax(1), z_au",
          "export::test_onnxruntime_answers_as_torch_does"),
    Fault("demo-reader-of-all-faces", "mmlfer_commands/demo.py", "best_by_aus(test.y_au, test.y_emo,", "best_by_aus(faces.y_au, faces.y_emo,",
          "demo::test_demo_trains_and_says_what_to_type_next"),
    Fault("pretrain-share-with-margin", WEIGHTS, "(cosines.argmax(1) == y)", "(logits.argmax(1) == y)",
          "pretrain::test_a_step_is_the_loss_on_flipped_faces_with_the_margin_after_the_warm_up"),
    Fault("pretrain-gradients-add-up", WEIGHTS, "    run.sgd.zero_grad()\n", "",
          "pretrain::test_a_step_is_the_loss_on_flipped_faces_with_the_margin_after_the_warm_up"),
    Fault("pretrain-without-a-lock", WEIGHTS, "contextlib.nullcontext() if world.rank else", "contextlib.nullcontext() if True else",
          "pretrain::test_a_file_has_one_process_at_a_time"),
    Fault("resume-with-other-statistics", M, 'if not np.array_equal(state["table"], load_stats(cfg.stats).astype(np.float32)):', "if False:",
          "runs::test_resume_refuses_statistics_that_changed"),
    Fault("resume-with-options-changed-by-hand", M, 'if {**state["config"], "data": cfg.data, "device": cfg.device} != vars(cfg):', "if False:",
          "runs::test_resume_refuses_options_that_were_changed_by_hand"),
    Fault("run-sh-falls-over-loops", "run.sh", "2>/dev/null || true; }", "; }",
          "run_sh::test_grad_cam_despite_a_byte_order_mark_loops_of_links_and_lost_faces"),
    Fault("learning-rates-of-the-start", M, 'rate = {id(p): group["lr"] for', 'rate = {id(p): group.get("initial_lr", group["lr"]) for', "psi[mal]"),
    # pretrain and the reading of backbones
    Fault("bgr-not-turned", WEIGHTS, "].flip(1)", "].flip(0)", "weights::test_weights_trained_on_bgr_see_the_same_with_rgb"),
    Fault("imagenet-normalisation-lost", WEIGHTS, '"imagenet" if norm == "auto" else norm', '"half" if norm == "auto" else norm',
          "weights::test_imagenet_brings_its_tensors_and_its_normalisation"),
    Fault("casia-of-current-folder-first", M, "(HERE / casia, casia)", "(casia, HERE / casia)",
          "weights::test_auto_takes_the_casia_file_of_the_checkout_then_of_the_current_folder"),
    Fault("casia-not-found", M, "(HERE / casia, casia)", "()",
          "weights::test_auto_takes_the_casia_file_of_the_checkout_then_of_the_current_folder"),
    Fault("misfits-not-finite", WEIGHTS, "elif not given.to_dense().isfinite().all():", "elif False:",
          "details::test_weights_that_are_not_finite_are_refused"),
    # photographs, files of predictions, ONNX
    Fault("photos-border", CROP, "borderMode=cv2.BORDER_REPLICATE", "borderMode=cv2.BORDER_CONSTANT",
          "crop::test_warp_averages_where_it_shrinks_and_continues_the_border"),
    Fault("photos-no-antialias", CROP, "if scale < 1:", "if False:",
          "crop::test_warp_averages_where_it_shrinks_and_continues_the_border"),
    Fault("photos-half-pixel", CROP, "@ (0.5, 0.5) - 0.5", "@ (0.0, 0.0)",
          "crop::test_warp_takes_the_very_pixels, crop::test_warp_of_every_scale_keeps_places"),
    Fault("photos-template-first", CROP, "template = np.median(seen, 0)", "template = seen[0]",
          "crop::test_the_template_is_where_drawn_faces_have_eyes_and_mouth"),
    Fault("photos-detector-rgb", CROP, "image[:, :, ::-1]", "image",
          "crop::test_one_face_in_astronaut_none_in_coffee, crop::test_faces_in_scenes_are_found_and_cropped_on_the_template, crop::test_a_turned_photograph_gives_the_same_crop"),
    Fault("photos-no-close-look", CROP, "for _ in range(4):", "for _ in range(1):",
          "crop::test_faces_in_scenes_are_found_and_cropped_on_the_template, crop::test_a_turned_photograph_gives_the_same_crop"),
    Fault("photos-right-to-left", CROP, "key=lambda face: face.box[0])", "key=lambda face: -face.box[0])",
          "crop::test_faces_in_scenes_are_found_and_cropped_on_the_template"),
    Fault("photos-glance-lost", CROP, ", (GLANCE, GLANCE // 2)):", ",):",
          "crop::test_a_face_that_fills_its_photograph_is_found"),
    Fault("photos-like-ignored", CROP, "    if like:\n", "    if False:\n",
          "crop::test_like_needs_faces, crop::test_crop_writes_faces_and_where_they_were"),
    Fault("photos-exif-lost", M, "image = ImageOps.exif_transpose(image)", "ImageOps.exif_transpose(image)",
          "crop::test_crop_writes_faces_and_where_they_were"),
    Fault("photos-small", CROP, "SMALL = 10", "SMALL = 5",
          "predict::test_small_faces_are_marked"),
    Fault("photos-small-all", CROP, "SMALL = 10", "SMALL = 1000",
          "predict::test_faces_of_photographs_from_left_to_right"),
    Fault("photos-no-face-fails", PREDICT, "    if bad:\n        sys.exit(1)", "    if bad or without:\n        sys.exit(1)",
          "predict::test_faces_of_photographs_from_left_to_right, predict::test_small_faces_are_marked, predict::test_photographs_alone_and_together_give_the_same"),
    Fault("photos-csv-coarse", PREDICT, 'round(e["p"], 6)', 'round(e["p"], 3)',
          "predict::test_predict_names_expressions_and_aus"),
    Fault("photos-search-unbounded", CROP, "min(SEARCH, 2 * longest)", "2 * longest",
          "crop::test_a_photograph_of_thirty_megapixels_is_cropped_from_the_original"),
    Fault("onnx-over-batch", EXPORT, "z_emo.softmax(1)", "z_emo.softmax(0)",
          "export::test_onnxruntime_answers_as_torch_does"),
    Fault("onnx-bgr-said", EXPORT, '"colour_order": "RGB"', '"colour_order": "BGR"',
          "export::test_the_metadata_say_what_a_user_must_know"),
    Fault("onnx-au-names-sorted", EXPORT, "[AU_NAMES[au] for au in AUS]", "sorted(AU_NAMES.values())",
          "export::test_the_metadata_say_what_a_user_must_know"),
    Fault("onnx-unchecked", EXPORT, "if not largest <= CLOSE:", "if False:",
          "export::test_a_model_that_differs_from_torch_is_refused"),
    Fault("onnx-any-epoch", EXPORT, ' if result["epoch"] == state["epoch"] else None', "",
          "export::test_the_accuracy_is_of_this_checkpoint_or_unknown"),
    # AU noise, curves of several methods, what a run says of its labels
    Fault("noise-in-validation", SYNTH, "if split[name][1] == TRAIN]", "if split[name][1] != 1]",
          "synth::test_au_noise_has_its_share_and_its_seed"),
    Fault("noise-drawn-anew", SYNTH, "zip(wrong, wrong[1:] + wrong[:1])", "zip(wrong, rng.choice(train, len(wrong)).tolist())",
          "synth::test_au_noise_has_its_share_and_its_seed"),
    Fault("noise-of-all-rows", SYNTH, "round(share * len(train))", "round(share * len(rows))",
          "synth::test_au_noise_has_its_share_and_its_seed"),
    Fault("noise-without-seed", SYNTH, "np.random.default_rng([seed, 5])", "np.random.default_rng(5)",
          "synth::test_au_noise_has_its_share_and_its_seed"),
    Fault("noise-in-the-faces", SYNTH, "        if au_noise:\n            mislabel(part, au_noise, seed)\n",
          "        if au_noise:\n            mislabel(part, au_noise, seed)\n            names, aus = read_rows(part)\n"
          "            draw_all([(str(part / 'aligned' / f'{stem(n)}_aligned.jpg'), row, size, [seed, 2, i])\n"
          "                      for i, (n, row) in enumerate(zip(names, aus))])\n",
          "synth::test_au_noise_exchanges_the_aus_of_training_rows_alone"),
    Fault("curves-of-the-first-seed", PLOT, "np.mean([log[key] for log in logs], 0)", "logs[0][key]",
          "plot::test_curves_of_several_methods_are_means_of_their_seeds"),
    Fault("curves-under-the-legend", PLOT, 'loc="upper left", bbox_to_anchor=(1, 1)', 'loc="upper left"',
          "plot::test_curves_of_several_methods_are_means_of_their_seeds"),
    Fault("curves-one-colour", PLOT, 'f"C{len(rows) - i}"', '"C0"', "plot::test_curves_of_several_methods_are_means_of_their_seeds"),
    Fault("curves-of-fixed-weights", PLOT, 'if source == "meta":', "if source:",
          "plot::test_curves_of_several_methods_are_means_of_their_seeds"),
    Fault("labels-unsaid", M, '              "data_sha256": run.data_sha256,\n', "",
          "table::test_a_run_says_what_labels_it_had"),
]


def paths_of(tests):
    """'losses::test_eq01' -> 'tests/test_losses.py::test_eq01', and the short names of NEAREST."""
    for test in tests.split(", "):
        name, bracket, parameters = test.partition("[")
        file, _, function = NEAREST.get(name, name).partition("::")
        file = {"details": "training_details"}.get(file, file)
        yield f"tests/test_{file}.py::{function}{bracket}{parameters}"


def snapshot(folder):
    """Copy the checkout's files, as they are now, but for what git ignores: data, runs, weights."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run_tests(tests, folder):
    """Exit, in this child process, with pytest's code for these tests on the tree in a folder."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(PYTHONPATH=str(folder), TMPDIR=str(folder))
    tempfile.tempdir = str(folder)
    with open(folder / "output", "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    sys.exit(int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])))


def try_tests(tree, tests, fault=None):
    """pytest's exit code, the seconds and the output of tests, with a fault put into a copy of the tree."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as parent:
        folder = Path(parent) / "tree"
        shutil.copytree(tree, folder)
        if fault:
            path = folder / fault.file
            path.write_text(path.read_text().replace(fault.old, fault.new))
        child = multiprocessing.get_context("fork").Process(target=run_tests, args=(tests, folder))
        child.start()
        child.join(900)
        if child.is_alive():  # a fault that never ends is one that is noticed
            child.kill(), child.join()
            return 1, 900, ""
        return child.exitcode, time.perf_counter() - start, (folder / "output").read_text()


def try_fault(tree, fault):
    """(killed, SURVIVED, equivalent or ERROR; seconds; pytest's output)"""
    code, seconds, output = try_tests(tree, list(paths_of(fault.tests)), fault)
    verdict = {0: "equivalent" if fault.why else "SURVIVED", 1: "killed"}.get(code, "ERROR")
    return verdict, seconds, output


def check_table(faults):
    """Complain of every fault that cannot be put in."""
    wrong = [f"{name}: named twice" for name in {f.name for f in FAULTS} if sum(f.name == name for f in FAULTS) > 1]
    for fault in faults:
        source = (ROOT / fault.file).read_text()
        if source.count(fault.old) != 1:
            wrong.append(f"{fault.name}: its old text occurs {source.count(fault.old)} times in {fault.file}")
        elif fault.file.endswith(".py"):
            try:
                compile(source.replace(fault.old, fault.new), fault.file, "exec")
            except SyntaxError as error:
                wrong.append(f"{fault.name}: {error}")
    if wrong:
        sys.exit("\n".join(wrong))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="faults at a time")
    parser.add_argument("--list", action="store_true", help="print the faults and check that each can be put in")
    options = parser.parse_args()
    faults = [f for f in FAULTS if not options.names or f.name.startswith(tuple(options.names))]
    if options.list:
        for fault in faults:
            print(f"{fault.name:36} {fault.file:20} {fault.tests}")
    check_table(faults)
    if options.list or not faults:
        return print(f"{len(faults)} faults")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in ("hypothesis", "torch", "torchvision"):  # its children need not load them
        importlib.import_module(module)

    start, found = time.perf_counter(), Counter()
    with tempfile.TemporaryDirectory(prefix="mutate-") as tree:
        snapshot(Path(tree))
        code, seconds, output = try_tests(tree, sorted({p for f in faults for p in paths_of(f.tests)}))
        if code:
            sys.exit(f"{output}\nthese tests fail without any fault")
        print(f"the tests pass without a fault, {seconds:.0f} s", flush=True)
        with concurrent.futures.ThreadPoolExecutor(options.j) as pool:
            results = pool.map(functools.partial(try_fault, tree), faults)
            for fault, (verdict, seconds, output) in zip(faults, results):
                print(f"{fault.name:36} {verdict:10} {seconds:6.1f} s  {fault.why}", flush=True)
                if verdict == "ERROR":
                    print(output)
                found[verdict] += 1
    print(f"{len(faults)} faults: " + ", ".join(f"{n} {verdict}" for verdict, n in found.items()) +
          f"; {time.perf_counter() - start:.0f} s")
    sys.exit(bool(found.keys() - {"killed", "equivalent"}))


if __name__ == "__main__":
    main()
