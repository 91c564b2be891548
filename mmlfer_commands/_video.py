"""Reading videos frame by frame, following faces from frame to frame, and writing a drawn copy."""

import contextlib
import dataclasses
import math
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mmlfer import InputError
from mmlfer_commands._alignment import Face, find_faces, known, look, three_of

KEEP = 0.5  # seconds that a face keeps its number while it is not seen
CUT = 30  # mean difference of two frames of 16x9 pixels, of 0..255, that is a cut
SHORT = 1.0  # seconds by which the frames may end before their file says
TRIES = 8  # to read on behind what is broken in a file
RATES = (1, 60)  # frames a second that a file's own rate is believed in
DRAWN = 640  # the longer side of a drawn copy, pixels: OpenCV's VP9 is slow

# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame: its number, from 0; its time in seconds, as its file has it; RGB (H, W, 3)."""

    number: int
    time: float
    image: np.ndarray


@contextlib.contextmanager
def no_remarks():
    """OpenCV and FFmpeg write nothing to standard error while this lasts."""
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
    """A path for OpenCV: bytes, for it crashes at a name that is not in UTF-8; from the root, for
    FFmpeg takes what begins like `http:` for an address."""
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
    """A clip that cannot be read; the others can."""


class Clip:
    """A video file, or a camera, with its first frame read. ClipError where it has none."""

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
        self.start, self.read, self.time, self.step = time.monotonic(), 0, 0.0, 0.0
        count, rate = (self.capture.get(p) for p in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        self.count = count if 0 < count < 2**31 and self.camera is None else 0
        self.seconds = self.count / rate if rate > 0 else 0
        self.rate = rate if RATES[0] <= rate <= RATES[1] else 30.0

    @staticmethod
    def check_file(path):
        if not path.exists():
            raise ClipError(f"{path}: no such file; give a video, or the number of a camera")
        if path.is_dir():
            raise ClipError(f"{path}: a folder; give its videos, as {path}/*.mp4")
        if path.is_file() and is_picture(path):
            raise ClipError(f"{path}: one picture, not a video; `mmlfer predict --photos` takes "
                            "it")

    def grab(self):
        """Go to the next frame that can be read; whether there is one."""
        return any(self.capture.grab() for _ in range(TRIES if self.camera is None else 1))

    def now(self):
        """The time of the frame that was grabbed last, seconds."""
        import cv2

        if self.camera is not None:
            return time.monotonic() - self.start
        return self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def frames(self, every=1, rate=None, start=0.0, end=math.inf):
        """Yield the Frames from `start` to before `end`: every so many of the file's, or so many a
        second; the others are not decoded further than they must be."""
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
        """Yield what is wrong, a line each, where the frames have ended by themselves."""
        if not self.ended:
            return
        if self.camera is not None:
            yield f"camera {self.name}: gives no more frames"
        elif self.seconds - self.time - self.step > SHORT:
            yield (f"{self.name}: its frames end at {self.time:.1f} of {self.seconds:.1f} seconds: "
                   "cut off, or broken from there; the rows until there are written")
        elif 2 * self.read > self.count > self.read:
            yield (f"{self.name}: {self.read} frames can be read where the file names "
                   f"{self.count:.0f}; broken ones are left out, the times of the others are right")

    def close(self):
        self.capture.release()


# ---------------------------------------------------------------- who is who


@dataclasses.dataclass
class Track:
    """A face that is followed."""

    face: Face  # as it was seen last
    time: float  # then
    speed: np.ndarray  # (2,) of its middle, pixels a second

    def at(self, now):
        """The Face where it should be at another time, if it goes on as it went."""
        shift = self.speed * (now - self.time)
        box = self.face.box + np.append(shift, (0, 0))
        return dataclasses.replace(self.face, box=box, points=self.face.points + shift)

    def seen(self, face, now):
        way = middle(face.box) - middle(self.face.box)
        if now > self.time:
            self.speed = 0.5 * self.speed + 0.5 * way / (now - self.time)
        self.face, self.time = face, now


def middle(box):
    return box[:2] + box[2:] / 2


def overlap_share(one, other):
    """The intersection of two boxes (left, top, width, height) over their union."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def distance_of(expected, face):
    """How unlike two findings are, by the overlap of their boxes and the distance of their middles
    in widths of a face: 0 for the same, inf where one is too far from the other or too large."""
    width, other = expected.box[2], face.box[2]
    far = math.dist(middle(expected.box), middle(face.box)) / max(width, other)
    if far > 1 or not 0.5 < width / other < 2:
        return math.inf
    return 1 - overlap_share(expected.box, face.box) + far


def assign(costs):
    """Pairs (row, column) of the least sum of costs (n, m); none that costs inf."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.minimum(costs, 1e6))
    return [(r, c) for r, c in zip(rows.tolist(), columns.tolist()) if np.isfinite(costs[r, c])]


def check_scipy():
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise InputError("following faces needs scipy: pip install -e '.[photos]'") from None


class Tracker:
    """The faces of one frame after another, each with its number.

    Where a face was in the frame before, it is looked for first. The whole frame is searched when
    one is not there any more, and when the last search is `search` seconds old.
    """

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
        """The faces that are about where those before should be now, and whether one is lost. One
        look at each is enough: a face moves little from frame to frame."""
        faces, lost = [], False
        for track in sorted(self.tracks.values(), key=lambda track: -track.time):
            face = look(image, three_of(track.at(now).points))
            if face is not None and not known(face.points, faces):
                faces.append(face)
            else:
                lost |= track.time >= self.before
        return faces, lost

    def is_cut(self, image):
        """Whether this frame differs so much from the one before that it shows something else."""
        import cv2

        glance = cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA).astype(float)
        before, self.glance = self.glance, glance
        return before is not None and np.abs(glance - before).mean() > CUT

    def number(self, faces, now):
        """Give each face the number of the track that it continues, or a new one; of tracks that
        fit equally that which was seen last."""
        ids = list(self.tracks)
        costs = np.full((len(ids), len(faces)), math.inf)
        for row, i in enumerate(ids):
            expected, age = self.tracks[i].at(now), self.before - self.tracks[i].time
            for column, face in enumerate(faces):
                costs[row, column] = distance_of(expected, face) + age / KEEP
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
    """A VP9 file of frames at their own times, written at a constant rate: a frame stands until
    the next one's time, so that it plays as fast and as long as what was read."""

    def __init__(self, path, rate):
        self.path, self.rate = path, rate
        self.writer, self.written, self.end = None, 0, 0.0  # `end`: until when the last one stands

    def add(self, image, now):
        """Show an image (H, W, 3) from `now` on, seconds."""
        import cv2

        if self.writer is None:
            self.begin, self.size = now, image.shape[1::-1]
            code = cv2.VideoWriter_fourcc(*"VP90")
            with no_remarks():  # it says that a .webm has no place for this code
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
        """InputError where the last frame of the file that is closed cannot be read: OpenCV does
        not say whether it could be written."""
        import cv2

        with no_remarks():
            capture = cv2.VideoCapture(as_opencv_takes(self.path))
            capture.set(cv2.CAP_PROP_POS_FRAMES, self.written - 1)
            whole = capture.grab()
        if self.writer and not whole:
            raise InputError(f"{self.path}: not written whole; free some space and draw again; "
                             "the rows are written")


def fit(image):
    """An image with its longer side of DRAWN pixels, both sides even, and by how much it is zoomed:
    text can be read in it."""
    import cv2

    zoom = DRAWN / max(image.shape)
    size = [max(2, round(zoom * n / 2) * 2) for n in image.shape[1::-1]]
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=how), zoom
