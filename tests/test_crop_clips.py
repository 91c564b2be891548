"""Faces of videos as training faces."""

import dataclasses

import numpy as np
from clips import grey, rows_of, write_clip
from conftest import invoke
from PIL import Image

from mmlfer_commands import _formats, _video, crop


def test_the_faces_of_clips_become_training_faces(everywhere, monkeypatch, tmp_path):
    """The person whose face is the largest at first, also where another's is larger, or theirs is missed, until it is gone for half
    a second; others have a number behind a dot, which `convert` passes over. Frames are numbered from 1."""
    def around(left, width):
        return dataclasses.replace(everywhere, box=np.array([left, 10.0, width, 20]))

    scenes = [[around(0, 16), around(40, 20)], [around(0, 16)], [around(0, 20), around(40, 16)]]
    monkeypatch.setattr(_video, "find_faces", lambda image, found=(): scenes[int(image[0, 0, 0]) // 45])
    monkeypatch.setattr(_video, "find_again", lambda image, places: [None] * len(places))
    monkeypatch.setattr(_video, "CUT", 999)
    (tmp_path / "in/sub").mkdir(parents=True)
    write_clip(tmp_path / "in/a.webm", [np.full((48, 64, 3), 20 + 45 * i, np.uint8) for i in (0, 1, 2, 1, 1, 1, 1)], rate=5)
    write_clip(tmp_path / "in/sub/a.webm", [np.full((48, 64, 3), 65, np.uint8)], rate=5)
    Image.new("RGB", (9, 9)).save(tmp_path / "in/a.png")
    (tmp_path / "in/broken.mp4").write_bytes(b"nothing")
    (tmp_path / "in/notes.txt").write_text("")
    monkeypatch.setattr(crop, "find_faces", lambda image: [])
    result = invoke("crop", tmp_path / "in", "--out", tmp_path / "out", "--size", 32)
    assert result.exit_code == 1 and result.stdout == \
        f"10 faces of 1 images and 3 videos, 1 without a face, 1 that cannot be read: {tmp_path}/out\n"
    assert "broken.mp4: not a video that can be read" in result.stderr and "1 other file passed over (.txt)" in result.stderr
    rows = rows_of(tmp_path / "out/faces.csv")
    assert [(row["face"], row["timestamp"], row["file"].removeprefix("aligned/"), float(row["left"])) for row in rows] == [
        ("1", "0.000", "a-2/00001.jpg", 40), ("0", "0.000", "a-2/00001.2.jpg", 0), ("0", "0.200", "a-2/00002.2.jpg", 0),
        ("1", "0.400", "a-2/00003.jpg", 40), ("0", "0.400", "a-2/00003.2.jpg", 0), ("0", "0.600", "a-2/00004.2.jpg", 0),
        ("0", "0.800", "a-2/00005.2.jpg", 0), ("0", "1.000", "a-2/00006.jpg", 0), ("0", "1.200", "a-2/00007.jpg", 0),
        ("0", "0.000", "a-3/00001.jpg", 0)]
    assert rows[0]["image"] == str(tmp_path / "in/a.webm")
    assert sorted(_formats.frames_in(tmp_path / "out/aligned/a-2")) == [1, 3, 6, 7]


def test_a_clip_without_a_face_is_named(nobody, tmp_path):
    write_clip(tmp_path / "a.webm", grey(20), rate=10)
    result = invoke("crop", tmp_path / "a.webm", "--out", tmp_path / "out", "--fps", 5)
    assert result.exit_code == 0 and result.stderr.endswith(f"no face: {tmp_path}/a.webm\n") and len(nobody) == 4  # twice a second
    assert result.stdout == f"0 faces of 0 images and 1 video, 1 without a face, 0 that cannot be read: {tmp_path}/out\n"
    result = invoke("crop", tmp_path / "a.webm", "--out", tmp_path / "new", "--fps", 5, "--every", 2)
    assert result.exit_code == 2 and "--every and --fps: give one of them." in result.stderr
