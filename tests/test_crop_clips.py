"""Faces of videos as training faces."""

import dataclasses

from clips import grey, rows_of, write_clip
from conftest import invoke
from PIL import Image

from mmlfer_commands import _formats, _video, crop


def test_the_faces_of_clips_become_training_faces(everywhere, monkeypatch, tmp_path):
    """Of each frame, numbered from 1; the largest face first, others by a number behind a dot. `convert` then takes the largest."""
    small = dataclasses.replace(everywhere, box=everywhere.box + [20, 0, -8, 0])
    monkeypatch.setattr(_video, "find_faces", lambda image, found=(): [small, everywhere])
    monkeypatch.setattr(_video, "find_again", lambda image, places: [None] * len(places))
    (tmp_path / "in/sub").mkdir(parents=True)
    write_clip(tmp_path / "in/a.webm", grey(5), rate=10)
    write_clip(tmp_path / "in/sub/a.webm", grey(2), rate=10)
    Image.new("RGB", (9, 9)).save(tmp_path / "in/a.png")
    (tmp_path / "in/broken.mp4").write_bytes(b"nothing")
    (tmp_path / "in/notes.txt").write_text("")
    monkeypatch.setattr(crop, "find_faces", lambda image: [])
    result = invoke("crop", tmp_path / "in", "--out", tmp_path / "out", "--every", 2, "--size", 32)
    assert result.exit_code == 1 and result.stdout == \
        f"8 faces of 1 images and 3 videos, 1 without a face, 1 that cannot be read: {tmp_path}/out\n"
    assert "broken.mp4: not a video that can be read" in result.stderr and "1 other file passed over (.txt)" in result.stderr
    found = sorted(str(path.relative_to(tmp_path / "out/aligned")) for path in (tmp_path / "out/aligned").rglob("*.*"))
    assert found == [*(f"a-2/0000{i}{j}.jpg" for i in (1, 3, 5) for j in (".2", "")), "a-3/00001.2.jpg", "a-3/00001.jpg"]
    rows = rows_of(tmp_path / "out/faces.csv")
    assert [(row["face"], row["timestamp"], row["file"], float(row["width"])) for row in rows[2:4]] == [
        ("0", "0.200", "aligned/a-2/00003.jpg", 30.0), ("1", "0.200", "aligned/a-2/00003.2.jpg", 22.0)]
    assert rows[0]["image"] == str(tmp_path / "in/a.webm")
    assert [path.name for path in _formats.frames_in(tmp_path / "out/aligned/a-2").values()] == ["00001.jpg", "00003.jpg", "00005.jpg"]


def test_a_clip_without_a_face_is_named(nobody, tmp_path):
    write_clip(tmp_path / "a.webm", grey(20), rate=10)
    result = invoke("crop", tmp_path / "a.webm", "--out", tmp_path / "out", "--fps", 5)
    assert result.exit_code == 0 and result.stderr.endswith(f"no face: {tmp_path}/a.webm\n") and len(nobody) == 4  # twice a second
    assert result.stdout == f"0 faces of 0 images and 1 video, 1 without a face, 0 that cannot be read: {tmp_path}/out\n"
    result = invoke("crop", tmp_path / "a.webm", "--out", tmp_path / "new", "--fps", 5, "--every", 2)
    assert result.exit_code == 2 and "--every and --fps: give one of them." in result.stderr
