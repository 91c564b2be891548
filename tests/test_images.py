"""Images as people have them: odd places, depths and damage; one image a row."""

import io
import os
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, invoke, write_labels_as
from PIL import Image
from reference import AUS

import mmlfer
from mmlfer_commands import _rafce

TWINS = [("a/1.jpg", "b/1.jpg"), ("1.jpg", "1.png"), ("frame.001", "frame.002"), ("1.jpg", "1_aligned.jpg")]


@pytest.mark.parametrize("one,other", TWINS)
def test_two_rows_of_one_image_are_an_error_that_names_both(tmp_path, one, other):
    write_labels_as(tmp_path, *(f"0.jpg {v}\n{one} {v}\n{other} {v}\n" for v in ("0", "0", "4")))
    result = invoke("stats", "--data", tmp_path)
    assert result.exit_code == 1
    stem = mmlfer.stem(one)
    assert result.stderr == (f"Error: {tmp_path}/RAFCE_emolabel.txt:3: {other} is the same image as {one} of row 2: "
                             f"both are looked for as {stem}; rename one\n")


def paint(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (level,) * 3).save(path)


# (loses, wins): what is called or lies in `aligned` wins, wherever the other lies
RIVALS = [("0005.jpg", "RAF-AU/aligned/0005_aligned.jpg"), ("RAF-AU/0005.jpg", "0005_aligned.png"),
          ("0005.jpg", "0005_aligned.jpg"), ("0005.jpg", "aligned/0005.jpg"), ("RAF-AU/0005.png", "aligned/aligned/0005.bmp"),
          ("0005.png", "RAF-AU/0005_aligned.JPG"), ("RAF-AU/aligned/0005_aligned.jpg", "aligned/0005_aligned.jpg")]


@pytest.mark.parametrize("loser,winner", RIVALS)
def test_aligned_crops_win_over_originals(tmp_path, loser, winner):
    paint(tmp_path / loser, 20), paint(tmp_path / winner, 220)
    assert mmlfer.image_index(tmp_path) == {"0005": tmp_path / winner}


def test_hidden_files_are_no_images_of_a_data_set(tmp_path):
    paint(tmp_path / "aligned/0005_aligned.jpg", 220)
    (tmp_path / "aligned/._0005_aligned.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert mmlfer.image_index(tmp_path) == {"0005": tmp_path / "aligned/0005_aligned.jpg"}


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_images_of_one_name_the_first_by_name_wins(tmp_path, monkeypatch, order):
    """The order in which the system lists them does not matter."""
    for name in ("0007.jpg", "0007.png", "0008_aligned.bmp", "0008_aligned.jpg"):
        paint(tmp_path / name, 20)
    monkeypatch.setattr(Path, "iterdir", lambda folder: [folder / name for name in sorted(os.listdir(folder))[::order]])
    assert mmlfer.image_index(tmp_path) == {"0007": tmp_path / "0007.jpg", "0008": tmp_path / "0008_aligned.bmp"}


@pytest.mark.parametrize("name,stem", [
    ("sad_angel_aligned.jpg", "sad_angel"), ("angled.png", "angled"), ("a/0001_aligned.JPG", "0001"),
    ("aligned.jpg", "aligned"), ("0001_aligned_2.jpg", "0001_aligned_2"), ("1.2_aligned.png", "1.2")])
def test_the_stem_of_a_name(name, stem):
    assert mmlfer.stem(name) == stem


def transparent(kind):
    """Four pixels with the levels 200, 100, 100, 0 and the opacities 1, 1, 0, 0.2 (with one transparent colour: 0)."""
    levels, alpha = [200, 100, 100, 0], [255, 255, 0, 51]
    if kind in ("LA", "RGBA"):
        pixels = [(v, a) if kind == "LA" else (v, v, v, a) for v, a in zip(levels, alpha)]
        image = Image.new(kind, (4, 1))
        image.putdata(pixels)
        return image, {}
    image = Image.new("P", (4, 1))
    image.putpalette([v for level in levels for v in (level,) * 3])
    image.putdata(range(4))
    if kind == "PA":
        image = image.convert("PA")
        image.putalpha(Image.frombytes("L", (4, 1), bytes(alpha)))
        return image, {}
    return image, {"transparency": bytes(alpha) if kind == "P of four" else 3}


@pytest.mark.parametrize("kind,expected", [
    ("LA", [200, 100, 255, 204]), ("RGBA", [200, 100, 255, 204]), ("PA", [200, 100, 255, 204]),
    ("P of four", [200, 100, 255, 204]), ("P of one", [200, 100, 100, 255])])
def test_what_is_transparent_shows_white(tmp_path, kind, expected):
    image, options = transparent(kind)
    path = tmp_path / ("a.tif" if kind == "PA" else "a.png")
    image.save(path, **options)
    with Image.open(path) as written:
        assert written.mode == kind.split()[0]
    pixels = mmlfer.read_image(path)
    assert np.abs(pixels - np.array(expected)[None, :, None]).max() <= 1


def test_a_mixture_of_aligned_and_other_images_is_warned_of(tmp_path, capsys):
    names = [f"{i:04d}.jpg" for i in range(1, 8)]
    write_labels_as(tmp_path, *("".join(f"{n} {v}\n" for n in names) for v in ("0", "0", "4")))
    for i, name in enumerate(names):
        paint(tmp_path / ("aligned/" + name if i < 5 else name), 30 * i)
    faces = mmlfer.load_images(_rafce.load_labels(tmp_path), tmp_path, 32)
    assert faces.images.float().mean((1, 2, 3)).tolist() == pytest.approx([30 * i for i in range(7)], abs=1)
    assert capsys.readouterr().err == (f"Warning: 5 aligned crops and 2 other images, such as {tmp_path}/0006.jpg: "
                                       "faces should be cropped alike\n")
    paint(tmp_path / "aligned/0006.jpg", 0), paint(tmp_path / "aligned/0007.jpg", 0)
    mmlfer.load_images(_rafce.load_labels(tmp_path), tmp_path, 32)
    assert capsys.readouterr().err == ""


DEPTHS = {  # pixels as they are stored, what stands for white in them, what is said
    "16 bits": (np.uint16, 65535, None),
    "8 bits in 16": (np.uint16, 255, "0..255"),
    "32 bits of 8": (np.int32, 255, "0..255"),
    "32 bits of 16": (np.int32, 65535, None),
    "float of 1": (np.float32, 1, "0..1"),
    "float of 255": (np.float32, 255, "0..255"),
}


@pytest.mark.parametrize("kind", DEPTHS)
def test_deep_images_are_scaled_by_what_they_hold(tmp_path, capsys, kind):
    dtype, white, said = DEPTHS[kind]
    levels = np.linspace(0, 1, 16)[None, :].repeat(16, 0)
    for name in ("a.tif", "b.tif"):
        Image.fromarray((levels * white).astype(dtype)).save(tmp_path / name)
    mmlfer.tell_once.cache_clear()
    pixels = [mmlfer.read_image(tmp_path / name) for name in ("a.tif", "b.tif")]
    assert all(np.abs(p - 255 * levels[..., None]).max() < 1.01 and p.shape == (16, 16, 3) for p in pixels)
    text = f"Note: images of 16 or 32 bits whose values lie in {said} are read as {said}\n" if said else ""
    assert capsys.readouterr().err == text  # once, not for each


def test_values_above_255_are_of_16_bits():
    for brightest in (4096, 16383, 65535):  # 14 bits are taken for a dark photograph of 16
        pixels = mmlfer.to_8_bits(np.array([[0, 257, 2570, brightest]], np.uint16))
        assert pixels.tolist() == [[0, 1, 10, brightest // 257]]
    assert mmlfer.to_8_bits(np.zeros((2, 2), np.uint16)).max() == 0  # black in every range


UNKNOWN_WHITE = {  # the type, the darkest and the brightest value, how they are named
    "12 bits in 16": (np.uint16, 0, 4095, "0..4095"),
    "10 bits in 16": (np.uint16, 3, 1023, "3..1023"),
    "4 bits in 16": (np.uint16, 0, 15, "0..15"),
    "more than 16 bits": (np.int32, 0, 70000, "0..70000"),
    "below 0": (np.int32, -32768, 32767, "-32768..32767"),
    "floats above 1": (np.float32, 0, 1.02, "0..1.02"),
    "floats from -1": (np.float32, -1, 1, "-1..1"),
    "floats above 16 bits": (np.float32, 0, 65536, "0..65536"),
    "no number": (np.float32, 0, np.nan, "nan..nan"),
    "infinite": (np.float32, 0, np.inf, "0..inf"),
    "minus infinite": (np.float32, -np.inf, 1, "-inf..1"),
}


@pytest.mark.parametrize("kind", UNKNOWN_WHITE)
def test_a_range_whose_white_is_unknown_is_refused(tmp_path, kind):
    dtype, low, high, said = UNKNOWN_WHITE[kind]
    name = tmp_path / ("a.png" if dtype == np.uint16 else "a.tif")
    pixels = np.full((16, 16), (low if np.isfinite(low) else 0) / 2 + 0.25)
    pixels[3, 4], pixels[5, 6] = low, high
    pixels[pixels < low] = low
    Image.fromarray(pixels.astype(dtype)).save(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        why = mmlfer.try_read(name, 32)
    assert why == (f"{name}: not an image that can be read (values {said}: no known range (0..1, 0..255, 0..65535); "
                   "convert it to 8 bits)")


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("brightest, read", [(4095, False), (4096, True), (65535, True), (0, True)])
def test_colours_of_12_bits_in_16_are_refused(tmp_path, ending, brightest, read):
    """Pillow itself keeps only the upper 8 of a colour's 16 bits."""
    import cv2

    path, pixels = tmp_path / f"a.{ending}", np.zeros((16, 16, 3), np.uint16)
    pixels[4:9, 5, 0] = brightest  # blue
    cv2.imwrite(str(path), pixels)
    image = mmlfer.try_read(path, None)
    if read:
        assert (image == pixels[:, :, ::-1] >> 8).all()
    else:
        assert image == (f"{path}: not an image that can be read (values below 4096 in 16 bits: no known range "
                         "(0..1, 0..255, 0..65535); convert it to 8 bits)")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of the damage
def test_no_damage_to_exif_costs_the_pixels(tmp_path):
    """The tags of a turned photograph; 600 times random bytes of its EXIF header are changed."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "a face", {0x9003: "2020:01:01 00:00:00"}
    plain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8))
    buffer = io.BytesIO()
    plain.save(buffer, "PNG", exif=exif)
    content = buffer.getvalue()
    start, dice = content.index(b"eXIf") + 4, np.random.default_rng(1)
    length = struct.unpack(">I", content[start - 8 : start - 4])[0]
    odd = 0
    for _ in range(600):
        damaged = bytearray(content)
        for place in dice.integers(start, start + length, 3):
            damaged[place] = dice.integers(0, 256)
        (tmp_path / "a.png").write_bytes(fix_crc(damaged, start, length))
        pixels = mmlfer.try_read(tmp_path / "a.png", None)
        assert not isinstance(pixels, str), pixels
        turned = [np.asarray(plain.transpose(k)) for k in Image.Transpose] + [np.asarray(plain)]
        assert any(np.array_equal(pixels, t) for t in turned)
        odd += pixels.shape == (24, 16, 3)
    assert 0 < odd < 600


def fix_crc(content, start, length):
    import zlib

    crc = zlib.crc32(content[start - 4 : start + length])
    content[start + length : start + length + 4] = struct.pack(">I", crc)
    return bytes(content)


@pytest.mark.parametrize("error", [struct.error("x"), TypeError(), AttributeError("y"), NotImplementedError("DDS"),
                                   RuntimeError("AVIF"), MemoryError(), ValueError("z"), RecursionError()])
def test_whatever_a_decoder_raises_is_a_bad_image(tmp_path, monkeypatch, error):
    def broken(*args, **kwargs):
        raise error

    (tmp_path / "a.jpg").write_bytes(b"anything")
    monkeypatch.setattr(mmlfer.Image, "open", broken)
    why = str(error) or type(error).__name__
    assert mmlfer.try_read(tmp_path / "a.jpg", 32) == f"{tmp_path}/a.jpg: not an image that can be read ({why})"


def test_a_dds_file_named_jpg_is_a_bad_image(tmp_path):
    header = b"DDS " + struct.pack("<I", 124) + b"\0" * 68 + struct.pack("<II4s", 32, 4, b"ZZZZ") + b"\0" * 44
    (tmp_path / "a.jpg").write_bytes(header)
    assert mmlfer.try_read(tmp_path / "a.jpg", 32).startswith(f"{tmp_path}/a.jpg: not an image")


def test_skip_bad_images_names_pipes_bombs_and_odd_formats(faces_folder, tmp_path):
    import shutil

    folder = tmp_path / "faces"
    shutil.copytree(faces_folder, folder)
    paths = sorted((folder / "aligned").iterdir())
    paths[0].unlink(), os.mkfifo(paths[0])
    Image.new("1", (15000, 10000)).save(paths[1].with_suffix(".png"))
    paths[1].unlink()
    start = time.perf_counter()
    result = invoke("train", "--data", folder, "--out", tmp_path / "r", "--epochs", 1, *SMALL)
    assert time.perf_counter() - start < 20 and result.exit_code == 1
    assert result.stderr.startswith(
        f"Error: 2 of 60 images cannot be read: {paths[0]}: no regular file; {paths[1].with_suffix('.png')}: not an "
        "image that can be read (Image size (150000000 pixels) exceeds limit of 89478485 pixels")
    result = invoke("train", "--data", folder, "--out", tmp_path / "r", "--epochs", 1, "--method", "stl",
                    "--skip-bad-images", *SMALL)
    assert result.exit_code == 0, result.output
    assert "Warning: left out 2 images that cannot be read" in result.stderr


@pytest.mark.parametrize("bad", [{0, 1, 129}, {200, 255, 256, 257, 511, 512}])
def test_labels_stay_with_their_images_past_every_chunk_and_bad_one(tmp_path, monkeypatch, bad):
    """600 images whose colour encodes their number; some are broken, and the rows are in random order."""
    monkeypatch.setattr(mmlfer, "AHEAD", 64)
    order = np.random.default_rng(3).permutation(600)
    names = [f"{i}.jpg" for i in order]
    emo = {n: int(n[:-4]) * 7 % 14 for n in names}
    split = {n: int(n[:-4]) % 3 for n in names}
    write_labels_as(tmp_path, "".join(f"{n} {emo[n]}\n" for n in names), "".join(f"{n} {split[n]}\n" for n in reversed(names)),
                    "".join(f"{n} {mmlfer.AUS[int(n[:-4]) % 32]}\n" for n in sorted(names)))
    (tmp_path / "aligned").mkdir()
    for place, name in enumerate(names):
        number = int(name[:-4])
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., 0], image[..., 1] = number // 256, number % 256
        Image.fromarray(image).save(tmp_path / "aligned" / name.replace(".jpg", "_aligned.png"))
        if place in bad:
            (tmp_path / "aligned" / name.replace(".jpg", "_aligned.png")).write_bytes(b"bad")
    faces = mmlfer.load_images(_rafce.load_labels(tmp_path), tmp_path, 32, skip_bad=True)
    numbers = (faces.images[:, 0].long() * 256 + faces.images[:, 1].long())[:, 5, 5].tolist()
    assert numbers == [int(n[:-4]) for i, n in enumerate(names) if i not in bad]
    assert faces.names == [f"{i}.jpg" for i in numbers]
    assert faces.y_emo.tolist() == [i * 7 % 14 for i in numbers] and faces.split.tolist() == [i % 3 for i in numbers]
    assert faces.y_au.argmax(1).tolist() == [i % 32 for i in numbers] and (faces.y_au.sum(1) == 1).all()


# ---------------------------------------------------------------- each image at its row, in its place, at its size


def colour_of(i):
    return 7 * i % 256, i // 36, 90


def test_labels_stay_with_their_images_when_bad_ones_are_left_out(tmp_path):
    """300 faces, each of another colour; bad ones are at the start, in the middle and around the 256th."""
    rng, bad = np.random.default_rng(1), [0, 7, 8, 100, 255, 256, 290, 299]
    order = rng.permutation(300)
    emo, split, au = rng.integers(0, 14, 300), rng.integers(0, 3, 300), rng.integers(0, 32, 300)
    for name, value in (("emolabel", emo), ("partition", split), ("AUlabel", [AUS[j] for j in au])):
        (tmp_path / f"RAFCE_{name}.txt").write_text("".join(f"{i:04d}.jpg {value[i]}\n" for i in order))
    (tmp_path / "aligned").mkdir()
    for place, i in enumerate(order):
        path = tmp_path / f"aligned/{i:04d}_aligned.png"
        if place in bad[::2]:
            path.write_bytes(b"no image")
        elif place not in bad:
            Image.new("RGB", (32, 32), colour_of(int(i))).save(path)
    faces = mmlfer.load_images(_rafce.load_labels(tmp_path), tmp_path, 32, skip_bad=True)
    kept = [int(i) for place, i in enumerate(order) if place not in bad]
    assert faces.names == [f"{i:04d}.jpg" for i in kept]
    assert faces.images.float().mean((2, 3)).tolist() == [list(colour_of(i)) for i in kept]
    assert faces.y_emo.tolist() == emo[kept].tolist() and faces.split.tolist() == split[kept].tolist()
    assert (faces.y_au == np.eye(32)[au[kept]]).all()


def triangle_weights(n, size):
    """The weight of each of n pixels in each of `size` new ones: a triangle as wide as the larger pixel."""
    scale = n / size
    distance = np.abs(np.arange(n)[None] + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("height,width", [(64, 64), (20, 20), (47, 80), (32, 32)])
def test_images_are_resized_bilinearly(tmp_path, height, width):
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ours = mmlfer.read_image(tmp_path / "a.png", 32)
    down, across = triangle_weights(height, 32), triangle_weights(width, 32)
    naive = np.einsum("ih,hwc,jw->ijc", down, pixels.astype(float), across)
    assert ours.shape == (32, 32, 3) and ours.dtype == np.uint8
    assert np.abs(ours - naive).max() <= 1.01  # rounded after each of the two directions


PLACES = ["aligned/aligned/0001_aligned.jpg", "aligned/0001_aligned.jpg", "0001.jpg"]


@pytest.mark.parametrize("base", ["", "RAF-AU/"])
def test_the_inner_place_of_an_image_is_preferred(tmp_path, base):
    places = [base + place for place in PLACES]
    if not base:  # images beside the label files are preferred to those of RAF-AU
        places = [*places[:2], *("RAF-AU/" + place for place in PLACES[:2])]
    for code, place in reversed(list(enumerate(places))):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * code, 0, 0)).save(tmp_path / place)
        for name, value in zip(mmlfer.LABEL_FILES, "304"):
            (tmp_path / name).write_text(f"0001.jpg {value}\n" if name != mmlfer.LABEL_FILES[1] else "0001.jpg 0\n")
        faces = mmlfer.load_images(_rafce.load_labels(tmp_path), tmp_path, 32)
        assert abs(int(faces.images[0, 0].float().mean()) - 60 * code) < 4, place


def test_a_16_bit_image_of_0_and_1_alone_is_nearly_black_not_black_and_white():
    """Only fractions say that the range is 0..1."""
    pixels = np.array([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="values 0..1: no known range"):
        mmlfer.to_8_bits(pixels)
    assert mmlfer.to_8_bits(pixels * 0.5 + 0.5).tolist() == [[127, 255], [255, 127]]
