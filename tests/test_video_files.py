"""Videos that are broken or stopped, cameras, full disks, drawn copies, memory."""

import os
import resource
import shutil
import signal
import threading
import time
import tracemalloc
import types

import av
import cv2
import numpy as np
import pytest
from clips import grey, rows_of, run, times_of, write_at, write_clip
from conftest import invoke, run_program, with_template
from PIL import Image

from mmlfer_commands import _alignment, _video, predict, video


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    """60 frames of noise, 25 a second, as .mp4 and .webm."""
    out, rng = tmp_path_factory.mktemp("sixty"), np.random.default_rng(0)
    images = [np.clip(image + rng.integers(-30, 30, image.shape), 0, 255).astype(np.uint8) for image in grey(60, (128, 96))]
    return [write_clip(out / name, images, 25, code) for name, code in (("a.mp4", "mp4v"), ("a.webm", "VP90"))]


# ---------------------------------------------------------------- what cannot be read


def make(kind, path):
    if kind == "picture":
        Image.new("RGB", (64, 48)).save(path, "JPEG")
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no video")
    elif kind == "sound":
        with av.open(str(path), "w") as file:
            stream = file.add_stream("aac", rate=8000)
            stream.layout = "mono"
            for i in range(4):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.rate, frame.pts = 8000, 1024 * i
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    elif kind == "empty clip":
        cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48)).release()


NO_VIDEO = "not a video that can be read: something else, or cut off before its index; give another copy"


def test_videos_of_any_name(templated, nobody, tmp_path, monkeypatch):
    """OpenCV itself crashes at a name that is not in UTF-8, and FFmpeg takes http: for an address."""
    clip = write_clip(tmp_path / "a.webm", grey(2))
    monkeypatch.chdir(tmp_path)
    names = [os.fsdecode(name) for name in (b"\xff.webm", b"http:x.webm", b"a\nb 'c'.webm", b"-d.webm", b"%03d.webm")]
    for name in names:
        shutil.copy(clip, name)
    out = tmp_path / os.fsdecode(b"\xfe")
    result = invoke("video", "--ckpt", templated, "--out", out, "--draw", "--", *names)
    assert result.exit_code == 0, result.output
    stems = ["\ufffd", "http:x", "a\nb 'c'", "-d", "%03d"]
    assert sorted(os.listdir(out)) == sorted(f"{stem}.{kind}" for stem in stems for kind in ("csv", "webm"))
    assert {len(rows_of(out / f"{stem}.csv")) for stem in stems} == {2}


def test_what_is_no_video_is_named_and_the_others_are_read(templated, nobody, tmp_path, capfd):
    kinds = {"picture": "a picture, not a video; `mmlfer predict --photos` takes it", "folder": "a folder; give its videos, as {}/*.mp4",
             "nothing": "no such file; give a video, or the number of a camera", "text": NO_VIDEO, "sound": NO_VIDEO, "empty clip": NO_VIDEO}
    paths = [tmp_path / f"{kind}.mp4" for kind in kinds]
    for kind, path in zip(kinds, paths):
        make(kind, path)
    good = write_clip(tmp_path / "good.mp4", grey(3), 10, "mp4v")
    capfd.readouterr()
    result = run(templated, tmp_path / "out", *paths, good)
    assert result.exit_code == 1 and result.stderr.splitlines() == [
        f"Warning: skipped {path}: {said.format(path)}" for path, said in zip(paths, kinds.values())]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.csv"] and len(times_of(tmp_path / "out/good.csv")) == 3
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg say nothing beside


def test_a_video_that_opens_without_a_frame(templated, sixty, tmp_path):
    content = sixty[1].read_bytes()
    (tmp_path / "a.webm").write_bytes(content[: content.index(b"\x1f\x43\xb6\x75") + 4])  # cut off where Matroska's first cluster begins
    result = run(templated, tmp_path / "out", tmp_path / "a.webm")
    assert (result.exit_code, result.stderr) == (1, f"Warning: skipped {tmp_path}/a.webm: no frame in it; give another copy\n")
    assert not (tmp_path / "out").exists()


def test_a_file_cut_off(templated, nobody, sixty, tmp_path):
    mp4, webm = (shutil.copy(path, tmp_path) for path in sixty)
    for path in (mp4, webm):
        os.truncate(path, os.path.getsize(path) // 3)
    result = run(templated, tmp_path / "out", mp4, webm)
    rows = rows_of(tmp_path / "out/a-2.csv")
    assert 5 < len(rows) < 40 and result.exit_code == 1 and result.stderr.splitlines() == [
        f"Warning: skipped {mp4}: {NO_VIDEO}", f"Warning: {webm}: its frames end at {(len(rows) - 1) / 25:.1f} of 2.4 seconds: cut off, or "
        "broken from there; the rows until there are written"]
    assert [float(row["timestamp"]) for row in rows] == [i / 25 for i in range(len(rows))]


def test_a_broken_frame_amid_a_file(sketch_34, sixty, tmp_path):
    """It is reported in one line; FFmpeg (the program is its own process here) prints nothing more."""
    content = bytearray(sixty[0].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1500] = np.random.default_rng(0).bytes(1500)
    (tmp_path / "a.mp4").write_bytes(content)
    ckpt = with_template(sketch_34, tmp_path / "best.pt")
    result = run_program("video", "--ckpt", ckpt, "--out", tmp_path / "out", tmp_path / "a.mp4", "--search", 9)
    times = times_of(tmp_path / "out/a.csv")
    assert times[0] == 0 and times[-1] == 59 / 25 and set(times) <= {round(i / 25, 3) for i in range(60)} and 50 < len(times) < 60
    assert result.returncode == 1 and result.stderr == (
        f"Warning: {tmp_path}/a.mp4: {len(times)} frames can be read where the file names 60; broken ones are left out, the times of "
        "the others are right\n")


def test_one_name_for_two_clips_and_outputs_that_are_there(templated, nobody, tmp_path):
    clips = [tmp_path / name / "my clip.mp4" for name in "ab"]
    for clip, n in zip(clips, (3, 4)):
        clip.parent.mkdir()
        write_clip(clip, grey(n), 10, "mp4v")
    out = tmp_path / "out"
    result = run(templated, out, *clips)
    assert result.exit_code == 0 and [len(times_of(out / f"{name}.csv")) for name in ("my clip", "my clip-2")] == [3, 4]
    assert [line.split(": ")[-1] for line in result.stdout.splitlines()] == [f"{out}/my clip.csv", f"{out}/my clip-2.csv"]
    (out / "my clip-2.csv").write_text("kept")
    (out / "my clip.csv").unlink()
    result = run(templated, out, *clips)
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {out}/my clip-2.csv: exists; remove it, or name another --out\n")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("my clip-2.csv", "kept")]
    (out / "my clip-2.csv").rename(out / "my clip-2.webm")
    assert run(templated, out, *clips, "--draw").stderr.startswith(f"Error: {out}/my clip-2.webm: exists;")
    assert run(templated, out, *clips).exit_code == 0 and (out / "my clip-2.webm").read_text() == "kept"
    result = run(templated, clips[0], clips[1])
    assert result.stderr == f"Error: {clips[0]}: not a folder; name another output\n"


# ---------------------------------------------------------------- stopped


def test_ctrl_c_leaves_whole_rows(templated, sixty, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "DRAWN", 64)
    calls = []

    def search(image, found=()):
        calls.append(1)
        if len(calls) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(_video, "find_faces", search)
    result = run(templated, tmp_path, sixty[0], "--search", 0, "--smooth", 0.2, "--draw")
    rows = rows_of(tmp_path / "a.csv")
    assert (result.exit_code, result.stderr) == (130, "stopped\n") and 0 < len(rows) < 60
    assert [int(row["frame"]) for row in rows] == list(range(len(rows))) and {row["success"] for row in rows} == {"0"}
    assert result.stdout.startswith(f"{sixty[0]}: {len(rows)} frames, ")
    drawn = cv2.VideoCapture(str(tmp_path / "a.webm"))
    assert abs(drawn.get(cv2.CAP_PROP_FRAME_COUNT) - len(rows)) <= 2


def test_rows_are_there_as_they_come(templated, sixty, tmp_path, monkeypatch):
    """Whatever ends the program, all frames that were searched are in the file, except the last 30 or so."""
    there = []

    def search(image, found=()):
        path = tmp_path / "a.csv"
        there.append(path.read_text().count("\n") - 1)
        assert path.read_text()[-1] == "\n"
        return []

    monkeypatch.setattr(_video, "find_faces", search)
    assert run(templated, tmp_path, sixty[0], "--search", 0).exit_code == 0
    assert len(there) == 60 and all(n - rows < 34 for n, rows in enumerate(there))


def test_a_full_disk_leaves_whole_rows(templated, nobody, sixty, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        result = run(templated, tmp_path, sixty[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path}/a.csv: cannot be written further (File too large); the lines before are "
                                                    "there; free some space and start again\n")
    text = (tmp_path / "a.csv").read_text()
    assert 4500 < len(text) <= 5000 and text[-1] == "\n" and len({line.count(",") for line in text.splitlines()}) == 1


def test_a_full_disk_while_drawing_keeps_the_rows(templated, nobody, sixty, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "DRAWN", 128)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, before[1]))
    try:
        result = run(templated, tmp_path, sixty[0], "--draw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(rows_of(tmp_path / "a.csv")) == 60 and (result.exit_code, result.stderr) == (
        1, f"Error: {tmp_path}/a.webm: not written whole; free some space and draw again; the rows are written\n")


# ---------------------------------------------------------------- cameras


class Camera:
    """A camera that gives grey frames, 50 per second; `events`: functions that are called at some of them."""

    def __init__(self, events=None, n=1000):
        self.read, self.events, self.n = 0, events or {}, n
        self.isOpened, self.get, self.release = lambda: n > 0, lambda what: 0.0, lambda: None

    def grab(self):
        time.sleep(0.02)
        self.read += 1
        self.events.get(self.read, lambda: None)()
        return self.read <= self.n

    def retrieve(self):
        return True, np.full((48, 64, 3), self.read % 250, np.uint8)


def test_a_camera_is_read_until_ctrl_c_or_the_end(templated, nobody, tmp_path, monkeypatch):
    stop = Camera({30: lambda: os.kill(os.getpid(), signal.SIGINT)})
    for name, camera, options in (("c", stop, ()), ("e", Camera(), ("--end", 0.4)), ("g", Camera(n=9), ())):
        monkeypatch.setattr(cv2, "VideoCapture", lambda number, camera=camera: {3: camera}[number])
        result = run(templated, tmp_path / name, "3", *options)
        rows = rows_of(tmp_path / f"{name}/camera3.csv")
        assert result.stdout == f"3: {len(rows)} frames, 0 faces, {len(rows)} frames without one: {tmp_path}/{name}/camera3.csv\n"
        times = [float(row["timestamp"]) for row in rows]
        assert all(0.015 < b - a < 0.5 for a, b in zip(times, times[1:])) and len(rows) > 2  # the clock's, as they come
        if name == "g":
            assert (result.exit_code, result.stderr, len(rows)) == (1, "Warning: camera 3: gives no more frames\n", 9)
        else:
            assert (result.exit_code, result.stderr) == (0, "")
            assert times[-1] < 0.4 if name == "e" else 10 < len(rows) < 500


@pytest.mark.parametrize("order", ["camera first", "clip first"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_ctrl_c_ends_one_camera_and_other_signals_the_program(templated, nobody, sixty, tmp_path, monkeypatch, order, number):
    """Ctrl-C at the camera leaves the clip after it whole, and any signal that came before or amid a clip stops all."""
    monkeypatch.setattr(cv2, "VideoCapture", lambda source, own=cv2.VideoCapture: Camera({9: lambda: signal.raise_signal(number)})
                        if source == 3 else own(source))
    clips = ["3", sixty[0]] if order == "camera first" else [sixty[0], "3"]
    result = run(templated, tmp_path, *clips)
    rows = {path.stem: len(rows_of(path)) for path in tmp_path.iterdir()}
    assert 0 < rows["camera3"] < 500
    if number == signal.SIGINT:
        assert (result.exit_code, result.stderr, rows["a"]) == (0, "", 60)
    else:
        assert (result.exit_code, result.stderr) == (128 + number, "stopped\n")
        assert rows.get("a") == (None if order == "camera first" else 60)


def test_ctrl_c_and_another_signal_at_a_camera_stop_all(monkeypatch):
    ran, caught = [], []
    monkeypatch.setattr(video, "run_clip", lambda job, clip, stem: ran.append(clip) or caught.extend((signal.SIGINT, signal.SIGTERM)) or True)
    with pytest.raises(SystemExit) as end:
        video.run_clips(types.SimpleNamespace(caught=caught), ["3", "a.mp4"], ["camera3", "a"])
    assert (ran, end.value.code) == (["3"], 128 + signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_the_exit_code_names_the_signal_that_stopped_a_clip(templated, sixty, tmp_path, monkeypatch, number):
    calls = []
    monkeypatch.setattr(_video, "find_faces", lambda image, found=(): calls.append(1) or (
        os.kill(os.getpid(), number) if len(calls) == 9 else None) or [])
    result = run(templated, tmp_path, *sixty, "--search", 0)
    assert (result.exit_code, result.stderr, os.listdir(tmp_path)) == (128 + number, "stopped\n", ["a.csv"])
    assert 0 < len(rows_of(tmp_path / "a.csv")) < 60


def test_a_cameras_frames_are_answered_one_by_one_and_a_files_in_batches(templated, everywhere, sixty, tmp_path, monkeypatch):
    sizes, answers = [], (np.full((8, 14), 1 / 14, np.float32), np.full((8, 32), 0.9, np.float32))
    monkeypatch.setattr(predict, "predict_faces", lambda net, x: sizes.append(len(x)) or tuple(p[: len(x)] for p in answers))
    assert run(templated, tmp_path, sixty[0], "--end", 0.6).exit_code == 0
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera(n=9))
    run(templated, tmp_path, "3")
    assert sizes == [8, 7] + [1] * 9 and len(rows_of(tmp_path / "camera3.csv")) == 9


def test_a_frame_that_cannot_be_decoded_is_left_out(monkeypatch):
    camera = Camera(n=6)
    camera.retrieve = lambda: (False, None) if camera.read == 3 else (True, np.full((4, 4, 3), (1, 2, 3), np.uint8))
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    frames = list(_video.Clip("0").frames())
    assert [frame.number for frame in frames] == [0, 1, 3, 4, 5]
    assert all((frame.image == (3, 2, 1)).all() for frame in frames)  # RGB of OpenCV's BGR


def test_a_file_may_be_called_as_a_camera_and_an_animation_is_no_picture(templated, nobody, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [_video.camera_number(clip) for clip in ("3", "03", "3.mp4", "-1")] == [3, 3, None, None]
    one, two = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    one.save("3", "WEBP")
    one.save("two.gif", save_all=True, append_images=[two])
    assert _video.camera_number("3") is None
    result = run(templated, "out", "3", "two.gif")
    assert result.stderr == "Warning: skipped 3: a picture, not a video; `mmlfer predict --photos` takes it\n"
    assert os.listdir("out") == ["two.csv"] and len(rows_of("out/two.csv")) == 2


def test_a_camera_that_is_not_there(templated, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera(n=0))
    result = run(templated, tmp_path / "out", "0")
    assert (result.exit_code, result.stdout, result.stderr) == (
        1, "", "Warning: skipped camera 0: there is none, or another program has it; connect one, or give a video file\n")


# ---------------------------------------------------------------- a drawn copy


def test_a_drawn_copy_plays_as_fast_and_as_long(templated, nobody, tmp_path, monkeypatch):
    """At a variable rate, with each frame at its time; of a part of the clip only that part; without sound."""
    monkeypatch.setattr(video, "DRAWN", 64)
    times = [0, 40, 80, 200, 240, 500, 540, 1000, 1040, 1200]
    images = grey(10, (64, 48))
    clip = write_at(tmp_path / "a.webm", images, times, "libvpx-vp9")
    for options, begin, end in (((), 0, 1.36), (("--start", 0.1, "--end", 0.9), 0.2, 0.54 + 0.04), (("--every", 3), 0, 1.36)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert run(templated, tmp_path / "out", clip, "--draw", *options).exit_code == 0
        with av.open(str(tmp_path / "out/a.webm")) as drawn:
            assert drawn.streams[0].codec_context.name.startswith(("vp9", "libvpx-vp9")) and len(drawn.streams) == 1
            frames = [(float(frame.time), frame.to_ndarray(format="rgb24").mean()) for frame in drawn.decode(video=0)]
        taken = [int(row["frame"]) for row in rows_of(tmp_path / "out/a.csv")]
        assert len(frames) / 30 == pytest.approx(end - begin, abs=0.04)
        for shown, level in frames:
            near = [max(i for i in taken if times[i] / 1000 <= max(t, begin)) for t in (begin + shown - 0.018, begin + shown + 0.018)]
            assert min(abs(level - images[i].mean()) for i in near) < 5, (options, shown)


def test_boxes_numbers_and_strips_of_a_drawn_frame():
    def item(left, number):
        face = _alignment.Face(np.array([left, 40.0, 200, 220]), np.zeros((5, 2)), 0.9)
        return predict.Item(0, None, {"face": face, "face_id": number}), {
            "expressions": [{"name": "sadly angry", "p": 0.75}, {"name": "awe", "p": 0.2}, {"name": "b", "p": 0.0}]}

    image = np.full((960, 1280, 3), 128, np.uint8)
    drawn = video.draw_frame(image, [item(100, 0), item(900, 12)]).astype(int)
    assert drawn.shape == (480, 640, 3) and (image == 128).all()
    for left in (50, 450):
        for x, y in ((left, 75), (left + 100, 75), (left + 50, 20)):  # the middles of the box's sides
            assert (abs(drawn[y - 2 : y + 3, x - 2 : x + 3] - (255, 212, 0)).max(2) < 9).any()
        bars = [(abs(drawn[130 + 15 * line + 2, left : left + 150] - (47, 111, 181)).max(1) < 9).sum() for line in range(3)]
        assert bars[0] == pytest.approx(0.75 * 150, abs=4) and bars[1] == pytest.approx(0.2 * 150, abs=4) and bars[2] <= 1
    assert video.draw_frame(image[:60, :90], []).shape == (426, 640, 3)  # a small one enlarged
    low = video.draw_frame(image, [(predict.Item(0, None, {"face": _alignment.Face(np.array([1200.0, 800, 200, 220]), None, 1), "face_id": 0}),
                                    item(0, 0)[1])]).astype(int)
    assert (low[-45:, -150:].sum(2) < 200).mean() > 0.3  # within the picture


# ---------------------------------------------------------------- memory, threads


def test_memory_stays_flat_over_a_thousand_frames(templated, everywhere, tmp_path, monkeypatch):
    answers = np.full((64, 14), 1 / 14, np.float32), np.full((64, 32), 0.9, np.float32)
    monkeypatch.setattr(predict, "predict_faces", lambda net, x: tuple(p[: len(x)] for p in answers))
    peaks = []
    for n in (200, 200, 1000):
        clip = write_clip(tmp_path / f"{len(peaks)}.mp4", grey(n), 25, "mp4v")
        tracemalloc.start()
        result = run(templated, tmp_path, clip, "--smooth", 1, "--every", 4)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
        assert result.exit_code == 0 and len(rows_of(tmp_path / f"{len(peaks) - 1}.csv")) == n / 4
    assert peaks[2] - peaks[1] < 1, peaks


def test_decoding_searching_and_predicting_have_a_thread_each(templated, everywhere, sixty, tmp_path, monkeypatch):
    threads = {}

    def noted(name, function):
        def run(*args):
            threads.setdefault(name, set()).add(threading.get_ident())
            return function(*args)
        return run

    for where, name in ((_video.np, "rot90"), (_video.Tracker, "find"), (predict, "predict_faces"), (video, "answer")):
        monkeypatch.setattr(where, name, noted(name, getattr(where, name)))
    assert run(templated, tmp_path, sixty[0], "--end", 0.5).exit_code == 0
    assert [len(idents) for idents in threads.values()] == [1] * 4 and len(set.union(*threads.values())) == 4
    assert threads["answer"] == {threading.get_ident()}
