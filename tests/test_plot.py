"""Figures of runs and of videos."""

import csv
import json
import shutil
import sys
import warnings

import numpy as np
import pytest
import yaml
from conftest import invoke
from PIL import Image

import mmlfer
from mmlfer_commands import _figures, plot


@pytest.fixture
def run(tmp_path):
    """A folder as `train` leaves it: three epochs of 169 steps, 40 test images."""
    out = tmp_path / "run"
    out.mkdir()
    confusion = np.zeros((14, 14), int)
    confusion[0, [0, 1]], confusion[1, [0, 1, 2]], confusion[13, 13] = (15, 5), (4, 2, 4), 10
    numbers = {"confusion": confusion.tolist(), "accuracy": 27 / 40, "diag": (15 / 20 + 2 / 10 + 1) / 3}
    (out / "test.json").write_text(json.dumps({"best": numbers, "last": {}, "emotions": mmlfer.EMOTIONS, "aus": mmlfer.AUS}))
    (out / "config.yaml").write_text(yaml.safe_dump({"method": "mml", "steps_per_epoch": 169}))
    with open(out / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "train_loss_emo", "val_acc", "val_diag", "w_au", "w_am", "lr"])
        writer.writeheader()
        for epoch, w_au in ((1, 0.5), (2, 0.4), (3, 0.3)):
            writer.writerow({"epoch": epoch, "train_loss_emo": 2, "val_acc": epoch / 4, "val_diag": 0.1 * epoch,
                             "w_au": w_au, "w_am": 0.2, "lr": 0.001})
    return out


@pytest.fixture
def kept(monkeypatch):
    """{file name: figure} of the drawn figures; nothing is written."""
    figures = {}
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: figures.setdefault(path.name, figure))
    yield figures
    _figures.pyplot().close("all")


def check_picture(path, least=500):
    """Check that a figure is large enough, not empty, and white all around, so that nothing is cut off."""
    picture = np.asarray(Image.open(path).convert("L"))
    assert min(picture.shape) > least and picture.std() > 10
    assert all((edge == 255).all() for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]))


def test_figures_of_a_run(run):
    result = invoke("plot", run)
    assert (result.stdout, result.stderr) == (f"{run}/curves.png\n{run}/confusion.png\n", "")
    for name in ("curves.png", "confusion.png"):
        check_picture(run / name)
    assert invoke("plot", run).exit_code == 0  # again: it may replace its own figures


def test_curves_are_the_log(run, kept):
    invoke("plot", run)
    left, right = kept["curves.png"].axes
    assert left.get_xlabel() == right.get_xlabel() == "iteration"
    assert (left.get_ylabel(), right.get_ylabel()) == ("%", "weight")
    drawn = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for a in (left, right) for line in a.lines}
    x = [169, 338, 507]
    assert {k: xs for k, (xs, _) in drawn.items()} == dict.fromkeys(drawn, x)
    for name, y in (("validation Acc.", [25, 50, 75]), ("validation Diag.", [10, 20, 30]),
                    (r"mean $\omega^{AU}$", [0.5, 0.4, 0.3]), (r"mean $\omega^{AM}$", [0.2] * 3)):
        assert drawn.pop(name)[1] == pytest.approx(y)
    assert not drawn
    for axis in (left, right):
        assert axis.get_legend() and axis.get_xlim()[0] <= 169 and axis.get_xlim()[1] >= 507
        assert all(tick == round(tick) for tick in axis.get_xticks())


def write_run(folder, method, seed, log):
    """Write a finished run as `table` and `plot` read it; log: val_acc, w_au and w_am of each epoch."""
    numbers = {**mmlfer.expression_metrics(mmlfer.confusion_matrix([0], [0], 14), mmlfer.EMOTIONS), "pred": [0]}
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps({
        "method": method, "stats": "wild", "form": "wild", "seed": seed, "rafce": False, "names": ["1.jpg"], "truth": [0],
        "best": numbers, "emotions": mmlfer.EMOTIONS, "aus": mmlfer.AUS, "options": {"data": "faces", "weights": "none"},
        "table_sha256": "", "data_sha256": "", "images_sha256": "", "backbone": "none"}))
    (folder / "config.yaml").write_text("steps_per_epoch: 75")
    (folder / "log.csv").write_text("epoch,val_acc,val_diag,w_au,w_am\n" + "".join(
        f"{i + 1},{acc},0.1,{w_au},{w_am}\n" for i, (acc, w_au, w_am) in enumerate(log)))


def test_curves_of_several_methods_are_means_of_their_seeds(tmp_path, kept):
    write_run(tmp_path / "a", "mml", 0, [(0.2, 0.5, 0.4), (0.4, 0.6, 0.3)])
    write_run(tmp_path / "b", "mml", 1, [(0.3, 0.7, 0.2), (0.6, 0.8, 0.1)])
    write_run(tmp_path / "c", "mtl", 0, [(0.1, 3.0, 0), (0.2, 3.0, 0)])
    write_run(tmp_path / "d", "mal2", 0, [(0.5, 0.9, 0), (0.7, 0.95, 0)])
    result = invoke("plot", tmp_path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path}/curves.png\n", "")
    left, right = kept["curves.png"].axes
    drawn = [{line.get_label(): line.get_ydata().tolist() for line in axis.lines} for axis in (left, right)]
    accuracy = {"mtl": [10, 20], "mal2": [50, 70], "mml wild": [25, 50]}
    weights = {r"mal2, $\omega^{AU}$": [0.9, 0.95], r"mml wild, $\omega^{AU}$": [0.6, 0.7],
               r"mml wild, $\omega^{AM}$": [0.3, 0.2]}
    for found, expected in zip(drawn, (accuracy, weights)):
        assert list(found) == list(expected)  # in the order of Table 3; no weight that is not learned
        assert all(found[name] == pytest.approx(y) for name, y in expected.items())
    assert all(line.get_xdata().tolist() == [75, 150] for axis in (left, right) for line in axis.lines)
    assert [line.get_linestyle() for line in right.lines] == ["-", "-", "--"] and len({line.get_color() for line in left.lines}) == 3
    assert "mean of the seeds" in left.get_title()
    colors = [{line.get_label().split(",")[0]: line.get_color() for line in axis.lines} for axis in (left, right)]
    assert colors[0] == {"mtl": "C2", "mal2": "C1", "mml wild": "C0"} and colors[1].items() <= colors[0].items()
    for axis in (left, right):  # a legend that hides no curve
        assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1


def test_the_picture_of_several_methods(tmp_path):
    write_run(tmp_path / "deep/a", "mml", 0, [(0.2, 0.5, 0.4), (0.4, 0.6, 0.3)])
    write_run(tmp_path / "b", "stl", 0, [(0.2, 0, 0), (0.4, 0, 0)])
    write_run(tmp_path / "fixed/c", "mtl", 0, [(0.2, 0.1, 0)])  # alone: no weights are learned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert invoke("plot", tmp_path / "fixed").exit_code == 0
    shutil.rmtree(tmp_path / "fixed")
    assert invoke("plot", tmp_path).exit_code == 0
    check_picture(tmp_path / "curves.png")
    (tmp_path / "b/log.csv").unlink()
    assert invoke("plot", tmp_path).stderr == f"Error: {tmp_path}/b/log.csv: not there; give the folder of a run of `train`\n"


@pytest.mark.parametrize("short", ["a", "b"])
def test_a_log_that_is_shorter_than_another_seeds_is_named(tmp_path, short):
    for seed, name in enumerate("abc"):
        write_run(tmp_path / name, "mml", seed, [(0.2, 0.5, 0.4), (0.4, 0.6, 0.3), (0.5, 0.6, 0.3)][: 2 if name == short else 3])
    other = "b" if short == "a" else "a"
    result = invoke("plot", tmp_path)
    assert (result.exit_code, result.stdout, result.stderr) == (
        1, "", f"Error: {tmp_path}/{short}/log.csv: 2 epochs, but 3 in {tmp_path}/{other}/log.csv; "
               "train this run again\n")
    assert not (tmp_path / "curves.png").exists()


def test_weights_above_1_are_within_the_picture(run, kept):
    text = (run / "log.csv").read_text()
    (run / "log.csv").write_text(text.replace(",0.3,0.2,", ",5.0,0.2,"))
    invoke("plot", run)
    low, high = kept["curves.png"].axes[1].get_ylim()
    assert low < 0 and high > 5


def test_confusion_is_shown_as_shares_of_each_row(run, kept):
    invoke("plot", run)
    axis = kept["confusion.png"].axes[0]
    share = axis.images[0].get_array()
    assert share.shape == (14, 14)
    rows = {(k, j): float(v) for (k, j), v in np.ndenumerate(share) if v}
    assert rows == {(0, 0): 75, (0, 1): 25, (1, 0): 40, (1, 1): 20, (1, 2): 40, (13, 13): 100}
    counts = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axis.texts}
    assert counts == {(0, 0): "15", (0, 1): "5", (1, 0): "4", (1, 1): "2", (1, 2): "4", (13, 13): "10"}
    for text in axis.texts:  # a number is light on a dark square, dark on a light one
        j, k = map(round, text.get_position())
        square, ink = (sum(colour[:3]) for colour in (axis.images[0].to_rgba(share)[k, j], _figures.pyplot().matplotlib.colors.to_rgb(text.get_color())))
        assert abs(square - ink) > 1, (k, j)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true (images)")
    assert [t.get_text() for t in axis.get_xticklabels()] == list(mmlfer.EMOTIONS)
    n = dict(zip(mmlfer.EMOTIONS, [20, 10, *[0] * 11, 10]))
    assert [t.get_text() for t in axis.get_yticklabels()] == [f"{e} ({c})" for e, c in n.items()]
    assert axis.get_title() == "40 test images, Acc. 67.50 %, Diag. 65.00 %"


def test_the_darkest_colour_stands_for_all_images_of_a_row(run, kept):
    content = json.loads((run / "test.json").read_text())
    content["best"]["confusion"][13][12:] = content["best"]["confusion"][0][:2] = [5, 5]  # no share is above 50 %
    (run / "test.json").write_text(json.dumps(content))
    invoke("plot", run)
    assert kept["confusion.png"].axes[0].images[0].get_clim() == (0, 100)


def test_a_number_is_light_or_dark_by_its_own_square(run, kept):
    content = json.loads((run / "test.json").read_text())
    content["best"]["confusion"][1][:3] = [10, 0, 0]  # all of row 1 in column 0, a quarter of row 0 in column 1
    (run / "test.json").write_text(json.dumps(content))
    invoke("plot", run)
    inks = {tuple(map(round, text.get_position()[::-1])): text.get_color() for text in kept["confusion.png"].axes[0].texts}
    assert (inks[1, 0], inks[0, 1]) == ("white", "black")


def test_an_unfinished_run_has_only_its_curves_drawn(run):
    (run / "test.json").unlink()
    result = invoke("plot", run)
    assert (result.exit_code, result.stdout) == (0, f"{run}/curves.png\n")
    assert result.stderr == (f"{run}: not tested yet (no test.json), and so no confusion.png; `mmlfer train --resume` "
                             "finishes it\n")
    assert not (run / "confusion.png").exists()


HEADER = "epoch,val_acc,val_diag,w_au,w_am\n"
ROWS = "[" + ",".join(["[" + ",".join(["0"] * 14) + "]"] * 14) + "]"


def best(confusion=ROWS, accuracy="0", diag="0"):
    labels = f'"emotions": {json.dumps(mmlfer.EMOTIONS)}, "aus": {json.dumps(mmlfer.AUS)}'
    return f'{{"best": {{"confusion": {confusion}, "accuracy": {accuracy}, "diag": {diag}}}, {labels}}}'



@pytest.mark.parametrize("name,text", [
    ("config.yaml", "a: [1"), ("config.yaml", "text"), ("config.yaml", ""), ("config.yaml", "steps_per_epoch: 1.5"),
    ("config.yaml", "steps_per_epoch: 0"), ("config.yaml", "steps_per_epoch: true"), ("config.yaml", "steps_per_epoch: 1" + 400 * "0"),
    ("config.yaml", "[" * 3000), ("config.yaml", "!!python/object/apply:os.system ['true']"), ("config.yaml", b"\xff\xfe\0"),
    ("log.csv", "a,b\n1,2\n"), ("log.csv", ""), ("log.csv", HEADER), ("log.csv", HEADER + "1,x,0,0,0\n"), ("log.csv", HEADER + "1,0.1\n"),
    ("log.csv", HEADER + "1,nan,0,0,0\n"), ("log.csv", HEADER + "1,0,0,1e999,0\n"), ("log.csv", b"\xff" + HEADER.encode()),
    ("test.json", "[]"), ("test.json", "{"), ("test.json", "[" * 100000), ("test.json", '{"best": null}'),
    ("test.json", '{"best": {"confusion": null}}'), ("test.json", '{"best": {"confusion": [[1, 2]]}}'),
    ("test.json", best('"text"')), ("test.json", best(accuracy='"x"')), ("test.json", best(accuracy="NaN")),
    ("test.json", best(diag="1e400")), ("test.json", best(diag="null")), ("test.json", best(ROWS.replace("0", "-1", 1))),
    ("test.json", best(ROWS.replace("0", "1" + 400 * "0", 1))), ("test.json", best(ROWS.replace("0", "null", 1))),
    ("test.json", best(ROWS.replace("0", '"a"', 1))), ("test.json", best(ROWS.replace("0", "[]", 1))),
])
def test_a_file_that_train_does_not_write_is_named(run, name, text):
    (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = invoke("plot", run)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and len(result.stderr) < 400
    assert result.stderr.startswith(f"Error: {run}/{name}: not as `train` writes it (")
    assert not list(run.glob("*.png"))


@pytest.mark.parametrize("name", ["log.csv", "config.yaml"])
def test_a_folder_without_a_run_is_refused(run, name):
    (run / name).unlink()
    assert invoke("plot", run).stderr == f"Error: {run}/{name}: not there; give the folder of a run of `train`\n"


def test_a_figure_that_cannot_be_written_is_refused(run):
    (run / "curves.png").mkdir()
    result = invoke("plot", run)
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {run}/curves.png: cannot be written (Is a directory)")


def test_without_matplotlib_a_line_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert invoke("plot", run).stderr == "Error: a figure needs matplotlib: pip install -e '.[plot]'\n"


# ---------------------------------------------------------------- a table of `video`


def write_table(path, rows, aus=True):
    """A table of two expressions and two AUs: rows of (frame, seconds, face or None, the four probabilities)."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["frame", "face_id", "timestamp", "success", "expression", "p", "p_awe", "p_happily_sad", "AU01_p", "AU01_c",
                        "AU12_p", "AU12_c", "p_awe_smooth", "AU01_smooth"])
        for frame, seconds, face, p in rows:
            if face is None:
                table.writerow([frame, "", seconds, 0] + [""] * 10)
            else:
                aus_of = [p[2], 0, p[3], 1] if aus else [""] * 4
                table.writerow([frame, face, seconds, 1, "awe", p[0], p[0], p[1], *aus_of, 0.5, 0.5])
    return path


@pytest.fixture
def table(tmp_path):
    """Five frames at a variable rate: face 0 in four of them, face 3 in two, no face in the fourth."""
    return write_table(tmp_path / "clip.csv", [
        (0, 0.0, 0, (0.9, 0.1, 0.0, 1.0)), (2, 0.1, 0, (0.8, 0.2, 0.1, 0.9)), (2, 0.1, 3, (0.3, 0.7, 0.5, 0.4)), (4, 0.5, 0, (0.7, 0.3, 0.2, 0.8)),
        (6, 0.6, None, None), (8, 1.0, 0, (0.6, 0.4, 0.3, 0.7)), (8, 1.0, 3, (0.2, 0.8, 0.6, 0.3))])


def test_bands_of_a_video_are_its_probabilities(table, kept):
    result = invoke("plot", table)
    assert (result.exit_code, result.stdout) == (0, f"{table.with_suffix('.png')}\n")
    *axes, bar = kept["clip.png"].axes
    assert [axis.get_title() for axis in axes] == ["face 0, 4 of 5 frames", "", "face 3, 2 of 5 frames", ""] and bar.get_ylabel() == "probability"
    names = [[label.get_text() for label in axis.get_yticklabels()] for axis in axes]
    assert names == [["awe", "happily sad"], ["1 inner brow raiser", "12 lip corner puller"]] * 2
    meshes = [axis.collections[0] for axis in axes]
    gap = np.nan
    for mesh, rows in zip(meshes, ([[0.9, 0.8, 0.7, gap, 0.6], [0.1, 0.2, 0.3, gap, 0.4]], [[0, 0.1, 0.2, gap, 0.3], [1, 0.9, 0.8, gap, 0.7]],
                                   [[gap, 0.3, gap, gap, 0.2], [gap, 0.7, gap, gap, 0.8]], [[gap, 0.5, gap, gap, 0.6], [gap, 0.4, gap, gap, 0.3]])):
        assert mesh.get_clim() == (0, 1) and np.ma.filled(mesh.get_array(), gap) == pytest.approx(np.array(rows), nan_ok=True)
        assert mesh.get_coordinates()[0, :, 0].tolist() == pytest.approx([0, 0.1, 0.5, 0.6, 1.0, 1.4])  # time as the file has it
    assert all(axis.yaxis_inverted() for axis in axes) and axes[-1].get_xlabel() == "seconds"
    none, some, all_ = (sum(colour[:3]) for colour in meshes[0].get_cmap()([0.0, 0.5, 1.0]))
    assert none > some > all_  # light to dark


def test_the_picture_of_a_video(table):
    assert invoke("plot", table).exit_code == 0
    check_picture(table.with_suffix(".png"), 300)  # of four bands


def test_a_long_video_is_drawn_by_means_and_of_many_faces_those_seen_longest(tmp_path, kept):
    rows = [(i, i / 10, face, (i % 2, 1 - i % 2, 0.25, 1)) for i in range(2500) for face in range(7) if i % (face + 1) == 0]
    assert invoke("plot", write_table(tmp_path / "long.csv", rows)).exit_code == 0
    figure = kept["long.png"]
    assert [axis.get_title().split(",")[0] for axis in figure.axes[:-1:2]] == [f"face {i}" for i in range(5)]
    assert figure.get_suptitle() == "5 of 7 faces, those seen longest"
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().shape == (2, 834) and mesh.get_coordinates()[0, [0, 1, -1], 0].tolist() == pytest.approx([0, 0.3, 250])
    assert mesh.get_array()[0, :2].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert set(figure.axes[1].collections[0].get_array()[0].tolist()) == {0.25}


def test_the_panels_stand_in_the_order_of_the_faces_numbers(tmp_path, kept):
    seen = (1, 2, 3, 6, 5, 4, 7)  # in so many frames
    rows = [(i, i, face, (1, 0, 0, 1)) for i in range(7) for face in range(7) if i < seen[face]]
    assert invoke("plot", write_table(tmp_path / "p.csv", rows)).exit_code == 0
    assert [axis.get_title() for axis in kept["p.png"].axes[:-1:2]] == [f"face {i}, {seen[i]} of 7 frames" for i in (2, 3, 4, 5, 6)]


def test_a_table_of_one_frame_and_frames_of_one_time(tmp_path, kept):
    for name, rows in (("one", [(0, 2.5, 0, (1, 0, 0, 1))]), ("same", [(0, 0.0, 0, (1, 0, 0, 1)), (1, 0.0, 0, (0, 1, 0, 1)), (2, 0.1, 0, (0, 1, 0, 1))])):
        assert invoke("plot", write_table(tmp_path / f"{name}.csv", rows)).exit_code == 0
    ends = {name: figure.axes[0].collections[0].get_coordinates()[0, :, 0].tolist() for name, figure in kept.items()}
    assert ends == {"one.png": [2.5, 3.5], "same.png": pytest.approx([0, 0, 0.1, 0.2])}


def test_a_video_without_trained_aus_has_expressions_alone(tmp_path, kept):
    assert invoke("plot", write_table(tmp_path / "stl.csv", [(0, 0, 0, (1, 0)), (1, 1, 0, (0, 1))], aus=False)).exit_code == 0
    assert len(kept["stl.png"].axes) == 2


@pytest.mark.parametrize("text, said", [
    ("", "no frame in it"), ("frame,timestamp,success\n", "no frame in it"), ("frame,timestamp\n0,0.0\n", "'success'"),
    ("frame,face_id,timestamp,success,p_a\n0,0,1,1,1\n1,0,0.5,1,1\n", "times that go back"),
    ("frame,face_id,timestamp,success,p_a\n0,0,x,1,1\n", "could not convert string to float: 'x'")])
def test_a_table_that_video_does_not_write_is_named(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    result = invoke("plot", tmp_path / "t.csv")
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path}/t.csv: not as `video` writes it ({said})\n")
    result = invoke("plot", tmp_path / "no.csv")
    assert result.stderr == f"Error: {tmp_path}/no.csv: not there; give a table that `video` wrote\n"


def test_of_a_clip_without_a_face_there_is_nothing_to_draw(tmp_path):
    for n, frames in ((1, "1 frame"), (2, "2 frames")):
        (tmp_path / "t.csv").write_text("frame,face_id,timestamp,success,p_a\n" + "".join(f"{i},,{i}.0,0,\n" for i in range(n)))
        result = invoke("plot", tmp_path / "t.csv")
        assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path}/t.csv: no face in its {frames}: nothing to draw\n")


def test_runs_of_one_epoch_are_points(trained, tmp_path):
    """In both halves, below their legends, there is something of the first colour."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.yaml", "test.json"):
        shutil.copy(trained[0] / name, out)
    (out / "log.csv").write_text("".join((trained[0] / "log.csv").read_text().splitlines(True)[:2]))
    assert invoke("plot", tmp_path).exit_code == 0
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    blue = (abs(picture - (31, 119, 180)) < 30).all(2)[len(picture) // 4 :]
    half = blue.shape[1] // 2
    assert blue[:, :half].any() and blue[:, half:].any()
