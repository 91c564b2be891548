"""RAF-CE from RAF-ML and RAF-AU."""

import numpy as np
import pytest
from conftest import invoke
from PIL import Image

import mmlfer
from mmlfer_commands import build

#            Surprise Fear Disgust Happiness Sadness Anger
DISTRIBUTIONS = {
    "happily surprised": (0.4, 0.1, 0.0, 0.5, 0.0, 0.0),
    "sadly angry": (0.0, 0.0, 0.1, 0.0, 0.5, 0.4),
    "disgustedly surprised": (0.5, 0.0, 0.5, 0.0, 0.0, 0.0),  # a tie for first place
    "happily disgusted": (0.1, 0.1, 0.3, 0.5, 0.0, 0.0),
    "sadly fearful": (0.0, 0.25, 0.0, 0.25, 0.5, 0.0),  # tie for second: fear comes first
    "happily sad": (0.0, 0.0, 0.0, 0.5, 0.25, 0.25),  # happily angry is none of the 14
    "fearfully surprised": (0.25, 0.25, 0.25, 0.25, 0.0, 0.0),  # all tied: the first pair
}
TIED_AND_DISCARDED = (0.0, 0.0, 0.0, 0.6, 0.0, 0.4)  # happily angry


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_compound_of_six_probabilities(name):
    assert mmlfer.EMOTIONS[build.compound(DISTRIBUTIONS[name])] == name


def test_every_pair_of_the_14_and_no_other():
    found = {}
    for i in range(6):
        for j in range(i + 1, 6):
            p = [0.0] * 6
            p[i], p[j] = 0.6, 0.4
            found[i, j] = build.compound(p)
    assert sorted(k for k in found.values() if k is not None) == list(range(14))
    assert [pair for pair, k in found.items() if k is None] == [(3, 5)]


@pytest.fixture
def sources(tmp_path):
    """A small RAF-ML and RAF-AU: ties of each kind, one image in each alone, one discarded."""
    ml, au = tmp_path / "ml", tmp_path / "au"
    (ml / "EmoLabel").mkdir(parents=True), (au / "aligned").mkdir(parents=True)
    rows = [*DISTRIBUTIONS.values(), TIED_AND_DISCARDED]
    names = [f"{i:04d}.jpg" for i in range(1, len(rows) + 1)]
    lines = [f"{n} {' '.join(map(str, p))}\n" for n, p in zip(names, rows)]
    lines.append("0100.jpg 1 0 0 0 0 0\n")
    (ml / "EmoLabel/distribution.txt").write_text("".join(lines))
    aus = ["l12+R25", "null", "T24", "4", "1+4", "12", "1+2+25", "5"]
    (au / "RAFAU_label.txt").write_text("".join(f"{n} {a}\n" for n, a in zip(names, aus)) + "0200.jpg 77")
    for name in names[:6]:
        Image.new("RGB", (20, 20), "red").save(au / "aligned" / name.replace(".", "_aligned."))
    return ml, au


@pytest.mark.parametrize("copy", [False, True])
def test_build_makes_rafce_of_its_sources(sources, tmp_path, copy):
    ml, au = sources
    out = tmp_path / "rafce"
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out, *(["--copy"] if copy else []))
    assert result.exit_code == 0, result.output
    assert "9 images in RAF-ML, 9 in RAF-AU, 8 in both" in result.output
    assert "discarded 1 whose" in result.output and "kept 7, 1 of them without an image" in result.output
    faces = mmlfer.load_labels(out)
    assert [mmlfer.EMOTIONS[k] for k in faces.y_emo] == list(DISTRIBUTIONS)
    assert (out / "RAFCE_AUlabel.txt").read_text().splitlines()[:3] == ["0001.jpg l12+R25", "0002.jpg null",
                                                                       "0003.jpg T24"]  # fmt: skip
    image = out / "aligned/0001_aligned.jpg"
    assert image.is_symlink() != copy and Image.open(image).size == (20, 20)
    again = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out)
    assert again.exit_code == 1 and "not empty" in again.stderr


def test_build_takes_an_official_partition(sources, tmp_path):
    ml, au = sources
    (au / "RAFCE_partition.txt").write_text("".join(f"{i:04d}.jpg {i % 3}\n" for i in range(1, 8)))
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert str(au / "RAFCE_partition.txt") in result.output
    assert mmlfer.load_labels(tmp_path / "o").split.tolist() == [1, 2, 0, 1, 2, 0, 1]


def test_build_complains_in_one_line(sources, tmp_path):
    ml, au = sources
    (au / "RAFAU_label.txt").write_text("0001.jpg 12\n0002.jpg 77\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert result.stderr == (f"Error: {au}/RAFAU_label.txt:2: AU 77 is not one of the 32 AUs of RAF-CE; "
                             "mend this row\n")  # fmt: skip
    (ml / "EmoLabel/distribution.txt").write_text("0001.jpg 1 2 3\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert "distribution.txt:1: expected an image name and 6 values, got 4 fields" in result.stderr
    result = invoke("build", "--raf-ml", tmp_path / "no", "--raf-au", au, "--out", tmp_path / "o")
    assert result.exit_code == 1 and "no distribution.txt there" in result.stderr
    assert not (tmp_path / "o").exists()


def test_split_is_stratified_and_of_the_seed():
    y_emo = np.repeat(np.arange(14), mmlfer.RAFCE_TOTALS)
    split = build.split_faces(y_emo, 0)
    assert (split == build.split_faces(y_emo, 0)).all() and (split != build.split_faces(y_emo, 1)).any()
    for k, n in enumerate(mmlfer.RAFCE_TOTALS):
        own = np.bincount(split[y_emo == k], minlength=3)
        assert own[mmlfer.TEST] == round(0.2 * n)
        assert own[mmlfer.VAL] == round(0.25 * (n - own[mmlfer.TEST]))
