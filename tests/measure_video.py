"""How well `video` does on a drawn clip, and how fast it is; the READMEs quote what this prints.

    python tests/measure_video.py BEST.PT FOLDER [--seconds S] [--rate F]

FOLDER gets person.mp4: 1280x720, one drawn person whose expression changes every four seconds and
whose head turns, with a camera's noise; then the table that the program writes for it.
"""

import argparse
import csv
import itertools
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clips import write_clip  # noqa: E402
from conftest import invoke  # noqa: E402
from scenes import backdrop, paste  # noqa: E402

import mmlfer  # noqa: E402
from mmlfer_commands import _alignment, _drawing, _stats, _video  # noqa: E402

SHOWN = ("happily surprised", "sadly angry", "fearfully surprised", "angrily disgusted", "happily disgusted")
EYES, LASTS, TURNS = 80, 4.0, 5.0  # pixels between the eyes; seconds of an expression; of a turn of the head


def strengths(emotion):
    """{AU: (right, left)} of an expression: those AUs that are seen in it more often than not."""
    row = _stats.load_stats("wild")[mmlfer.EMOTIONS.index(emotion)]
    return {au: (0.9, 0.9) for au, p in zip(mmlfer.AUS, row) if p >= 0.5}


def mixed(one, other, share):
    """AUs on the way from one expression to another."""
    return {au: tuple((1 - share) * a + share * b for a, b in zip(one.get(au, (0, 0)), other.get(au, (0, 0))))
            for au in {**one, **other}}


def face_at(now, side, seed=2):
    """The person's face (side, side, 3) at time `now`: still, from the front, like a training face."""
    k, share = int(now // LASTS), min(1.0, (now % LASTS) / 0.6)
    before, after = (strengths(SHOWN[i % len(SHOWN)]) for i in (max(k - 1, 0), k))
    face = _drawing.draw_face(mixed(before, after, share), np.random.default_rng(seed), side, np.random.default_rng(seed))
    return np.asarray(face)


def frame_at(now, face, still, rng, eyes=EYES):
    """A frame: the face, its head turned, somewhere in the picture, with noise."""
    turn = math.sin(2 * math.pi * now / TURNS)
    scene, (width, height) = still.copy(), still.size
    narrow = Image.fromarray(face).resize((round(len(face) * (1 - 0.12 * abs(turn))), len(face)), Image.BICUBIC)
    padded = Image.new("RGB", (len(face),) * 2, tuple(face[0, 0].tolist()))
    padded.paste(narrow, ((len(face) - narrow.width) // 2, 0))
    centre = (width / 2 + 0.1 * width * math.sin(now), height / 2 + 0.03 * height * math.sin(1.7 * now))
    paste(scene, np.asarray(padded), centre, eyes, 15 * turn)
    noise = rng.normal(0, 4, (height, width, 3))
    return np.clip(np.asarray(scene) + noise, 0, 255).astype(np.uint8)


def person(path, seconds, rate, size=(1280, 720), eyes=EYES):
    """Write the clip. -> the still faces of its frames"""
    rng, still = np.random.default_rng(0), backdrop(*size, np.random.default_rng(1))
    times = [i / rate for i in range(round(seconds * rate))]
    stills = [face_at(now, round(eyes / 0.32)) for now in times]
    write_clip(path, (frame_at(now, face, still, rng, eyes) for now, face in zip(times, stills)), rate, "mp4v")
    return stills


def first(net, state, crops):
    return [state["emotions"][k] for k in mmlfer.predict_faces(net, mmlfer.as_batch(crops))[0].argmax(1)]


def agreement(ckpt, stills, clip, table):
    """How the table of a clip agrees with the predictions for the still faces, and for every tenth frame as a photograph."""
    net, state = mmlfer.load_net(ckpt, "cpu")
    template, size = np.array(state["template"]), state["config"]["size"]
    still = first(net, state, [np.asarray(Image.fromarray(face).resize((size, size), Image.BILINEAR)) for face in stills])
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    told = {int(row["frame"]): row["expression"] for row in rows if row["success"] == "1"}
    tenth = list(_video.Clip(str(clip)).frames(every=10))
    photos = [_alignment.find_faces(frame.image) for frame in tenth]
    photo = first(net, state, [_alignment.align(frame.image, faces[0], template, size) for frame, faces in zip(tenth, photos) if faces])
    alone = dict(zip([frame.number for frame, faces in zip(tenth, photos) if faces], photo))
    return {"frames": len(stills), "with a face": len(told), "numbers of the face": sorted({row["face_id"] for row in rows}),
            "as the still face, %": 100 * np.mean([told.get(i) == still[i] for i in range(len(stills))]),
            "photographs: as the still face, %": 100 * np.mean([alone[i] == still[i] for i in alone]),
            "photographs: with a face, of": (len(alone), len(tenth)),
            "as its photograph, %": 100 * np.mean([alone[i] == told.get(i) for i in alone])}


def time_of(work, n, times=3):
    """Medians over some runs of `work`, which takes n frames: frames per second, and processor milliseconds per frame."""
    wall, processor = [], []
    for _ in range(times):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return n / statistics.median(wall), 1000 * statistics.median(processor) / n


def speeds(ckpt, clip, out, n=50):
    """Print how fast each part is alone, and the whole, over n frames; for comparison also each frame as a photograph."""
    net, state = mmlfer.load_net(ckpt, "cpu")
    frames = list(itertools.islice(_video.Clip(str(clip)).frames(), n))
    template, size = np.array(state["template"]), state["config"]["size"]

    def follow():
        tracker = _video.Tracker(0.5)
        for frame in frames:
            for _, face in tracker.find(frame):
                _alignment.align(frame.image, face, template, size)

    def ask(net, size):
        crops = [np.zeros((size, size, 3), np.uint8)] * 8
        return lambda: [mmlfer.predict_faces(net, mmlfer.as_batch(crops)) for _ in range(6)]

    def whole(*options):
        folder = tempfile.mkdtemp(dir=out)
        result = invoke("video", clip, "--ckpt", ckpt, "--out", folder, "--end", n / 25, "--device", "cpu", *options)
        assert result.exit_code == 0, result.output

    paper = mmlfer.make_base_net("resnet34").eval()
    for name, work, count in (
            ("decoding", lambda: [None for _ in _video.Clip(str(clip)).frames(end=n / 25)], n),
            ("faces, as in photographs", lambda: [_alignment.find_faces(frame.image) for frame in frames[::10]], n // 10),
            ("faces, looked for where they were", follow, n),
            (f"{state['config']['arch']}, {size}x{size}", ask(net, size), 48), ("resnet34, 112x112", ask(paper, 112), 48),
            ("the whole", whole, n), ("the whole, --every 2", lambda: whole("--every", 2), n)):
        print("{}: {:.1f} frames a second, {:.1f} ms a frame".format(name, *time_of(work, count)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=25)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    clip = options.folder / "person.mp4"
    stills = person(clip, options.seconds, options.rate)
    table = Path(tempfile.mkdtemp(dir=options.folder)) / "person.csv"
    result = invoke("video", clip, "--ckpt", options.ckpt, "--out", table.parent, "--device", "cpu")
    assert result.exit_code == 0, result.output
    for name, value in agreement(options.ckpt, stills, clip, table).items():
        print(f"{name}: {value}", flush=True)
    speeds(options.ckpt, clip, options.folder)


if __name__ == "__main__":
    main()
