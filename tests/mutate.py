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
}  # fmt: skip

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
    Fault("val-of-training-batch", M, "losses, omega, val[:2],", "losses, omega, batch[:2],", "psi[mal]"),
    Fault("val-summed", M, "loss_emo(outputs[1], y_emo).mean()", "loss_emo(outputs[1], y_emo).sum()", "psi[mal]"),
    Fault("jvp-uphill", M, "-d_losses / len(losses)", "d_losses / len(losses)", "psi[mal]"),
    Fault("jvp-summed", M, "-d_losses / len(losses)", "-d_losses", "psi[mal]"),
    Fault("jvp-without-alpha", M, "v_n.mul_(alpha[name])", "v_n", "psi[mal]"),
    Fault("jvp-first-order", M, "g.mul_(-alpha[name]).add_(p)", "g.mul_(0).add_(p)", "psi[mal]"),
    Fault("tangent-conv-weight-alone", M, "return out if dx is None else", "return out if True else", "psi[mal]"),
    Fault("tangent-bn-input-lost", M, "        dx, x, layer.weight, None, None, mean",
          "        0 * dx, x, layer.weight, None, None, mean", "psi[mal]"),
    Fault("tangent-relu-open", M, "torch.ops.aten.threshold_backward(dx, y, 0)", "dx", "psi[mal]"),
    Fault("tangent-pool-of-tangents", M, 'return dx.flatten(2).gather(2, where.flatten(2)).view_as(y)',
          "return pool(dx, layer.kernel_size, layer.stride, layer.padding)[0]", "psi[mal]"),
    Fault("tangent-linear-input-lost", M, ' + linear(dx, layer.weight)', "", "psi[mal]"),
    # the step
    Fault("psi-uphill", M, "p.grad = g\n", "p.grad = -g\n", "psi[mal]"),
    Fault("psi-never", M, "run.opt_meta.step()", "pass", "psi[mal]"),
    Fault("base-old-weights", M, "omega = loss_weights(run.meta, outputs[0], run.cfg)  # psi hat", "pass",
          "theta[mal]"),
    Fault("base-summed", M, "(omega.detach() * losses).sum(1).mean()", "(omega.detach() * losses).sum()", "theta[stl]"),
    Fault("base-unweighted", M, "(omega.detach() * losses)", "(omega.detach().gt(0) * losses)", "theta[mal]"),
    Fault("base-weights-attached", M, "(omega.detach() * losses)", "(omega * losses)", "theta[mal], psi[mal]",
          "the features are detached in loss_weights and psi's gradient is set anew at each step"),
    Fault("gradients-add-up", M, "run.opt.zero_grad()", "pass", "theta[stl]"),
    Fault("theta-never", M, "run.opt.step()", "pass", "theta[stl]"),
    # the nets
    Fault("no-scaling", M, "x.to(self.mean.dtype) / 255", "x.to(self.mean.dtype)",
          "details::test_a_backbone_is_normalised_as_it_was_trained"),
    Fault("normalisation-swapped", M, "- self.mean) / self.std", "- self.std) / self.mean",
          "details::test_a_backbone_is_normalised_as_it_was_trained"),
    Fault("casia-not-found", M, 'if weights == "auto" and casia.exists()', 'if weights == "casia" and casia.exists()',
          "details::test_casia_weights_are_found_where_they_belong"),
    Fault("casia-elsewhere", M, 'HERE / "weights" / "resnet34_casia.pth"', 'HERE / "resnet34_casia.pth"',
          "details::test_casia_weights_are_found_where_they_belong"),
    Fault("running-statistics-not-loaded", M,
          'wanted = [k for k in own if k in given or not k.endswith("num_batches_tracked")]',
          "wanted = [k for k, _ in net.backbone.named_parameters()]",
          "details::test_casia_weights_are_found_where_they_belong"),
    Fault("weights-not-finite", "mmlfer_commands/pretrain.py", "not given.to_dense().isfinite().all()",
          "given.to_dense().isnan().all()",
          "details::test_weights_that_are_not_finite_are_refused"),
    Fault("imagenet-not-loaded", M,
          'net.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})', "pass",
          "details::test_imagenet_tensors_are_all_loaded"),
    Fault("imagenet-normalisation", M, "make_base_net(preset.mean, preset.std)", "make_base_net()",
          "train::test_imagenet_weights_bring_their_normalisation"),
    # label files
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
    Fault("place-outer-first", M, '(base / "aligned" / "aligned", base / "aligned", base)',
          '(base, base / "aligned", base / "aligned" / "aligned")', "place[]"),
    Fault("place-last-wins", M, "index.setdefault(stem(path), path)", "index[stem(path)] = path", "place[]"),
    Fault("place-raf-au-first", M, 'for base in (folder, folder / "RAF-AU")', 'for base in (folder / "RAF-AU", folder)',
          "place[]"),
    Fault("suffix-in-capitals", M, "if path.suffix.lower() in IMAGES:\n                    index",
          "if path.suffix in IMAGES:\n                    index", "found[0001.PNG-aligned]"),
    Fault("exif-ignored", M, "image = ImageOps.exif_transpose(image)", "pass", "data::test_exif_rotation_is_undone"),
    Fault("alpha-on-black", M, 'Image.new("RGBA", image.size, "white")', 'Image.new("RGBA", image.size, "black")',
          "data::test_pictures_of_every_kind_are_read_as_a_person_sees_them[RGBA]"),
    Fault("resize-nearest", M, "Image.Resampling.BILINEAR", "Image.Resampling.NEAREST", "resized[64-64]"),
    Fault("resize-bicubic", M, "Image.Resampling.BILINEAR", "Image.Resampling.BICUBIC", "resized[64-64]"),
    Fault("images-bgr", M, "image.transpose(2, 0, 1), True", "image[:, :, ::-1].transpose(2, 0, 1), True", "skip"),
    Fault("images-turned", M, "image.transpose(2, 0, 1), True", "image.transpose(2, 1, 0), True", "log[stl]"),
    Fault("decode-gaps", M, "paths[start : start + 256]", "paths[start : start + 255]", "skip"),
    Fault("skip-labels-shifted", M, "found[found] = good", "found = np.arange(len(found)) < good.sum()", "skip"),
    Fault("skip-images-shifted", M, "torch.from_numpy(images[good])", "torch.from_numpy(images[: good.sum()])", "skip"),
    # files
    Fault("not-atomic", M, "os.replace(part, target)", "target.write_bytes(part.read_bytes()), part.unlink()", "disk"),
    Fault("no-fsync", M, "os.fsync(file.fileno())", "pass", "disk"),
    Fault("no-flush", M, "file.flush()", "pass", "disk"),
    Fault("part-left", M, "part.unlink(missing_ok=True) if part.is_file() else None", "pass",
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
    Fault("au-f1-of-stl", M, "if trains_aus(method):", "if True:", "tested"),
    Fault("evaluated-in-training-mode", M, "    net.eval()\n    with torch.no_grad", "    with torch.no_grad",
          "log[stl]"),
    Fault("left-in-test-mode", M, "    net.train()\n", "", "log[stl]"),
    Fault("report-columns-swapped", M, "zip(numbers[\"per_class\"].items(), confusion.sum(1), expression_f1(confusion))",
          "zip(numbers[\"per_class\"].items(), confusion.sum(0), expression_f1(confusion))",
          "details::test_the_report_says_what_the_numbers_are"),
    Fault("report-transposed", M, "for row in confusion.tolist()]\n    return", "for row in confusion.T.tolist()]\n    return",
          "details::test_the_report_says_what_the_numbers_are"),
    # what a run is made of
    Fault("form-always-wild", M, '"lab" if cfg.stats == "lab" else "wild"', '"wild"',
          "details::test_form_follows_the_statistics_unless_given[lab-auto-lab], psi[mml-lab]"),
    Fault("form-from-stats-alone", M, 'cfg.form if cfg.form != "auto" else "lab" if',
          '"lab" if', "details::test_form_follows_the_statistics_unless_given[lab-wild-wild]"),
    Fault("stats-always-wild", M, "torch.tensor(load_stats(cfg.stats)", 'torch.tensor(load_stats("wild")',
          "psi[mml-lab]"),
    Fault("seed-not-to-net", M, "torch.manual_seed(cfg.seed)", "torch.manual_seed(0)", "seeds"),
    Fault("au-head-not-trained", M, "[*self.net.fe.parameters(), *self.net.au.parameters()]",
          "[*self.net.fe.parameters()]", "theta[mtl]"),
    Fault("backbone-at-heads-rate", M, '"lr": cfg.lr_backbone}', '"lr": cfg.lr_heads}', "theta[stl]"),
    Fault("heads-at-backbones-rate", M, '"lr": cfg.lr_heads}', '"lr": cfg.lr_backbone}', "theta[stl]"),
    Fault("no-momentum", M, "momentum=cfg.momentum, ", "", "theta[stl]"),
    Fault("no-weight-decay", M, ", weight_decay=cfg.weight_decay)", ")", "theta[stl]"),
    Fault("nesterov", M, "weight_decay=cfg.weight_decay)", "weight_decay=cfg.weight_decay, nesterov=True)",
          "theta[stl]"),
    Fault("meta-momentum", M, "lr=cfg.lr_meta)", "lr=cfg.lr_meta, momentum=cfg.momentum)", "psi[mal]"),
    Fault("meta-decay", M, "lr=cfg.lr_meta)", "lr=cfg.lr_meta, weight_decay=cfg.weight_decay)", "psi[mal]"),
    Fault("meta-at-heads-rate", M, "lr=cfg.lr_meta)", "lr=cfg.lr_heads)", "psi[mal]"),
    Fault("onecycle-never", M, 'if cfg.schedule == "onecycle":', 'if cfg.schedule == "cosine":', "theta[mtl]"),
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
    Fault("meta-not-restored", M, '{"net": self.net, "meta": self.meta} if self.meta else {"net": self.net}',
          '{"net": self.net}', "resume"),
    Fault("schedule-not-restored", M, "{**nets, **self.parts()}", '{**nets, "opt": self.opt}', "resume"),
    Fault("momentum-not-restored", M, "{**nets, **self.parts()}", '{**nets, "scheduler": self.scheduler}', "resume"),
    Fault("log-not-restored", M, '"elapsed", "log", "hypergrad"):', '"elapsed", "hypergrad"):', "resume"),
    Fault("step-not-restored", M, '("epoch", "step", "elapsed", "log"', '("epoch", "elapsed", "log"', "resume"),
    Fault("means-not-restored", M, 'self.record.copy_(state["record"])', "pass", "resume"),
    Fault("seconds-not-restored", M, '"step", "elapsed", "log", "hypergrad"):', '"step", "log", "hypergrad"):',
          "resume"),
    Fault("resume-other-batches", M, "batches.epoch(run.epoch), time", "batches.epoch(run.epoch + 9 * run.step), time",
          "resume"),
    Fault("resume-from-the-epochs-first-batch", M, "index, flip, val_index, val_flip = plan[i]",
          "index, flip, val_index, val_flip = plan.pop(0)", "resume"),
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
    Fault("validation-batch-is-training", M, "batches.take(val_index, val_flip) if",
          "batches.take(index, flip) if", "psi[mal]"),
    # the loop
    Fault("best-on-ties", M, 'if numbers["accuracy"] > best:', 'if numbers["accuracy"] >= best:', "best"),
    Fault("best-always", M, 'if numbers["accuracy"] > best:', "if True:", "best"),
    Fault("best-by-diag", M, 'if numbers["accuracy"] > best:', 'if numbers["diag"] > best:', "best"),
    Fault("best-of-the-last-two", M, 'for row in run.log), default=-1.0)', 'for row in run.log[-1:]), default=-1.0)',
          "best"),
    Fault("best-and-last-exchanged", M, 'result["best"] = {"epoch": state["epoch"], **evaluate(net, test',
          'result["best"] = {"epoch": state["epoch"], **evaluate(run.net, test', "tested"),
    Fault("last-is-best", M, 'result["last"] = {"epoch": last_epoch, **last}',
          'result["last"] = {"epoch": last_epoch, **evaluate(net, test, run.cfg.method)}', "tested"),
    Fault("tested-on-validation", M, "test = faces.select(faces.split == TEST)",
          "test = faces.select(faces.split == VAL)", "tested"),
    Fault("validated-on-training", M, "val = faces.select(faces.split == VAL)",
          "val = faces.select(faces.split == TRAIN)", "log[stl]"),
    Fault("log-losses-swapped", M, "l_emo, l_au, l_am, _, w_au, w_am, *_ =", "l_emo, l_am, l_au, _, w_au, w_am, *_ =",
          "log[mtl]"),
    Fault("log-weight-of-emo", M, "l_emo, l_au, l_am, _, w_au, w_am, *_ =", "l_emo, l_au, l_am, w_au, w_am, *_ =",
          "log[mtl]"),
    Fault("log-rate-of-heads", M, 'run.opt.param_groups[0]["lr"]', 'run.opt.param_groups[1]["lr"]', "log[stl]"),
    Fault("log-last-step-alone", M, "= run.record.mean(0).tolist()", "= run.record[-1].tolist()", "log[stl]"),
    Fault("log-batches-a-second", M, "run.steps * run.cfg.batch_size / run.elapsed", "run.steps / run.elapsed",
          "details::test_the_log_counts_images_a_second"),
    Fault("not-finite-unseen", M, "if bad.any():", "if bad.all():",
          "train::test_what_is_not_finite_stops_before_the_checkpoint[0-L^emo]"),
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
]  # fmt: skip


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
                            capture_output=True, text=True).stdout  # fmt: skip
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
          f"; {time.perf_counter() - start:.0f} s")  # fmt: skip
    sys.exit(bool(found.keys() - {"killed", "equivalent"}))


if __name__ == "__main__":
    main()
