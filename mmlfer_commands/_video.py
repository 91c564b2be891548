"""Reading videos frame by frame, following faces from frame to frame, and writing a drawn copy."""

import collections
import contextlib
import dataclasses
import itertools
import math
import re
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from mmlfer import InputError, refused, torch
from mmlfer_commands._alignment import Face, find_again, find_faces, three_of

AGAIN = 0.5  # seconds between searches of the whole frame
KEEP = 0.5  # seconds that a face keeps its number while it is not seen
CUT = 30  # mean difference (0..255) of two frames, shrunk to 16x9 pixels, above which it is a cut
SHORT = 1.0  # seconds by which the frames may end before their file says
TRIES = 8  # times to read on where a file is broken
RATES = (1, 60)  # frames per second: a file's own rate outside of these is not believed
QUICK = {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"}  # how VP9 encodes it

# ---------------------------------------------------------------- reading


# A frame's number, from 0; its time in seconds, as its file has it; RGB (H, W, 3).
Frame = collections.namedtuple("Frame", "number time image")


def camera_number(clip):
    """The number of a camera, or None where this is the path of a file."""
    return int(clip) if clip.isdecimal() and not Path(clip).exists() else None


class ClipError(InputError):
    """One clip cannot be read; the program goes on with the others."""


def end_and_count(file, stream):
    """The time at which a file's picture should end, seconds, and the number of its frames; 0 where
    the file does not say."""
    start = float((stream.start_time or 0) * stream.time_base)
    said = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska's
    if stream.duration:
        end = start + float(stream.duration * stream.time_base)
    elif said:
        end = 3600 * int(said[1]) + 60 * int(said[2]) + float(said[3])
    else:
        return (file.duration or 0) / 1e6, stream.frames
    return end, stream.frames or round((end - start) * (stream.average_rate or 0))


def decoded(file, stream):
    """Yield the frames of an open file; what is broken is passed over."""
    import av

    for _ in range(TRIES):
        with contextlib.suppress(OSError, av.error.FFmpegError):
            for packet in file.demux(stream):
                with contextlib.suppress(OSError, av.error.FFmpegError):
                    yield from packet.decode()
            return


class Clip:
    """A video file, or a camera, with its first frame found. ClipError if it has none."""

    def __init__(self, clip):
        self.name, self.camera, self.ended = clip, camera_number(clip), False
        self.end, self.count, self.rate = 0.0, 0, Fraction(30)  # as a file says; frames per second
        with contextlib.ExitStack() as files:
            self.coming = self.of_file(files) if self.camera is None else self.of_camera(files)
            self.first = next(self.coming, None)
            if self.first is None and self.camera is None:
                raise ClipError(f"{clip}: no frame in it; give another copy")
            if self.first is None:
                raise ClipError(f"camera {clip}: there is none, or another program has it; connect "
                                "one, or give a video file")
            self.close = files.pop_all().close
        self.read, self.time, self.step = 0, self.first[0], 0.0

    def of_camera(self, files):
        """Yield (time, function that gives the image or None) of each frame. The ExitStack `files`
        closes the camera."""
        import cv2

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        capture, begin = cv2.VideoCapture(self.camera), None
        files.callback(capture.release)

        def image():
            whole, bgr = capture.retrieve()
            return bgr[:, :, ::-1] if whole else None

        while capture.grab():
            now = time.monotonic()
            begin = begin or now
            yield now - begin, image

    def of_file(self, files):
        """The same of a file, with the times that it has itself."""
        import av

        path = Path(self.name)
        if not path.exists():
            raise ClipError(f"{path}: no such file; give a video, or the number of a camera")
        if path.is_dir():
            raise ClipError(f"{path}: a folder; give its videos, as {path}/*.mp4")
        try:  # PyAV takes no name that is not in UTF-8
            file = files.enter_context(av.open(files.enter_context(path.open("rb"))))
            stream = file.streams.video[0]
        except (OSError, av.error.FFmpegError, IndexError):
            raise ClipError(f"{path}: not a video that can be read: something else, or cut off "
                            "before its index; give another copy") from None
        if file.format.name.endswith("_pipe"):
            raise ClipError(f"{path}: a picture, not a video; `mmlfer predict --photos` takes it")
        self.end, self.count = end_and_count(file, stream)
        if RATES[0] <= (stream.guessed_rate or 0) <= RATES[1]:
            self.rate = stream.guessed_rate
        stream.thread_type, now = "AUTO", float(-1 / self.rate)

        def image():
            return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)

        for frame in decoded(file, stream):
            now = now + float(1 / self.rate) if frame.time is None else frame.time
            yield now, image

    def frames(self, every=1, rate=None, start=0.0, end=math.inf):
        """Yield the Frames from `start` to before `end`, seconds: of every `every` frames one, or
        `rate` per second. The others are passed over and not made into images."""
        due = start
        for number, (now, image_of) in enumerate(itertools.chain([self.first], self.coming)):
            if now >= end:
                return
            self.read, self.time, self.step = number + 1, now, now - self.time
            if now >= due - 1e-6 and number % every == 0:
                if rate:
                    due += max(1, math.ceil((now - due) * rate + 1e-6)) / rate
                if (image := image_of()) is not None:
                    yield Frame(number, now, np.ascontiguousarray(image))
        self.ended = True

    def remarks(self):
        """Yield a line for each thing that is wrong, if the clip was read until its end."""
        if not self.ended:
            return
        if self.camera is not None:
            yield f"camera {self.name}: gives no more frames"
        elif self.end - self.time - self.step > SHORT:
            yield (f"{self.name}: its frames end at {self.time:.1f} of {self.end:.1f} seconds: "
                   "cut off, or broken from there; the rows until there are written")
        elif 2 * self.read > self.count > self.read:
            yield (f"{self.name}: {self.read} frames can be read where the file names "
                   f"{self.count}; broken ones are left out, the times of the others are right")


# ---------------------------------------------------------------- who is who


@dataclasses.dataclass
class Track:
    """A face that is followed from frame to frame."""

    face: Face  # as it was seen last
    time: float  # when it was seen last, seconds
    speed: np.ndarray  # (2,) of its middle, pixels per second

    def at(self, now):
        """The Face at the place where it should be at time `now`, if its speed stays the same."""
        shift = self.speed * (now - self.time)
        box = self.face.box + np.append(shift, (0, 0))
        return dataclasses.replace(self.face, box=box, points=self.face.points + shift)

    def seen(self, face, now):
        """Take the Face that was found at time `now` as its last one; its speed is smoothed."""
        change = face.box - self.face.box
        if now > self.time:
            way = change[:2] + change[2:] / 2  # of the middle
            self.speed = 0.5 * self.speed + 0.5 * way / (now - self.time)
        self.face, self.time = face, now


def distances(expected, faces):
    """How different Faces are, (n, m): 1 - overlap of their boxes, plus the distance of their
    middles in widths of a face. 0 for equal boxes, inf if too far apart or of too unlike sizes."""
    from torchvision.ops import box_convert, box_iou

    one, other = (torch.from_numpy(np.array([face.box for face in some]).reshape(-1, 4))
                  for some in (expected, faces))
    far = torch.cdist(one[:, :2] + one[:, 2:] / 2, other[:, :2] + other[:, 2:] / 2)
    widths, theirs = one[:, 2:3], other[:, 2]
    far /= torch.maximum(widths, theirs)
    overlap = box_iou(*(box_convert(boxes, "xywh", "xyxy") for boxes in (one, other)))
    unlike = (far > 1) | (widths <= theirs / 2) | (widths >= 2 * theirs)
    return (1 - overlap + far).masked_fill(unlike, math.inf).numpy()


def assign(costs):
    """The pairs (row, column) with the least sum of costs (n, m); none of them costs inf."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.minimum(costs, 1e6))
    return [(r, c) for r, c in zip(rows.tolist(), columns.tolist()) if np.isfinite(costs[r, c])]


class Tracker:
    """Finds the faces of one frame after another, each with its number: first where they were in
    the frame before; in the whole frame if one is no longer there, or each `search` seconds."""

    def __init__(self, search):
        self.search, self.searched, self.before = search, -math.inf, -math.inf
        self.tracks, self.count, self.glance = {}, 0, None

    def find(self, frame):
        """[(number, Face)] of a Frame, by number."""
        if self.is_cut(frame.image):
            self.tracks, self.searched = {}, -math.inf
        now = frame.time
        self.tracks = {i: track for i, track in self.tracks.items()
                       if track.time >= self.before or now - track.time <= KEEP}
        faces, lost = self.look_again(frame.image, now)
        if lost or now - self.searched >= self.search:
            faces, self.searched = find_faces(frame.image, faces), now
        self.before = now
        return self.number(faces, now)

    def look_again(self, image, now):
        """The faces found where those of earlier frames should be now, and whether one is lost."""
        tracks = sorted(self.tracks.values(), key=lambda track: -track.time)
        found = find_again(image, [three_of(track.at(now).points) for track in tracks])
        lost = any(face is None and track.time >= self.before for face, track in zip(found, tracks))
        return [face for face in found if face], lost

    def is_cut(self, image):
        """Whether this frame differs so much from the one before that another scene begins."""
        import cv2

        glance = cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA).astype(float)
        before, self.glance = self.glance, glance
        return before is not None and np.abs(glance - before).mean() > CUT

    def number(self, faces, now):
        """[(number, Face)], by number: of the track that a face continues, or a new one."""
        ids = list(self.tracks)
        ages = np.array([self.before - self.tracks[i].time for i in ids])
        costs = distances([self.tracks[i].at(now) for i in ids], faces) + ages[:, None] / KEEP
        numbered = {}
        for row, column in assign(costs):
            self.tracks[ids[row]].seen(faces[column], now)
            numbered[column] = ids[row]
        for column, face in enumerate(faces):
            if column not in numbered:
                numbered[column] = self.count
                self.tracks[self.count] = Track(face, now, np.zeros(2))
                self.count += 1
        return sorted((numbered[c], face) for c, face in enumerate(faces))


# ---------------------------------------------------------------- a drawn copy


class Drawing:
    """A VP9 file of constant rate: a frame is repeated until the time of the next one."""

    def __init__(self, path, rate):
        self.path, self.rate, self.whole = path, rate, True
        self.file, self.written, self.end = None, 0, 0.0  # end: of the last frame, seconds

    def add(self, image, now):
        """Show an image (H, W, 3) from `now` on, seconds."""
        import av

        if self.file is None:
            self.begin = now
            with refused(self.path, "cannot be written ({}); free some space, or leave out --draw"):
                self.out = self.path.open("xb")  # PyAV takes no name that is not in UTF-8
            self.file = av.open(self.out, "w", "webm")
            self.stream = self.file.add_stream("libvpx-vp9", self.rate, options=QUICK)
            self.stream.height, self.stream.width = image.shape[:2]
        else:
            self.hold(now)
        self.frame, self.end = av.VideoFrame.from_ndarray(image), now + 1 / self.rate

    def hold(self, until):
        """Write the last image as often as it takes to reach this time."""
        while self.written < round((until - self.begin) * self.rate):
            self.frame.pts, self.frame.time_base = self.written, 1 / self.rate
            self.write(self.frame)
            self.written += 1

    def write(self, frame=None):
        """Write a frame, or the file's end. What fails is said at the end: the rows go on."""
        try:
            self.file.mux(self.stream.encode(frame))
            if frame is None:
                self.file.close()
                self.out.close()
        except OSError:
            self.whole = False

    def close(self):
        """Show the last image until the end. InputError if not all could be written."""
        if self.file:
            self.hold(self.end)
            self.write()
        if not self.whole:
            raise InputError(f"{self.path}: not written whole; free some space and draw again; "
                             "the rows are written")
