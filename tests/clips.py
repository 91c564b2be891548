"""Videos of stand-in faces and of plain grey, by OpenCV's writer and by PyAV; and what `video` makes of them."""

import csv
from fractions import Fraction

import av
import cv2
import numpy as np
from conftest import invoke
from scenes import backdrop, paste


def write_clip(path, images, rate=10, code="VP90"):
    """A video of images (H, W, 3), by OpenCV's own writer."""
    writer = None
    for image in images:
        if writer is None:
            size = image.shape[1::-1]
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), rate, size)
            assert writer.isOpened()
        writer.write(np.ascontiguousarray(image[:, :, ::-1]))
    writer.release()
    return path


def moving(faces, paths, n, size=(200, 120), eyes=24, seed=0):
    """n frames with faces (S, S, 3) on a backdrop. paths: for each face a function from 0 .. n-1 to the place of its
    middle, or None if it is not in that frame. Later faces lie in front."""
    still, frames = backdrop(*size, np.random.default_rng(seed)), []
    for i in range(n):
        scene = still.copy()
        for face, path in zip(faces, paths):
            if place := path(i):
                paste(scene, face, place, eyes, 0)
        frames.append(np.asarray(scene))
    return frames


def grey(n, size=(64, 48)):
    """n grey frames, each of another grey."""
    return [np.full((size[1], size[0], 3), 20 + 200 * i // n, np.uint8) for i in range(n)]


def run(ckpt, out, *args):
    return invoke("video", "--ckpt", ckpt, "--out", out, "--device", "cpu", *args)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def times_of(path):
    return [float(row["timestamp"]) for row in rows_of(path)]


def write_at(path, images, milliseconds, codec="mpeg4", sound=0):
    """A video of images, each at its own time, by PyAV; with so many seconds of silence from 0 on."""
    with av.open(str(path), "w") as file:
        audio = file.add_stream("aac", rate=8000, layout="mono") if sound else None
        stream = file.add_stream(codec, rate=1000)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for i in range(round(8000 * sound / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts, frame.time_base = 8000, 1024 * i, Fraction(1, 8000)
            file.mux(audio.encode(frame))
        file.mux(audio.encode() if audio else ())
        for image, time in zip(images, milliseconds):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
