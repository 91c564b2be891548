"""Reading videos frame by frame, following faces from frame to frame, and writing a drawn copy."""

import collections
import contextlib
import dataclasses
import math
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mmlfer import InputError, torch
from mmlfer_commands._alignment import Face, find_again, find_faces, three_of

AGAIN = 0.5  # seconds between searches of the whole frame
KEEP = 0.5  # seconds that a face keeps its number while it is not seen
CUT = 30  # mean difference (0..255) of two frames, shrunk to 16x9 pixels, above which it is a cut
SHORT = 1.0  # seconds by which the frames may end before their file says
TRIES = 8  # times to read on where a file is broken
RATES = (1, 60)  # frames per second: a file's own rate outside of these is not believed
DRAWN = 640  # the longer side of a drawn copy, pixels: OpenCV's VP9 is slow

# ---------------------------------------------------------------- reading


# A frame's number, from 0; its time in seconds, as its file has it; RGB (H, W, 3).
Frame = collections.namedtuple("Frame", "number time image")


@contextlib.contextmanager
def no_remarks():
    """Keep OpenCV and FFmpeg from writing to standard error within this context."""
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where standard error is closed
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            nothing = stack.enter_context(open(os.devnull, "w"))
            os.dup2(nothing.fileno(), 2)
        yield


def as_opencv_takes(path):
    """A path for OpenCV: as bytes, because it crashes at names that are not in UTF-8, and absolute,
    because FFmpeg takes `http:` at its beginning for an address."""
    return os.fsencode(os.path.abspath(path))


def camera_number(clip):
    """The number of a camera, or None where this is the path of a file."""
    return int(clip) if clip.isdecimal() and not Path(clip).exists() else None


def is_picture(path):
    """Whether a file is one image, whatever its name says."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "BMP", "WEBP", "TIFF")) as image:
            return getattr(image, "n_frames", 1) == 1
    except Exception:  # Pillow's plugins raise every kind
        return False


class ClipError(InputError):
    """One clip cannot be read; the program goes on with the others."""


def times_of_file(path):
    """The times at which a file's picture begins and should end, seconds, and the number of its
    frames, 0 where the file does not say. OpenCV counts time from the first frame, and tells the
    length of the sound."""
    import av

    try:
        with av.open(os.path.abspath(path)) as file:
            stream = file.streams.video[0]
            start = float((stream.start_time or 0) * stream.time_base)
            said = stream.metadata.get("DURATION", "")  # Matroska's: 00:00:02.400000000
            if stream.duration:
                end = start + float(stream.duration * stream.time_base)
            elif said:
                end = sum(float(part) * 60**i for i, part in enumerate(said.split(":")[::-1]))
            else:
                return start, (file.duration or 0) / av.time_base, stream.frames
            return start, end, stream.frames or round((end - start) * (stream.average_rate or 0))
    except (av.error.FFmpegError, IndexError, ValueError):
        return 0.0, 0.0, 0


class Clip:
    """A video file, or a camera, with its first frame found. ClipError if it has none."""

    def __init__(self, clip):
        import cv2

        self.name, self.camera, self.ended = clip, camera_number(clip), False
        if self.camera is None:
            self.check_file(Path(clip))
        with no_remarks():
            source = as_opencv_takes(clip) if self.camera is None else self.camera
            self.capture = cv2.VideoCapture(source)
            opened = self.capture.isOpened()
            self.grabbed = opened and self.grab()
        if self.camera is not None and not self.grabbed:
            raise ClipError(f"camera {clip}: there is none, or another program has it; connect "
                            "one, or give a video file")
        if not opened:
            raise ClipError(f"{clip}: not a video that can be read: something else, or cut off "
                            "before its index; give another copy")
        if not self.grabbed:
            raise ClipError(f"{clip}: no frame in it; give another copy")
        self.opened, self.begin, self.end, self.count = time.monotonic(), 0.0, 0.0, 0
        if self.camera is None:
            with no_remarks():
                self.begin, self.end, self.count = times_of_file(clip)
        self.read, self.time, self.step = 0, self.begin, 0.0
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if RATES[0] <= rate <= RATES[1] else 30.0

    @staticmethod
    def check_file(path):
        if not path.exists():
            raise ClipError(f"{path}: no such file; give a video, or the number of a camera")
        if path.is_dir():
            raise ClipError(f"{path}: a folder; give its videos, as {path}/*.mp4")
        if path.is_file() and is_picture(path):
            raise ClipError(f"{path}: one picture, not a video; `mmlfer predict --photos` takes it")

    def grab(self):
        """Go to the next frame that can be read. -> whether there is one"""
        return any(self.capture.grab() for _ in range(TRIES if self.camera is None else 1))

    def now(self):
        """The time of the frame that was grabbed last, seconds."""
        import cv2

        if self.camera is not None:
            return time.monotonic() - self.opened
        return self.begin + self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def frames(self, every=1, rate=None, start=0.0, end=math.inf):
        """Yield the Frames from `start` to before `end`, seconds: of every `every` frames one, or
        `rate` per second. The others are passed over and not made into images."""
        due = start
        while self.grabbed:
            number, now = self.read, self.now()
            if now >= end:
                return
            self.read, self.time, self.step = number + 1, now, now - self.time
            if now >= due - 1e-6 and number % every == 0:
                if rate:
                    due += max(1, math.ceil((now - due) * rate + 1e-6)) / rate
                decoded, image = self.capture.retrieve()
                if decoded:
                    yield Frame(number, now, np.ascontiguousarray(image[:, :, ::-1]))
            self.grabbed = self.grab()
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

    def close(self):
        self.capture.release()


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
        way = middle(face.box) - middle(self.face.box)
        if now > self.time:
            self.speed = 0.5 * self.speed + 0.5 * way / (now - self.time)
        self.face, self.time = face, now


def middle(box):
    """The middle (2,) of a box: left, top, width, height."""
    return box[:2] + box[2:] / 2


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
        return sorted(((numbered[c], face) for c, face in enumerate(faces)), key=lambda p: p[0])


# ---------------------------------------------------------------- a drawn copy


class Drawing:
    """A VP9 file of constant rate: a frame is repeated until the time of the next one."""

    def __init__(self, path, rate):
        self.path, self.rate = path, rate
        self.writer, self.written, self.end = None, 0, 0.0  # end: of the last frame, seconds

    def add(self, image, now):
        """Show an image (H, W, 3) from `now` on, seconds."""
        import cv2

        if self.writer is None:
            self.begin, self.size = now, image.shape[1::-1]
            code = cv2.VideoWriter_fourcc(*"VP90")
            with no_remarks():  # OpenCV would say that .webm does not know this code
                self.writer = cv2.VideoWriter(as_opencv_takes(self.path), cv2.CAP_FFMPEG, code,
                                              self.rate, self.size)
            if not self.writer.isOpened():
                raise InputError(f"{self.path}: cannot be written; free some space, or leave out "
                                 "--draw")
        else:
            self.hold(now)
        self.image, self.end = np.ascontiguousarray(image[:, :, ::-1]), now + 1 / self.rate

    def hold(self, until):
        """Write the last image as often as it takes to reach this time."""
        while self.written < round((until - self.begin) * self.rate):
            self.writer.write(self.image)
            self.written += 1

    def close(self):
        """Show the last image until the end."""
        if self.writer:
            self.hold(self.end)
            self.writer.release()

    def check(self):
        """InputError if the closed file's last frame cannot be read: OpenCV reports no failure."""
        import cv2

        with no_remarks():
            capture = cv2.VideoCapture(as_opencv_takes(self.path))
            capture.set(cv2.CAP_PROP_POS_FRAMES, self.written - 1)
            whole = capture.grab()
        if self.writer and not whole:
            raise InputError(f"{self.path}: not written whole; free some space and draw again; "
                             "the rows are written")


def fit(image):
    """An image whose longer side has DRAWN pixels and both sides are even; and the factor."""
    import cv2

    zoom = DRAWN / max(image.shape)
    size = [max(2, round(zoom * n / 2) * 2) for n in image.shape[1::-1]]
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=how), zoom
