"""RAF-CE from RAF-ML and RAF-AU."""

import itertools
import os
import shutil

import numpy as np
import pytest
from conftest import invoke
from PIL import Image

import mmlfer
from mmlfer_commands import _outputs, _rafce, build

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
    assert mmlfer.EMOTIONS[build.name_compound(DISTRIBUTIONS[name])] == name


def test_every_pair_of_the_14_and_no_other():
    found = {}
    for i in range(6):
        for j in range(i + 1, 6):
            p = [0.0] * 6
            p[i], p[j] = 0.6, 0.4
            found[i, j] = build.name_compound(p)
    assert sorted(k for k in found.values() if not isinstance(k, str)) == list(range(14))
    assert [pair for pair, k in found.items() if isinstance(k, str)] == [(3, 5)]
    assert "none of the 14" in found[3, 5]


OF_PAIR = {"Su Ha": "happily surprised", "Di Ha": "happily disgusted", "Fe Sa": "sadly fearful", "Sa An": "sadly angry",
           "Su Sa": "sadly surprised", "Di Sa": "sadly disgusted", "Fe An": "fearfully angry", "Su Fe": "fearfully surprised",
           "Fe Di": "fearfully disgusted", "Su An": "angrily surprised", "Di An": "angrily disgusted",
           "Su Di": "disgustedly surprised", "Fe Ha": "happily fearful", "Ha Sa": "happily sad"}


def read_off(p):
    """The label by another way: over all orders of the six probabilities that never rise, the first pair
    in column order that is a compound."""
    orders = [o for o in itertools.permutations(range(6)) if all(p[a] >= p[b] for a, b in zip(o, o[1:]))]
    pairs = sorted({tuple(sorted(o[:2])) for o in orders if p[o[1]] > 0})
    columns = ["Su", "Fe", "Di", "Ha", "Sa", "An"]
    names = [OF_PAIR.get(f"{columns[i]} {columns[j]}") for i, j in pairs]
    return next(filter(None, names), "none of the 14" if names else "no second emotion")


@pytest.mark.parametrize("levels", [2, 3, 5, 1000])
def test_compound_matches_every_order_read_off(levels):
    rng = np.random.default_rng(levels)
    seen = set()
    for _ in range(300):
        p = rng.integers(0, levels, 6) * (rng.random(6) < rng.random()) / levels
        k, name = build.name_compound(tuple(p)), read_off(p)
        assert (mmlfer.EMOTIONS[k] == name) if isinstance(k, int) else name in k, p
        seen.add(name)
    assert {"none of the 14", "no second emotion"} < seen and len(seen) > 10


@pytest.fixture
def sources(tmp_path):
    """A small RAF-ML and RAF-AU: ties of each kind, one image that only one of them has, one discarded."""
    ml, au = tmp_path / "ml", tmp_path / "au"
    (ml / "EmoLabel").mkdir(parents=True), (au / "aligned").mkdir(parents=True)
    rows = [*DISTRIBUTIONS.values(), TIED_AND_DISCARDED]
    names = [f"{i:04d}.jpg" for i in range(1, len(rows) + 1)]
    lines = [f"{n} {' '.join(map(str, p))}\n" for n, p in zip(names, rows)]
    lines += ["0100.jpg 1 0 0 0 0 0\n", "0300.jpg 0 0 0 1 0 0\n", "0301.jpg 0 0 0 0 0 0\n"]
    (ml / "EmoLabel/distribution.txt").write_text("".join(lines))
    aus = ["l12+R25", "null", "T24", "4", "1+4", "12", "1+2+25", "5"]
    (au / "RAFAU_label.txt").write_text("".join(f"{n} {a}\n" for n, a in zip(names, aus))
                                         + "0300.jpg 6+12\n0301.jpg null\n0200.jpg 77")
    for name in names[:6]:
        Image.new("RGB", (20, 20), "red").save(au / "aligned" / name.replace(".", "_aligned."))
    return ml, au


def test_rows_in_any_order_keep_what_is_theirs(tmp_path):
    rng = np.random.default_rng(3)
    names = [f"{i:04d}.jpg" for i in range(500)]
    p = {name: rng.integers(0, 5, 6) / 5 for name in names}
    aus = {name: "+".join(map(str, rng.choice(mmlfer.AUS, rng.integers(4), replace=False))) or "null" for name in names}
    for file, rows in (("distribution.txt", [f"{n} {' '.join(map(str, p[n]))}" for n in names]),
                       ("RAFAU_label.txt", [f"{n} {aus[n]}" for n in names])):
        (tmp_path / file).write_bytes(("\ufeff" + "\r\n".join(rng.permutation(rows))).encode())
    kept, y_emo, y_au, *_ = build.join_labels(tmp_path, tmp_path)
    assert sorted(kept) == [n for n in names if read_off(p[n]) in mmlfer.EMOTIONS] and kept != sorted(kept)
    assert [mmlfer.EMOTIONS[k] for k in y_emo] == [read_off(p[n]) for n in kept]
    assert y_au == [aus[n] for n in kept]


@pytest.mark.parametrize("copy", [False, True])
def test_build_makes_rafce_of_its_sources(sources, tmp_path, copy):
    ml, au = sources
    out = tmp_path / "rafce"
    with (au / "RAFAU_label.txt").open("a") as file:
        file.write("\n9999.jpg 12\n")  # not in RAF-ML
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out, *(["--copy"] if copy else []))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("""11 images in RAF-ML, 12 in RAF-AU, 10 in both
discarded 2 that have no second emotion of a probability above 0
discarded 1 that have two most probable emotions that make none of the 14
kept 7, 1 of them without an image file
partition: drawn, seed 0
""") and not result.stderr
    assert f"\n{out}: 7 images\n" in result.stdout and result.stdout.endswith("\n  not RAF-CE's own counts\n")
    faces = _rafce.load_labels(out)
    assert [mmlfer.EMOTIONS[k] for k in faces.y_emo] == list(DISTRIBUTIONS)
    assert (out / "RAFCE_AUlabel.txt").read_text().splitlines()[:3] == ["0001.jpg l12+R25", "0002.jpg null",
                                                                       "0003.jpg T24"]
    image = out / "aligned/0001_aligned.jpg"
    assert image.is_symlink() != copy and Image.open(image).size == (20, 20)
    assert sorted(p.name for p in out.iterdir()) == sorted(["aligned", *mmlfer.LABEL_FILES])
    again = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out)
    assert again.exit_code == 1 and again.stderr == f"Error: {out}: not an empty folder; name a new one\n"


@pytest.mark.parametrize("inner", ["", "RAF-AU"])
@pytest.mark.parametrize("place", ["ml", "ml/EmoLabel", "au", "au/RAF-AU"])
def test_build_takes_an_official_partition_wherever_labels_are(sources, tmp_path, place, inner):
    ml, au = sources
    (au / inner).mkdir(exist_ok=True)
    (au / "RAFAU_label.txt").rename(au / inner / "RAFAU_label.txt")
    official = tmp_path / place / "RAFCE_partition.txt"
    official.parent.mkdir(exist_ok=True)
    official.write_text("".join(f"{i:04d}.jpg {i % 3}\n" for i in range(1, 9)))  # more rows than images
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert f"partition: {official}\n" in result.output
    assert _rafce.load_labels(tmp_path / "o").split.tolist() == [1, 2, 0, 1, 2, 0, 1]
    official.write_text("0001.jpg 0\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "p")
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {official}: 6 of the 7 compound images have no row, 0002.jpg the first; take the published file, or "
        "none\n")


def test_raf_mls_partition_is_preferred_to_raf_aus(sources, tmp_path):
    """Of two places in one of them, the outer one is preferred."""
    ml, au = sources
    for code, place in enumerate((au / "EmoLabel", au, ml / "RAF-AU", ml / "EmoLabel", ml)):
        place.mkdir(exist_ok=True)
        (place / "RAFCE_partition.txt").write_text("".join(f"{i:04d}.jpg {code % 3}\n" for i in range(1, 9)))
        result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / f"o{code}")
        assert f"partition: {place}/RAFCE_partition.txt\n" in result.stdout
        assert {*_rafce.load_labels(tmp_path / f"o{code}").split.tolist()} == {code % 3}


def test_the_seed_draws_the_partition(tmp_path):
    ml, au = tmp_path / "ml", tmp_path / "au"
    ml.mkdir(), au.mkdir()
    names = [f"{i:04d}.jpg" for i in range(40)]
    (ml / "distribution.txt").write_text("".join(f"{n} .4 0 0 .6 0 0\n" for n in names))
    (au / "RAFAU_label.txt").write_text("".join(f"{n} 12\n" for n in reversed(names)))
    splits = []
    for i, seed in enumerate((3, 3, 4)):
        assert f"drawn, seed {seed}" in invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / str(i),
                                                   "--seed", seed).output
        splits.append(_rafce.load_labels(tmp_path / str(i)).split.tolist())
    assert splits[0] == splits[1] != splits[2] and np.bincount(splits[0]).tolist() == [24, 8, 8]


CROPS = ("au/aligned/{}_aligned.jpg", "au/aligned/aligned/{}.png", "au/RAF-AU/aligned/{}_aligned.jpg", "au/{}_aligned.jpg",
         "ml/Image/aligned/{}_aligned.jpg", "ml/aligned/{}.jpg")
ORIGINALS = ("au/{}.jpg", "au/RAF-AU/{}.JPG", "ml/Image/{}.jpg", "ml/{}.png")


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("original", ORIGINALS)
def test_crops_win_over_originals(sources, tmp_path, crop, original):
    shutil.rmtree(sources[1] / "aligned")
    for pattern, number, color in ((original, "0001", "red"), (original, "0003", "red"), (crop, "0001", "blue"),
                                   (crop, "0002", "blue")):
        path = tmp_path / pattern.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(path)
    out = tmp_path / "o"
    result = invoke("build", "--raf-ml", sources[0], "--raf-au", sources[1], "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stderr == ("Warning: 1 of 3 images are originals, not crops called or in `aligned`; a net should see "
                             "only one kind\n")
    index = mmlfer.image_index(out)
    assert [mmlfer.read_image(index[k]).mean((0, 1)).argmax() for k in ("0001", "0002", "0003")] == [2, 2, 0]
    assert [index[k].parent == out / "aligned" for k in ("0001", "0002", "0003")] == [True, True, False]
    assert "4 of them without an image" in result.stdout


def test_links_lead_to_the_images_from_everywhere(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("build", "--raf-ml", "ml", "--raf-au", "au", "--out", "some/where/rafce")
    assert result.exit_code == 0, result.output
    monkeypatch.chdir("/")
    links = sorted((tmp_path / "some/where/rafce/aligned").iterdir())
    assert len(links) == 6 and all(Image.open(link).size == (20, 20) for link in links)


def test_of_two_crops_raf_aus_is_taken(sources, tmp_path):
    ml, au = sources
    for folder in (ml / "Image/aligned", ml / "aligned"):
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(folder / "0001_aligned.jpg")
    assert mmlfer.image_index(au, ml, ml / "Image")["0001"] == au / "aligned/0001_aligned.jpg"


@pytest.mark.parametrize("copy", [False, True])
def test_an_image_that_cannot_be_placed_leaves_nothing_half(sources, tmp_path, monkeypatch, copy):
    ml, au = sources
    flags = ["--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o", *(["--copy"] if copy else [])]
    bad = au / "aligned/0004_aligned.jpg"
    if copy:
        bad.unlink()
        bad.symlink_to("gone.jpg")
        message = "cannot be copied (No such file or directory); fix or remove it, or free some space"
    else:
        bad = au / "aligned/0001_aligned.jpg"
        monkeypatch.setattr(os, "symlink", lambda *a, **k: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
        message = "cannot be linked (Operation not permitted); --copy copies the images"
    result = invoke("build", *flags)
    assert result.exit_code == 1 and result.stderr == f"Error: {bad}: {message}\n"
    assert not list((tmp_path / "o").iterdir())
    bad.unlink()
    monkeypatch.undo()
    assert invoke("build", *flags).exit_code == 0


def test_build_lists_images_once(sources, tmp_path):
    ml, au = sources
    labels = au / "RAFAU_label.txt"
    labels.write_text("0001.jpg 12\n0001.png 12\n")
    (ml / "EmoLabel/distribution.txt").write_text("0001.png .6 .4 0 0 0 0\n0001.jpg .6 .4 0 0 0 0\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert result.stderr == (f"Error: {labels}:2: 0001.png is the same image as 0001.jpg of row 1: both are looked for "
                             "as 0001; rename one\n")


def test_build_beside_or_within_its_sources(sources):
    ml, au = sources
    for out in (ml / "rafce", au / "rafce", au):
        result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out)
        assert result.exit_code == (out == au), result.output
    assert result.stderr == f"Error: {au}: not an empty folder; name a new one\n"


def test_a_new_folder_is_filled_at_once_or_not_at_all(tmp_path):
    out = tmp_path / "new/folder"
    with _outputs.new_folder(out) as part:
        (part / "a.txt").write_text("a")
        assert not (out / "a.txt").exists()
    assert [p.name for p in out.iterdir()] == ["a.txt"]
    (tmp_path / "killed/.part/aligned").mkdir(parents=True)
    with _outputs.new_folder(tmp_path / "killed") as part:
        assert not list(part.iterdir())
    (tmp_path / "file").touch()
    for taken in (out, tmp_path / "file"):
        with pytest.raises(mmlfer.InputError, match="not an empty folder; name a new one"), _outputs.new_folder(taken):
            pass


def test_bad_input_of_build_is_one_line(sources, tmp_path):
    ml, au = sources
    (au / "RAFAU_label.txt").write_text("0001.jpg 12\n0002.jpg 77\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert result.stderr == (f"Error: {au}/RAFAU_label.txt:2: AU 77 is not one of the 32 AUs of RAF-CE; "
                             "fix this row\n")
    (ml / "EmoLabel/distribution.txt").write_text("0001.jpg 1 2 3\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert "distribution.txt:1: expected an image name and 6 values, got 4 fields" in result.stderr
    (ml / "EmoLabel/distribution.txt").write_text("0001.jpg 0.6 1.2 0 0 0 0\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert "distribution.txt:1: expected six probabilities 0..1, got 0.6 1.2 0 0 0 0; fix" in result.stderr
    (ml / "EmoLabel/distribution.txt").write_text("0001.jpg 0.6 0.4 0 0 0 0\n")
    (au / "RAFAU_label.txt").write_text("0001.jpg 12\n")
    (au / "RAFCE_partition.txt").write_text("0001.jpg 3\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert "RAFCE_partition.txt:1: expected a whole number 0..2, got '3'; fix this row" in result.stderr
    result = invoke("build", "--raf-ml", tmp_path / "no", "--raf-au", au, "--out", tmp_path / "o")
    assert result.exit_code == 1 and "no distribution.txt there" in result.stderr
    assert not (tmp_path / "o").exists()


def test_split_is_stratified_and_of_the_seed():
    y_emo = np.repeat(np.arange(14), _rafce.RAFCE_TOTALS)
    split = build.split_faces(y_emo, 0)
    assert (split == build.split_faces(y_emo, 0)).all() and (split != build.split_faces(y_emo, 1)).any()
    for k, n in enumerate(_rafce.RAFCE_TOTALS):
        own = np.bincount(split[y_emo == k], minlength=3)
        assert own[mmlfer.TEST] == round(0.2 * n)
        assert own[mmlfer.VAL] == round(0.25 * (n - own[mmlfer.TEST]))
