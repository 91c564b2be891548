"""What is read of a folder: every picture that Pillow reads, nothing that a system keeps, and a count of the rest."""

import os

import numpy as np
import pytest
from conftest import SMALL_PRETRAINING, invoke
from PIL import Image

import mmlfer
from mmlfer_commands import _inputs

SUFFIXES = [".jfif", ".jpe", ".mpo", ".pgm", ".ppm", ".gif", ".JPG", ".tif", ".webp", ".bmp", ".jp2", ".tga", ".pcx", ".dib"]


def saved(path, seed=0):
    """A small picture of noise, written in the format that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path, Image.registered_extensions()[path.suffix.strip().lower()])
    return path


def test_pictures_of_every_suffix_are_found_and_read(tmp_path, capsys):
    paths = [saved(tmp_path / f"{i}{suffix}") for i, suffix in enumerate([*SUFFIXES, ".png "])]
    assert _inputs.images_below(tmp_path) == sorted(paths)
    assert [mmlfer.try_read(path, 8).shape for path in paths] == [(8, 8, 3)] * len(paths)
    assert capsys.readouterr().err == ""


def test_what_pillow_only_names_is_no_picture():
    """Videos, documents and tables have formats in Pillow too, which cannot be decoded."""
    for suffix in (".mpg", ".pdf", ".eps", ".h5", ".wmf", ".heic.txt", "", ".csv", ".mp4"):
        assert not mmlfer.is_image("a" + suffix), suffix
    assert not mmlfer.is_image(".jpg")


def test_other_files_are_counted_hidden_ones_and_a_systems_folders_are_not(tmp_path, capsys):
    for place in ("a.png", "x/b.png", "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "x/lost+found/c.png", "__MACOSX/x/b.png", "._a.png",
                  ".thumbnails/a.png", "x/$RECYCLE.BIN/d.png"):
        saved(tmp_path / place)
    for place in ("notes.txt", "x/1.HEIC", "x/2.heic", "x/noname", ".DS_Store"):
        (tmp_path / place).write_text("")
    assert _inputs.images_below(tmp_path) == [tmp_path / "a.png", tmp_path / "x/b.png"]
    assert capsys.readouterr().err == (f"{tmp_path}: 4 other files passed over (.heic, .txt, noname); save pictures among them "
                                       "as JPEG or PNG\n")


def test_a_link_is_entered_after_the_folders_and_no_folder_twice(tmp_path):
    saved(tmp_path / "z/deep/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z/deep")
    (tmp_path / "z/back").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert _inputs.images_below(tmp_path) == [tmp_path / "gone.png", tmp_path / "z/deep/1.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """Nothing in it is lost without a word."""
    saved(tmp_path / "closed/1.png")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(mmlfer.InputError, match=r"closed: cannot be read \(Permission denied\)"):
        list(_inputs.files_below(tmp_path))


def test_photographs_of_every_suffix_are_predicted(tmp_path, sketch):
    names = ["a.jfif", "b.png ", "c.gif", "d.mpo", "e.jpe"]
    for i, name in enumerate(names):
        saved(tmp_path / name, i)
    (tmp_path / "f.heic").write_text("")
    result = invoke("predict", "--ckpt", sketch, tmp_path, "--csv", tmp_path / "out.csv", "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [os.path.basename(row.split(",")[0]) for row in rows] == names
    assert f"{tmp_path}: 1 other file passed over (.heic)" in result.stderr


def test_rafces_images_may_have_any_suffix(tmp_path):
    for name in ("0001_aligned.jfif", "0002_aligned.PGM", "0003_aligned.txt"):
        (tmp_path / "aligned").mkdir(exist_ok=True)
        (tmp_path / "aligned" / name).write_text("")
    assert set(mmlfer.image_index(tmp_path)) == {"0001", "0002"}


def test_people_whose_images_are_pgm_are_trained_on(tmp_path):
    """As those of the oldest sets of faces are; Synology's thumbnails are no person."""
    for person in ("s1", "s2", "s3", "@eaDir"):
        for i in range(4):
            saved(tmp_path / "people" / person / f"{i}.pgm", i)
    (tmp_path / "people/s1/readme").write_text("")
    result = invoke("pretrain", "--faces", tmp_path / "people", "--out", tmp_path / "w.pth", "--epochs", 1, *SMALL_PRETRAINING, "--holdout", 0)
    assert "12 images of 3 people" in result.output and "other files, left out: 1" in result.output, result.output
