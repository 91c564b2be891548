"""`video --list`: the file that entrants of C-EXPR-DB's challenge hand in."""

import csv

import pytest
import torch
from clips import grey, moving, rows_of, run, write_clip
from conftest import with_template
from scenes import drawn_faces
from test_compounds import BASIC, C_EXPR, checkpoint

from mmlfer_commands import _challenge

HEADER = ("image_location,Fearfully_Surprised,Happily_Surprised,Sadly_Surprised,Disgustedly_Surprised,Angrily_Surprised,"
          "Sadly_Fearful,Sadly_Angry")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return drawn_faces(tmp_path_factory.mktemp("challenge") / "faces", 6, 64)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """A checkpoint of basic expressions whose answers differ from face to face."""
    folder = tmp_path_factory.mktemp("challenge-net")
    path = with_template(checkpoint(folder / "plain.pt", BASIC), folder / "best.pt")
    state = torch.load(path, weights_only=True)
    state["net"]["fe.weight"] *= 50
    torch.save(state, path)
    return path


def handed_in(out):
    header, *rows = (out / "predictions.txt").read_text().split("\n")
    assert header == HEADER and rows.pop() == ""
    return [row.rsplit(",", 1) for row in rows]


def largest(rows, column):
    """{frame: k} by the definition, of the face that covers most over all frames."""
    area = {}
    for row in rows:
        if row["success"] == "1":
            area[row["face_id"]] = area.get(row["face_id"], 0) + float(row["width"]) * float(row["height"])
    answers = {}
    for frame in {row["frame"] for row in rows if row["success"] == "1"}:
        _, best = max((area[row["face_id"]], row[column]) for row in rows if row["frame"] == frame)
        answers[int(frame)] = C_EXPR.index(best)
    return answers


def test_an_answer_for_each_frame_of_the_list(ckpt, faces, tmp_path):
    """Two clips: a face that is gone in the middle and at the end, and two people in a clip whose name has a blank; the
    list has its own order, quirks, frames after the end, and two halves of a clip of two people."""
    first = write_clip(tmp_path / "7-16x9.webm", moving(faces[:1], [lambda i: (60, 60) if i in (0, 1, 5, 6) else None], 9))
    second = write_clip(tmp_path / "two people.webm", moving(
        faces[1:3], [lambda i: (45, 60) if i != 3 else None, lambda i: (150, 60) if i < 5 else None], 6, eyes=27))
    listed = [f"two people/{i:05d}.jpg" for i in (3, 2, 1, 4, 5, 6)] + [f"cropped_aligned/7-16x9/{i:05d}.jpg" for i in range(1, 13)]
    listed += [f"two people_{side}/{i:05d}.jpg" for side in ("left", "right") for i in range(1, 7)]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfimage_location\r\n\r\n" + "\r\n".join(
        f"{name}," if i % 3 else name for i, name in enumerate(listed)).encode() + b"\r\n\r\n")
    result = run(ckpt, tmp_path / "out", first, second, "--list", tmp_path / "list.txt", "--search", 0)
    assert result.exit_code == 0, result.output
    rows = handed_in(tmp_path / "out")
    assert [name for name, _ in rows] == listed
    one, two = (rows_of(tmp_path / f"out/{clip.stem}.csv") for clip in (first, second))
    assert {float(row["p"]) for row in one if row["p"]} and len({row["expression"] for row in one + two if row["success"] == "1"}) > 1
    answers, of_two = largest(one, "expression"), largest(two, "expression")
    assert set(answers) == {0, 1, 5, 6}
    near = {0: 0, 1: 1, 2: 1, 3: 1, 4: 5, 5: 5, 6: 6, **dict.fromkeys(range(7, 12), 6)}
    want = [of_two[i - 1] for i in (3, 2, 1, 4, 5, 6)] + [answers[near[i]] for i in range(12)]
    for side, there in (("left", (0, 1, 2, 4, 5)), ("right", (0, 1, 2, 3, 4))):
        half = {int(row["frame"]): C_EXPR.index(row["expression"]) for row in two if row["success"] == "1"
                and (float(row["x"]) < 97) == (side == "left")}
        assert set(half) == set(there)
        want += [half.get(i, half[2] if side == "left" else half[4]) for i in range(6)]
    assert [int(k) for _, k in rows] == want
    assert result.stdout.splitlines()[-1] == f"{tmp_path}/out/predictions.txt: 30 of 30 rows"
    assert result.stderr.splitlines()[1:] == [
        "7 rows have the nearest frame's answer: no face in theirs (7-16x9, two people_left, two people_right)",
        "3 rows have the nearest frame's answer: the clip ends before (7-16x9)"]


def test_clips_without_a_face_and_clips_that_are_not_there(ckpt, faces, tmp_path):
    clip = write_clip(tmp_path / "a.webm", moving(faces[:1], [lambda i: (60, 60)], 3))
    write_clip(tmp_path / "b.webm", grey(4))
    (tmp_path / "c.webm").write_bytes(b"no video")
    (tmp_path / "list.txt").write_text("".join(f"{video}/{i:05d}.jpg\n" for video in "abcd" for i in (1, 2)))
    result = run(ckpt, tmp_path / "out", clip, tmp_path / "b.webm", tmp_path / "c.webm", "--list", tmp_path / "list.txt", "--smooth", 5)
    assert result.exit_code == 1 and "Warning: skipped" in result.stderr
    table = rows_of(tmp_path / "out/a.csv")
    (name,) = {row["expression_smooth"] for row in table}
    k = C_EXPR.index(name)
    assert handed_in(tmp_path / "out") == [[f"{video}/0000{i}.jpg", str(k)] for video in "ab" for i in (1, 2)]
    assert result.stdout.splitlines()[-1].endswith("predictions.txt: 4 of 8 rows")
    assert result.stderr.splitlines()[-2:] == [f"2 rows have the commonest answer, {name}: no face in their clip (b)",
                                               "4 rows are lacking: their clip is not given, or cannot be read (c, d)"]
    result = run(ckpt, tmp_path / "out", clip, "--list", tmp_path / "list.txt")
    assert (result.exit_code, "out/a.csv: exists" in result.stderr) == (1, True)
    (tmp_path / "out/a.csv").unlink()
    result = run(ckpt, tmp_path / "out", clip, "--list", tmp_path / "list.txt")
    assert (result.exit_code, "out/predictions.txt: exists" in result.stderr) == (1, True)
    result = run(ckpt, tmp_path / "none", tmp_path / "b.webm", "--list", tmp_path / "list.txt")
    assert result.exit_code == 1 and result.stderr.endswith("no face in any of the list's clips; nothing to hand in\n")
    assert not (tmp_path / "none/predictions.txt").exists() and (tmp_path / "none/b.csv").exists()


@pytest.mark.parametrize("text,clips,said", [
    ("image_location\na/00001.jpg\na/x.jpg\n", ("a.mp4",), ":3: expected VIDEO/00001.jpg, with frames from 1, got a/x.jpg; fix this row"),
    ("a/00000.jpg\n", ("a.mp4",), ":1: expected VIDEO/00001.jpg, with frames from 1, got a/00000.jpg"),
    ("00001.jpg\n", ("a.mp4",), ":1: expected VIDEO"),
    ("b/00001.jpg\n", ("a.mp4", "c.mp4"), ": clips must be called as the folders in the list, and each differently; none of a, c is"),
    ("a/00001.jpg\n", ("x/a.mp4", "y/a.webm"), ": clips must be called"), ("", ("a.mp4",), ": clips must be called"),
])
def test_a_list_that_cannot_be_used_is_one_line_before_any_work(ckpt, tmp_path, text, clips, said):
    (tmp_path / "list.txt").write_text(text)
    result = run(ckpt, tmp_path / "out", *clips, "--list", tmp_path / "list.txt")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/list.txt{said}") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [("--every", 2), ("--fps", 5), ("--start", 1), ("--end", 2)])
def test_every_frame_is_needed(ckpt, tmp_path, options):
    (tmp_path / "list.txt").write_text("a/00001.jpg\n")
    result = run(ckpt, tmp_path / "out", "a.mp4", "--list", tmp_path / "list.txt", *options)
    assert result.exit_code == 2 and "--list needs every frame" in result.stderr


def test_the_sides_of_a_clip_are_told_by_the_middle_between_two_people(tmp_path):
    """A person alone in a frame is left or right as in the frames with both; without such frames there are no sides."""
    columns = ["frame", "face_id", "success", "x", "width", "height", "expression"]
    rows = [(0, 0, 1, 10, 20, 20, "a"), (0, 1, 1, 100, 20, 20, "b"), (1, 1, 1, 90, 20, 20, "c"), (2, 0, 1, 30, 20, 20, "b"),
            (3, "", 0, "", "", "", ""), (4, 2, 1, 12, 60, 60, "c"), (4, 0, 1, 10, 20, 20, "a"), (4, 1, 1, 101, 20, 20, "b")]

    def table(some):
        with open(tmp_path / "t.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *some])
        return tmp_path / "t.csv"

    assert _challenge.answers_of(table(rows), "", ["a", "b", "c"]) == ({0: 1, 1: 2, 2: 1, 4: 2}, 4)  # the first of equal areas is below
    assert _challenge.answers_of(table(rows), "_left", ["a", "b", "c"]) == ({0: 0, 2: 1, 4: 2}, 4)
    assert _challenge.answers_of(table(rows), "_right", ["a", "b", "c"]) == ({0: 1, 1: 2, 4: 1}, 4)
    assert _challenge.answers_of(table(rows[2:5]), "_right", ["a", "b", "c"]) == ({1: 2, 2: 1}, 3)
    assert _challenge.answers_of(table([]), "", ["a"]) == ({}, -1)


def test_what_is_seen_longest_and_commonest_answers(tmp_path):
    """A face of 10x10 in ten frames covers more than one of 25x25 in one; the commonest of all answers stands where there
    is no face; a frame in which the two stand elsewhere does not move the middle."""
    def write(name, rows):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["frame", "face_id", "success", "x", "width", "height", "expression"], *rows])
        return tmp_path / f"{name}.csv"

    long = write("long", [*((i, 0, 1, 10, 10, 10, "b") for i in range(10)), (9, 1, 1, 50, 25, 25, "a")])
    assert _challenge.answers_of(long, "", ["a", "b"]) == (dict.fromkeys(range(10), 1), 9)
    rows = [row for i in range(5) for row in ((i, 0, 1, 10, 10, 10, "a"), (i, 1, 1, 90, 10, 10, "b"))]
    moved = write("moved", [*rows, (5, 0, 1, 0, 10, 10, "a"), (5, 1, 1, 12, 10, 10, "b"), (6, 0, 1, 30, 10, 10, "a")])
    assert _challenge.answers_of(moved, "_left", ["a", "b"])[0][6] == 0
    tables = {name: (write(name, of) if of else tmp_path / f"{name}.csv", "") for name, of in
              {"long": (), "moved": (), "none": [(0, "", 0, "", "", "", "")]}.items()}
    _challenge.hand_in([("none/00001.jpg", "none", 1), ("long/00001.jpg", "long", 1), ("moved/00001.jpg", "moved", 1)], tables, ["a", "b"], tmp_path)
    assert (tmp_path / "predictions.txt").read_text().splitlines()[:2] == ["image_location,A,B", "none/00001.jpg,1"]
