"""Figures of a run."""

import shutil

import numpy as np
import pytest
from conftest import invoke
from PIL import Image

from mmlfer_commands import plot


def test_figures_of_a_run(trained, faces_folder, tmp_path):
    out, _ = trained
    assert invoke("plot", out).output.split() == [f"{out}/curves.png", f"{out}/confusion.png"]
    faces = sorted((faces_folder / "aligned").iterdir())[:2]
    result = invoke("gradcam", "--ckpt", out / "best.pt", *faces, "--out", tmp_path / "g.foo")
    assert result.exit_code == 1 and "name it like figure.png" in result.stderr
    result = invoke("gradcam", "--ckpt", out / "best.pt", "--ckpt", out / "last.pt", *faces, "--out", tmp_path / "g.png")
    assert result.exit_code == 0, result.output
    for path in (out / "curves.png", out / "confusion.png", tmp_path / "g.png"):
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 500 and picture.std() > 10
        path.unlink()


@pytest.mark.parametrize("name,text", [("config.yaml", "a: [1"), ("config.yaml", "text"), ("test.json", "[]"),
                                       ("log.csv", "a,b\n1,2\n")])  # fmt: skip
def test_plot_refuses_what_is_no_run(trained, tmp_path, name, text):
    for file in ("config.yaml", "test.json", "log.csv"):
        shutil.copy(trained[0] / file, tmp_path)
    (tmp_path / name).write_text(text)
    result = invoke("plot", tmp_path)
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}: not a finished run")


def test_curves_have_the_right_axes(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plot, "save_figure", lambda plt, figure, path: kept.append(figure))
    log = [{"epoch": e, "val_acc": e / 4, "val_diag": 0.1, "w_au": 0.5, "w_am": 0.2} for e in (1, 2, 3)]
    plot.plot_curves(log, 169, tmp_path / "c.png")
    left, right = kept[0].axes
    assert left.get_xlabel() == right.get_xlabel() == "iteration" and right.get_ylabel() == "weight"
    assert left.lines[0].get_xdata().tolist() == [169, 338, 507]
    assert left.lines[0].get_ydata().tolist() == [25, 50, 75]
    assert [line.get_ydata()[0] for line in right.lines] == [0.5, 0.2]


def test_without_matplotlib_a_line_says_how_to_get_it(trained, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = invoke("plot", trained[0])
    assert result.stderr == "Error: figures need matplotlib: pip install -e '.[plot]'\n"
