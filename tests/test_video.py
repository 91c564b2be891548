"""Predictions on videos: the rows, their times, who is who, and what can go wrong."""

import json
import struct

import cv2
import numpy as np
import pytest
from clips import grey, moving, rows_of, run, times_of, write_at, write_clip
from conftest import invoke
from PIL import Image
from scenes import drawn_faces

import mmlfer
from mmlfer_commands import _alignment, _video, predict, video

OPENFACE = ["frame", "face_id", "timestamp", "confidence", "success", "x", "y", "width", "height"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Six drawn faces, 64x64."""
    return drawn_faces(tmp_path_factory.mktemp("video") / "faces", 6, 64)


@pytest.fixture(scope="module")
def two(faces, tmp_path_factory):
    """A clip of 6 frames, 10 per second: one face, a second one from the third frame on; the last frame has none."""
    paths = [lambda i: (50 + i, 60) if i < 5 else None, lambda i: (150, 60) if 2 <= i < 5 else None]
    return write_clip(tmp_path_factory.mktemp("clip") / "two faces.webm", moving(faces, paths, 6))


# ---------------------------------------------------------------- rows


def test_a_row_a_frame_and_face(templated, two, tmp_path):
    result = run(templated, tmp_path, two, "--search", 0)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{two}: 6 frames, 2 faces, 1 frames without one: {tmp_path}/two faces.csv\n"
    rows, state = rows_of(tmp_path / "two faces.csv"), mmlfer.read_checkpoint(templated)
    points = [f"{point}_{axis}" for point in ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth") for axis in "xy"]
    expressions = ["p_" + name.replace(" ", "_") for name in state["emotions"]]
    aus = [f"AU{au:02}_{end}" for au in state["aus"] for end in "pc"]
    assert list(rows[0]) == [*OPENFACE, *points, "expression", "p", *expressions, *aus]
    assert not [column for column in rows[0] if column.endswith("_r")]
    assert [(row["frame"], row["face_id"], row["timestamp"], row["success"]) for row in rows] == [
        ("0", "0", "0.000", "1"), ("1", "0", "0.100", "1"), *((str(i), face, f"0.{i}00", "1") for i in (2, 3, 4) for face in "01"),
        ("5", "", "0.500", "0")]
    for row in rows[:-1]:
        p = [float(row[name]) for name in expressions]
        assert row["expression"] == state["emotions"][np.argmax(p)] and float(row["p"]) == max(p)
        x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
        assert x < float(row["nose_x"]) < x + width and y < float(row["nose_y"]) < y + height and 0.6 <= float(row["confidence"]) <= 1
        assert [row[f"AU{au:02}_c"] for au in state["aus"]] == [str(int(float(row[f"AU{au:02}_p"]) > 0.5)) for au in state["aus"]]
    assert {value for name, value in rows[-1].items() if name not in ("frame", "timestamp", "success")} == {""}


def test_the_first_frame_is_answered_as_its_photograph(templated, two, tmp_path):
    Image.fromarray(cv2.VideoCapture(str(two)).read()[1][:, :, ::-1]).save(tmp_path / "frame.png")
    assert run(templated, tmp_path, two, "--end", 0.05).exit_code == 0
    (row,) = rows_of(tmp_path / "two faces.csv")
    result = invoke("predict", "--ckpt", templated, "--photos", tmp_path / "frame.png", "--csv", tmp_path / "p.csv", "--json")
    assert result.exit_code == 0, result.output
    (photo,) = rows_of(tmp_path / "p.csv")
    shared = [name for name in row if name in photo and name not in ("p",)]
    assert len(shared) > 14 + 64 + 10 and [row[name] for name in shared] == [photo[name] for name in shared]
    assert [float(row[name]) for name in ("x", "y", "width", "height")] == json.loads(result.stdout)[0]["box"]


def test_smoothed_columns_are_means_over_a_window_in_time(templated, everywhere, tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(12)]
    times = [0, 40, 80, 200, 240, 500, 540, 900, 910, 920, 930, 1500]
    clip = write_at(tmp_path / "a.mp4", images, times)
    assert run(templated, tmp_path / "plain", clip).exit_code == 0 and run(templated, tmp_path, clip, "--smooth", 0.4).exit_code == 0
    rows, plain = rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "plain/a.csv")
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain and "p_smooth" not in plain[0]
    names = [name for name in plain[0] if name.startswith("p_")]
    for row, time in zip(rows, times):
        near = [other for other, t in zip(plain, times) if abs(t - time) <= 200]
        means = {name: np.mean([float(other[name]) for other in near]) for name in names}
        assert [float(row[f"{name}_smooth"]) for name in names] == pytest.approx(list(means.values()), abs=2e-6)
        assert float(row["AU12_smooth"]) == pytest.approx(np.mean([float(other["AU12_p"]) for other in near]), abs=2e-6)
        first = max(means, key=means.get)
        assert row["expression_smooth"].replace(" ", "_") == first[2:] and float(row["p_smooth"]) == pytest.approx(means[first], abs=2e-6)
    assert {len([t for t in times if abs(t - time) <= 200]) for time in times} == {1, 2, 4, 5}


def test_smoothing_keeps_faces_apart():
    state = {"emotions": ["a", "b"], "aus": [], "trained_aus": []}
    frames = [(t / 10, [({"frame": t, "face_id": i, "success": 1}, np.array([i, 1 - i])) for i in (0, 1)] if t != 2 else
               [({"frame": t, "success": 0}, None)]) for t in range(5)]
    made = [row for _, rows in video.smoothed(iter(frames), 0.5, state) for row, _ in rows]
    assert [row.get("expression_smooth") for row in made] == ["b", "a", "b", "a", None, "b", "a", "b", "a"]
    assert [row.get("p_smooth") for row in made] == [1, 1, 1, 1, None, 1, 1, 1, 1]


def face_at(x, y=0.0):
    five = np.array([[10, 15], [30, 15], [20, 25], [12, 35], [28, 35]], float)
    return _alignment.Face(np.array([x, y, 40, 50]), five + (x, y), 0.91236)


@pytest.mark.parametrize("trained, smooth", [([4, 12], 0.9), ([4], 0.9), ([12], None), ([], None)])
def test_aus_that_are_not_trained_are_not_smoothed_either(trained, smooth):
    state = {"emotions": ["a", "b"], "aus": [4, 12], "trained_aus": trained}
    item = predict.Item(0, None, {"time": 0.0, "face": face_at(3.14), "face_id": 0}, (np.array([0.2, 0.8]), np.array([0.9, 0.6])))
    ((_, ((row, _),)),) = video.smoothed(video.rows_of_frames([[item]], state, None), 1, state)
    assert (row["expression_smooth"], row["p_a_smooth"], row.get("AU04_smooth"), row.get("AU04_p")) == ("b", 0.2, smooth, smooth)
    assert row.get("AU12_smooth") == row.get("AU12_p") == (0.6 if 12 in trained else None)
    assert (row["confidence"], row["x"], row["nose_x"], row["left_mouth_y"]) == (0.9124, 3.1, 23.1, 35.0)


# ---------------------------------------------------------------- time


def frames_of(path, *options):
    clip = _video.Clip(str(path))
    frames = list(clip.frames(*options))
    clip.close()
    return frames


@pytest.mark.parametrize("name, code", [("a.webm", "VP90"), ("a.mp4", "mp4v")])
def test_times_and_frames_of_a_constant_rate(tmp_path, name, code):
    frames = frames_of(write_clip(tmp_path / name, grey(12), 8, code))
    assert [(frame.number, frame.time) for frame in frames] == [(i, pytest.approx(i * 0.125, abs=1e-9)) for i in range(12)]
    assert all(abs(frame.image.mean() - image.mean()) < 6 for frame, image in zip(frames, grey(12)))


@pytest.mark.parametrize("name, codec", [("v.mp4", "mpeg4"), ("v.webm", "libvpx-vp9"), ("h.mp4", "libx264")])
def test_times_of_a_variable_rate(tmp_path, name, codec):
    times = [0, 33, 66, 166, 173, 214, 464, 497, 530, 1030, 1063]
    frames = frames_of(write_at(tmp_path / name, grey(len(times)), times, codec))
    assert [1000 * frame.time for frame in frames] == pytest.approx(times, abs=1e-6)
    tenth = frames_of(tmp_path / name, 1, 10)  # after a gap no more than ten a second
    assert [round(1000 * frame.time) for frame in tenth] == [0, 166, 214, 464, 530, 1030]


@pytest.mark.parametrize("name, begin, sound", [("a.mkv", 5000, 0), ("a.mp4", 5000, 0), ("s.mp4", 1520, 2), ("s.mkv", 1520, 2), ("long.mkv", 1520, 9),
                                                ("long.mp4", 0, 9)])
def test_a_picture_that_starts_late_or_ends_before_its_sound(templated, nobody, tmp_path, name, begin, sound):
    """As ffprobe's pts_time has it, and nothing is missing; --start and --end are these times, too."""
    times = [begin + 40 * i for i in range(10)]
    clip = write_at(tmp_path / name, grey(10), times, sound=sound)
    result = run(templated, tmp_path / "out", clip)
    assert (result.exit_code, result.stderr) == (0, "")
    assert times_of(tmp_path / f"out/{clip.stem}.csv") == [time / 1000 for time in times]
    result = run(templated, tmp_path / "part", clip, "--start", (begin + 100) / 1000, "--end", (begin + 200) / 1000, "--draw")
    assert result.exit_code == 0 and times_of(tmp_path / f"part/{clip.stem}.csv") == [time / 1000 for time in times[3:5]]
    drawn = frames_of(tmp_path / f"part/{clip.stem}.webm")
    assert len(drawn) <= 5 and drawn[0].time == 0


def test_one_late_frame_is_drawn_for_a_frames_time(templated, nobody, tmp_path):
    clip = write_at(tmp_path / "a.mkv", grey(1), [5000])
    assert run(templated, tmp_path / "out", clip, "--draw").exit_code == 0
    assert times_of(tmp_path / "out/a.csv") == [5.0] and len(frames_of(tmp_path / "out/a.webm")) <= 2


def test_rotation_in_the_metadata_counts(tmp_path):
    """As from a phone held upright: wide frames, and a quarter turn clockwise in the header of the track."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 250  # the upper left corner goes to the upper right
    content = bytearray(write_clip(tmp_path / "a.mp4", [image] * 3, 10, "mp4v").read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", content[place : place + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    content[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    upright = frames_of(tmp_path / "a.mp4")[0].image
    assert upright.shape == (64, 48, 3) and upright[5:25, 30:45].mean() > 200 > 50 > upright[5:25, 3:18].mean()


def test_which_frames_are_taken(templated, nobody, tmp_path):
    clip, end = write_clip(tmp_path / "a.mp4", grey(12), 10, "mp4v"), float("inf")
    for options, numbers in (  # every, so many a second, start, end
            ((3,), [0, 3, 6, 9]), ((1, 4), [0, 3, 5, 8, 10]), ((1, 99), [*range(12)]), ((1, 5), [0, 2, 4, 6, 8, 10]),
            ((1, None, 0.3), [*range(3, 12)]), ((1, None, 0, 0.3), [0, 1, 2]), ((2, None, 0.25, 0.8), [4, 6]), ((1, 2.5, 0.2, end), [2, 6, 10]),
            ((1, None, 9.0), [])):
        frames = frames_of(clip, *options)
        assert [frame.number for frame in frames] == numbers, options
        assert [frame.time for frame in frames] == pytest.approx([number / 10 for number in numbers])
    for i, (options, numbers) in enumerate(((("--start", 0.25, "--end", 0.8, "--every", 2), [4, 6]), (("--fps", 4, "--end", 0.8), [0, 3, 5]))):
        assert run(templated, tmp_path / str(i), clip, *options).exit_code == 0
        assert [int(row["frame"]) for row in rows_of(tmp_path / f"{i}/a.csv")] == numbers


def test_every_or_fps_and_an_end_after_the_start(templated, tmp_path):
    for options, said in ((("--every", 2, "--fps", 2), "--every and --fps: give one of them."),
                          (("--start", 3, "--end", 3), "--end is not after --start.")):
        result = run(templated, tmp_path / "out", "a.mp4", *options)
        assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- who is who


def followed(frames, tmp_path, rate=10, search=0.5):
    """For each frame of a drawn clip {face_id: middle of the box, in whole pixels}."""
    clip, tracker = _video.Clip(str(write_clip(tmp_path / "a.webm", frames, rate))), _video.Tracker(search)
    return [{i: np.round(face.box[0] + face.box[2] / 2) for i, face in tracker.find(frame)} for frame in clip.frames()]


def test_two_faces_that_cross_keep_their_numbers(faces, tmp_path):
    there = followed(moving(faces, [lambda i: (45 + 10 * i, 60), lambda i: (155 - 10 * i, 60)], 12), tmp_path)
    assert there[0].keys() == there[-1].keys() == {0, 1} and set().union(*there) == {0, 1}
    assert any(len(faces) == 1 for faces in there)  # where one hides the other
    for frame in (0, -1):
        left, right = sorted(there[frame], key=there[frame].get)
        assert (left, right) == ((0, 1) if frame == 0 else (1, 0))


def test_who_leaves_and_returns_has_a_new_number_after_half_a_second(faces, tmp_path):
    for away, numbers in ((4, {0}), (5, {0, 1})):  # 0.45 and 0.55 seconds
        path = [lambda i, away=away: (70, 60) if i < 2 or i >= 2 + away else None]
        there = followed(moving(faces, path, away + 4), tmp_path, rate=11, search=0)
        assert set().union(*there) == numbers and [len(faces) for faces in there] == [1] * 2 + [0] * away + [1] * 2


def test_a_cut_gives_new_numbers(faces, tmp_path):
    """Another face in the same place, before another wall."""
    still = [lambda i: (70, 60)]
    there = followed(moving(faces[:1], still, 3) + moving(faces[1:], still, 3, seed=5), tmp_path)
    assert [list(faces) for faces in there] == [[0]] * 3 + [[1]] * 3


def test_a_face_seen_in_the_frame_before_is_known_however_long_ago_that_is(faces, tmp_path):
    there = followed(moving(faces, [lambda i: (70 + i, 60)], 3), tmp_path, rate=1)
    assert [list(faces) for faces in there] == [[0]] * 3


def test_a_face_is_looked_for_where_it_was(faces, tmp_path, monkeypatch):
    """The whole frame is searched each half second, and when a face is lost; only then a new face is found."""
    searched, find = [], _video.find_faces
    monkeypatch.setattr(_video, "find_faces", lambda image, found=(): searched.append(len(found)) or find(image, found))
    frames = moving(faces, [lambda i: (50, 60), lambda i: (150, 60) if 2 <= i < 6 else None], 8)
    assert [len(there) for there in followed(frames, tmp_path)] == [1, 1, 1, 1, 1, 2, 1, 1]
    assert searched == [0, 1, 1]  # the first frame, half a second later, and the loss
    assert [len(there) for there in followed(frames, tmp_path, search=0)] == [1, 1, 2, 2, 2, 2, 1, 1]


def test_faces_are_in_the_order_of_their_numbers_and_continue_the_track_seen_last():
    tracker = _video.Tracker(0.5)
    tracker.before = 0.0
    assert [i for i, _ in tracker.number([face_at(100)], 0.0)] == [0]
    assert [(i, face.box[0]) for i, face in tracker.number([face_at(10), face_at(102)], 0.1)] == [(0, 102), (1, 10)]
    for seen_last in (0, 1):
        tracker.tracks = {i: _video.Track(face_at(50), 1.0 if i == seen_last else 0.8, np.zeros(2)) for i in (0, 1)}
        tracker.before = 1.0
        assert [i for i, _ in tracker.number([face_at(50)], 1.1)] == [seen_last]


def test_a_track_goes_on_as_it_went():
    five = np.array([[-10, 0], [10, 0], [0, 12], [-8, 22], [8, 22]], float)
    track = _video.Track(_alignment.Face(np.array([0.0, 0, 40, 50]), five, 0.9), 1.0, np.zeros(2))
    for step in range(1, 12):
        track.seen(_alignment.Face(np.array([4.0 * step, 2 * step, 40, 50]), five + (4 * step, 2 * step), 0.9), 1 + step / 10)
    ahead = track.at(2.4)
    assert ahead.box == pytest.approx([56, 28, 40, 50], abs=0.1) and ahead.points == pytest.approx(five + (56, 28), abs=0.1)
    track.seen(_alignment.Face(np.array([46.0, 22, 40, 50]), five, 0.9), track.time)  # in a second frame of the same time
    assert track.speed == pytest.approx([40, 20], abs=0.1)
    tracker, seen = _video.Tracker(0.5), []
    tracker.tracks = {i: _video.Track(track.face, time, np.zeros(2)) for i, time in enumerate((1.0, 3.0, 2.0))}
    tracker.tracks[1].face = _alignment.Face(track.face.box, five + 100, 0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_video, "find_again", lambda image, threes: seen.extend(threes) or [None] * 3)
        tracker.look_again(None, 3.0)
    assert seen[0][0].tolist() == [90, 100]  # the face that was seen last comes first


def test_the_assignment_is_the_best_for_all_together():
    costs = np.array([[0.1, 0.2, np.inf], [0.15, 0.9, np.inf], [np.inf, np.inf, np.inf]])
    assert _video.assign(costs) == [(0, 1), (1, 0)]
    face = _alignment.Face(np.array([0.0, 0, 10, 10]), np.zeros((5, 2)), 1.0)

    def other(*box):
        return _alignment.Face(np.array(box, float), np.zeros((5, 2)), 1.0)

    others = [other(*box) for box in ((5, 0, 10, 10), (11, 0, 10, 10), (0, 0, 21, 21), (2, 2, 5, 5))]
    far = _video.distances([others[0], face], [face, *others])
    assert far.shape == (2, 5) and far[1, 0] == 0 and far[1, 1] == far[0, 0] == pytest.approx(1 - 1 / 3 + 0.5)
    assert {*far[1, 2:]} == {np.inf} and _video.distances([], others).shape == (0, 4)
