"""A face drawn from its AUs."""

import functools
import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from mmlfer import AUS
from mmlfer_commands._rafce import parse_aus

# Face coordinates: u, v in -1..1, u > 0 the subject's left, v > 0 downwards. In the functions that
# draw a part, c is the FaceCanvas, a {AU: strength}, look {proportion of the person: -1..1}.

SKIN = ("#f4d4ba", "#eabe9e", "#e0ac84", "#be8862", "#8d5c3e", "#5c3a2a")
HAIR = ("#1c1614", "#3a261a", "#603e24", "#966838", "#ceaa6e", "#807c7a")
PROPORTIONS = ("jaw", "eye", "brow", "nose", "mouth", "lips", "hairline", "long")  # -1..1
DRAWN = (1, 2, 4, 5, 6, 7, 9, 10, 12, *range(14, 21), *range(22, 29), 39, 43)  # they change a face


@functools.cache
def furrows():
    """Rows of an AU, the depth and width of a furrow that it makes, and its control points."""
    return yaml.safe_load(Path(__file__).with_name("furrows.yaml").read_text("utf-8"))


def bezier(*points, n=20):
    """n points on the Bezier curve of these control points. -> (n, 2)"""
    points, t = np.array(points, float), np.linspace(0, 1, n)[:, None]
    while len(points) > 1:  # de Casteljau
        points = [(1 - t) * a + t * b for a, b in zip(points[:-1], points[1:])]
    return points[0]


def mix(a, b, share):
    """The colour at this share of the way from a to b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


class FaceCanvas:
    """Draws in face coordinates under a pose, at three times the size. Soft shading has a layer of
    its own (128: none), which is blurred and multiplied in at the end."""

    def __init__(self, size, person, rng):
        self.scale, self.width = 3 * size, person.uniform(0.36, 0.41)
        self.yaw, self.roll, self.pitch = rng.normal(0, (0.16, 0.07, 0.05))
        backdrop = mix((128,) * 3, rng.integers(0, 256, 3).tolist(), 0.6)
        self.image = Image.new("RGB", (self.scale,) * 2, backdrop)
        self.shade = Image.new("L", self.image.size, 128)
        self.pen, self.soft = ImageDraw.Draw(self.image), ImageDraw.Draw(self.shade)

    def at(self, points):
        """Pixels of (n, 2) face coordinates: the head turned (yaw, pitch), tilted (roll)."""
        u, v = np.asarray(points, float).T
        bulge = np.clip(1 - u**2 - 0.5 * v**2, 0, 1)  # the nearer parts move when the head turns
        x, y = self.width * (u + self.yaw * bulge), 0.44 * (v + self.pitch * bulge)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        xy = np.stack([0.5 + cos * x - sin * y, 0.5 + sin * x + cos * y], 1) * self.scale
        return [tuple(p) for p in xy.tolist()]

    def fill(self, points, color, pen=None):
        (pen or self.pen).polygon(self.at(points), fill=color)

    def dot(self, u, v, ru, rv, color, pen=None):
        t = np.linspace(0, 2 * np.pi, 32)
        self.fill(np.stack([u + ru * np.cos(t), v + rv * np.sin(t)], 1), color, pen)

    def line(self, points, color, width, pen=None):
        """A round-ended stroke; width as a share of the picture, one number or one per point."""
        xy, pen = self.at(points), pen or self.pen
        radii = np.broadcast_to(np.asarray(width, float) * self.scale / 2, len(xy))
        for (x, y), (x2, y2), r in zip(xy, [*xy[1:], xy[-1]], radii):
            pen.line((x, y, x2, y2), fill=color, width=max(1, round(2 * r)))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def crease(self, points, depth, width):
        if depth > 0.05:
            shade = int(128 - 95 * min(depth, 1.2))
            self.line(points, shade, width * (0.7 + depth), self.soft)

    def inside(self, outline, color):
        """A pen on a new layer of this colour, and a call that pastes it within the outline."""
        layer, mask = Image.new("RGB", self.image.size, color), Image.new("L", self.image.size, 0)
        self.fill(outline, 255, ImageDraw.Draw(mask))
        return ImageDraw.Draw(layer), lambda: self.image.paste(layer, mask=mask)


def draw_face(aus, rng, size, person=None):
    """A face with the AUs {number: (right, left) strength 0..1}, as an image. All else is random,
    from rng; skin, hair and proportions are from the generator `person`, if it is given."""
    person = person or rng
    by_side = [{n: float(aus.get(n, (0, 0))[side]) for n in AUS} for side in (0, 1)]
    both = {n: (by_side[0][n] + by_side[1][n]) / 2 for n in AUS}
    canvas = FaceCanvas(size, person, rng)
    skin = mix(*[ImageColor.getrgb(SKIN[i]) for i in person.integers(0, 6, 2)], person.random())
    hair = mix(*[ImageColor.getrgb(HAIR[i]) for i in person.integers(0, 6, 2)], person.random() / 2)
    look = dict(zip(PROPORTIONS, person.uniform(-1, 1, len(PROPORTIONS)).tolist()))
    jaw = 0.14 * both[26] + 0.26 * both[27] + 0.03 * both[25]
    draw_head(canvas, skin, hair, look, jaw)
    for side, a in zip((-1, 1), by_side):
        draw_eye(canvas, side, a, skin, look)
        draw_brow(canvas, side, a, hair, look)
        draw_nose(canvas, side, a, skin, look)
        for n, depth, width, points in furrows():
            u, v = np.array(points).T
            line = bezier(*zip(side * u, v + jaw * np.clip(4 * v - 2, 0, 1)))
            canvas.crease(line, depth * a[n], width)
    draw_mouth(canvas, by_side, both, skin, look, jaw)
    draw_fringe(canvas, hair, look)
    return expose(canvas, rng, size)


def draw_head(c, skin, hair, look, jaw):
    """Hair behind, neck, ears, and the outline of the face with its jaw."""
    long = 0.3 * (look["long"] > 0.2)
    if look["hairline"] > -0.85:
        c.dot(0, long - 0.3, 1.2, 0.95 + 1.3 * long, hair)
    c.fill([(-0.5, 0.6), (0.5, 0.6), (0.62, 1.6), (-0.62, 1.6)], mix(skin, (30, 15, 10), 0.25))
    c.dot(-1, -0.05, 0.1, 0.2, mix(skin, (90, 30, 20), 0.2))
    c.dot(1, -0.05, 0.1, 0.2, mix(skin, (90, 30, 20), 0.2))
    t = np.linspace(0, 2 * np.pi, 90)
    u, v = np.cos(t), np.sin(t)
    u *= 1 - (0.22 - 0.08 * look["jaw"]) * np.clip(v, 0, 1) ** 2
    c.fill(np.stack([u, v * np.where(v > 0, 0.98 + jaw, 1.05)], 1), skin)
    c.dot(0, 0.84 + 0.8 * jaw, 0.2, 0.09, 138, c.soft)


def draw_eye(c, side, a, skin, look):
    """The lids' opening, the eye in it, and the cheek below: AUs 5 6 7 9 12 43."""
    x, y, half = 0.42, -0.2, 0.2 + 0.02 * look["eye"]
    up = 0.075 + 0.085 * a[5] - 0.03 * a[7] - 0.015 * a[6] - 0.01 * a[9]
    low = 0.05 + 0.01 * a[5] - 0.028 * a[7] - 0.03 * a[6] - 0.01 * a[12] - 0.015 * a[9]
    up, low = np.array((up, low)) * (2 + 0.24 * look["eye"]) * (1 - 0.95 * a[43])
    near, far = (x - half, y + 0.02), (x + half, y)
    lid = bezier(near, (x - 0.6 * half, y - up), (x + half / 2, y - up), far) * (side, 1)
    bed = bezier(far, (x + half / 2, y + low), (x - half / 2, y + low), near) * (side, 1)
    x *= side
    pen, paste = c.inside(np.concatenate([lid, bed]), (238, 234, 230))
    iris = mix((60, 36, 20), (90, 130, 150), 0.9 * max(0, look["eye"]))
    for radius, color in ((0.098, mix(iris, (0, 0, 0), 0.4)), (0.085, iris), (0.042, (8, 6, 6))):
        c.dot(x, y - 0.015, radius, 0.86 * radius, color, pen)
    c.dot(x - 0.03, y - 0.045, 0.02, 0.016, (250, 250, 250), pen)
    c.line(lid, (110, 90, 84), 0.016, pen)  # the upper lid's shadow on the eye
    paste()
    c.line(lid, mix(skin, (20, 8, 6), 0.8), 0.013)
    c.line(bed, mix(skin, (60, 20, 15), 0.45), 0.006)
    c.line(lid[3:-1] - (0, 0.035 + 0.01 * a[5]), mix(skin, (60, 25, 15), 0.4), 0.006)
    c.dot(x, y - 0.06, 0.27, 0.15, 112, c.soft)
    light = 138 + int(28 * min(1, a[6] + 0.5 * a[12]))
    c.dot(1.05 * x, 0.16 - 0.05 * a[6], 0.2, 0.13, light, c.soft)


def draw_brow(c, side, a, hair, look):
    """AUs 1, 2, 4 and 9: the inner and the outer end move apart from each other."""
    frown = a[4] + 0.4 * a[9]
    inner = (0.17 - 0.07 * frown, -0.39 - 0.15 * a[1] + 0.11 * frown)
    arch = -0.49 - 0.04 * look["brow"] - 0.12 * a[2] - 0.06 * a[1] + 0.1 * a[4]
    outer = (0.71, -0.36 - 0.14 * a[2] + 0.045 * a[4] - 0.02 * a[1])
    brow = bezier(inner, (0.44, arch), outer) * (side, 1)
    thick = (0.024 + 0.008 * look["brow"]) * np.linspace(1.15, 0.35, len(brow))
    c.line(brow, mix(hair, (20, 12, 8), 0.5), thick)
    c.crease(brow + (0, 0.05), 0.3 + 0.5 * a[4], 0.03)


def draw_nose(c, side, a, skin, look):
    """A nostril, its wing and the bridge's side: AUs 9 and 10 raise them, 39 narrows."""
    v = 0.2 - 0.05 * a[9] - 0.02 * a[10]
    w = side * (0.145 + 0.025 * look["nose"]) * (1 + 0.18 * a[9] - 0.25 * a[39])
    wing = bezier((w, v - 0.1), (1.3 * w, v + 0.02), (0.75 * w, v + 0.04))
    c.dot(w / 2, v + 0.025, 0.045 * (1 - 0.5 * a[39]), 0.02, mix(skin, (25, 5, 5), 0.75))
    c.line(wing, mix(skin, (50, 15, 10), 0.5), 0.007)
    bridge = bezier((0.1 * side, -0.25), (0.06 * side, -0.05), (0.11 * side, 0.1))
    c.crease(bridge, 0.3, 0.03)
    c.dot(0, 0.12, 0.07, 0.06, 150, c.soft)
    c.dot(0, 0.26, 0.12, 0.025, 96, c.soft)


def mouth_corner(side, a, half, jaw):
    """A corner of the mouth: AU 12 up and out, 14 in, 15 down, 20 out."""
    u = half + 0.1 * a[12] + 0.03 * a[14] + 0.12 * a[20] + 0.01 * a[15]
    v = 0.52 + 0.35 * jaw - 0.15 * a[12] + 0.12 * a[15] + 0.02 * a[20] - 0.03 * a[14]
    return u * side, v


def draw_mouth(c, by_side, a, skin, look, jaw):
    """Lips and what they open on: AUs 10 12 15-18 20 22-28 (a: the mean of both sides)."""
    half = 0.3 + 0.03 * look["mouth"] - 0.1 * a[18] - 0.05 * a[22] - 0.04 * a[23] - 0.03 * a[27]
    right, left = (mouth_corner(s, one, half, jaw) for s, one in zip((-1, 1), by_side))
    thin = 1 - 0.6 * a[24] - 0.3 * a[20] - 0.35 * a[23] - 0.8 * a[28] - 0.15 * a[12]
    thin = max(thin, 0.12) * (1 + 0.25 * look["lips"] + 0.35 * a[18] + 0.5 * a[22])
    gap = 0.05 * a[25] + 0.85 * jaw + 0.04 * a[22]
    is_open, arch = gap > 0, 0.05 * a[10]
    top = 0.5 - 0.085 * a[10] - (0.03 * a[12] + 0.02 * a[16]) * a[25]
    bottom = top + gap + (0.02 + 0.145 * a[16] + 0.06 * a[12]) * is_open - 0.05 * a[17]
    bottom = max(bottom, top)
    upper, lower = 0.085 * thin, 0.115 * thin + 0.055 * a[16] * (not is_open)
    (r, _), (w, _) = right, left

    def across(sides, middle):
        """A lip's edge from corner to corner, by the heights at 0.6 and at 0.25 of the way out."""
        return bezier(right, (0.6 * r, sides), (0.25 * r, middle), (0, middle), (0.25 * w, middle),
                      (0.6 * w, sides), left, n=21)

    inner_top = across(top - arch, top)
    inner_low = across(bottom, bottom) if is_open else inner_top
    low = inner_low[10, 1]
    cupid = bezier(right, (0.55 * r, top - 1.3 * upper - arch), (-0.05, top - 2.4 * upper),
                   (0, top - 0.6 * upper), (0.05, top - 2.4 * upper),
                   (0.55 * w, top - 1.3 * upper - arch), left, n=21)
    outer_low = bezier(right, (0.6 * r, low + 1.5 * lower), (0, low + 1.9 * lower),
                       (0.6 * w, low + 1.5 * lower), left, n=21)
    lip = mix(skin, (170, 50, 60), 0.5 + 0.15 * look["lips"])
    c.fill(np.concatenate([cupid, outer_low[::-1]]), lip)
    c.fill(np.concatenate([inner_top, outer_low[::-1]]), mix(lip, (255, 220, 210), 0.12))
    c.dot(0, low + 2.2 * lower + 0.02, 0.2, 0.035, 92, c.soft)
    if is_open:
        draw_teeth(c, inner_top, inner_low, a)
    else:
        c.line(inner_top, mix(lip, (30, 5, 5), 0.65), 0.009)
        c.crease(bezier((-0.24, 0.66), (0, 0.8), (0.24, 0.66)), a[16], 0.016)


def draw_teeth(c, inner_top, inner_low, a):
    """The open mouth: darkness, the tongue, teeth above and, with AU 16, below."""
    pen, paste = c.inside(np.concatenate([inner_top, inner_low[::-1]]), (62, 14, 18))
    top, low = inner_top[10, 1], inner_low[10, 1]
    c.dot(0, low + 0.02 - 0.05 * a[19], 0.2, 0.11, (190, 84, 88), pen)
    teeth = min(0.055 + 0.05 * a[10] + 0.03 * a[12], 0.6 * (low - top))
    c.dot(0, top, 0.33, teeth, (240, 236, 226), pen)
    if a[16]:
        c.dot(0, low, 0.24, 0.03 + 0.05 * a[16], (232, 226, 214), pen)
    paste()


def draw_fringe(c, hair, look):
    """The hair above the face; the forehead is bare to the hairline."""
    v = -0.86 - 0.1 * look["hairline"]
    parting = (-0.4 * look["long"], v - 0.12)
    fringe = bezier((-1.08, -0.1), (-0.95, v), parting, (0.95, v), (1.08, -0.1))
    crown = bezier((1.08, -0.1), (1.35, -1.7), (-1.35, -1.7), (-1.08, -0.1))
    if look["hairline"] > -0.85:  # else bald
        c.fill(np.concatenate([fringe, crown]), hair)


def expose(c, rng, size):
    """The finished image: shading, light from one side and its colour, a camera's noise."""
    shade = c.shade.filter(ImageFilter.GaussianBlur(c.scale / 150))
    pixels, shade = (np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), float)
                     for image in (c.image, shade))
    x, y = np.meshgrid(*[np.linspace(-1, 1, size)] * 2)
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.32)
    light = 1 + contrast * (np.cos(angle) * x + np.sin(angle) * y) + rng.normal(0, 0.1)
    light *= 1 + 0.62 * (shade / 128 - 1)
    pixels *= light[..., None] * (1 + rng.normal(0, 0.04, 3))
    pixels += rng.normal(0, rng.uniform(1, 5), (size, size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def strengths(aus, rng):
    """{AU: (right, left) strength} of parsed AU tokens. A token with a side moves only its half of
    the face; if an AU is named twice, as in L12+R12, each side takes the larger strength."""
    moved = {}
    for number, letters in aus:
        amount, one = rng.uniform(0.6, 1.15), letters.strip("TB")
        right, left = moved.get(number, (0.0, 0.0))
        moved[number] = (max(right, amount * (one != "L")), max(left, amount * (one != "R")))
    return moved


def write_face(job):
    """Draw one row's face into its file, from the row's own seed, so that it is always the same."""
    path, aus, size, seed, *person = job
    rng, *person = map(np.random.default_rng, (seed, *person))
    buffer = io.BytesIO()
    draw_face(strengths(parse_aus(aus), rng), rng, size, *person).save(buffer, "JPEG", quality=92)
    Path(path).write_bytes(buffer.getvalue())
