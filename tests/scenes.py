"""Stand-in faces, and scenes with them, rotated, scaled and pasted by Pillow alone."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmlfer_commands.synth import synthesize

EYES = 0.32  # the distance between a drawn face's eyes, in parts of its side


def drawn_faces(out, n, size, seed=0):
    """n stand-in faces (S, S, 3), drawn into the new folder `out`."""
    synthesize(out, n, "lab", None, size, seed)
    return [np.asarray(Image.open(path)) for path in sorted((out / "aligned").iterdir())]


def paste(scene, face, centre, eyes, angle):
    """Paste a face (S, S, 3) into a scene, with a soft border: its middle at `centre`, `eyes` pixels
    between its eyes, rotated by `angle` degrees counter-clockwise."""
    side = round(eyes / EYES)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).ellipse((0.02 * side, -0.1 * side, 0.98 * side, 1.1 * side), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(side / 40))
    face = Image.fromarray(face).resize((side, side), Image.BICUBIC if side > len(face) else Image.LANCZOS)
    face, mask = (i.rotate(angle, Image.BICUBIC, expand=True) for i in (face, mask))
    scene.paste(face, tuple(round(c - n / 2) for c, n in zip(centre, face.size)), mask)


def backdrop(width, height, rng):
    """An image of soft coloured blotches."""
    small = rng.integers(60, 200, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.BICUBIC)


def two_face_scene(faces, rng, least=20, most=200):
    """Two faces beside each other, the first on the left. -> the scene, and for each face (centre,
    pixels between the eyes, angle in degrees)"""
    placed, left = [], 0
    for _ in faces:
        eyes, angle = float(np.exp(rng.uniform(np.log(least), np.log(most)))), rng.uniform(-30, 30)
        reach = eyes / EYES * 0.75
        centre = (left + reach * rng.uniform(1, 1.3), reach * rng.uniform(1, 1.5))
        left = centre[0] + reach
        placed.append((centre, eyes, angle))
    height = max(c[1] + e / EYES for c, e, _ in placed)
    scene = backdrop(max(200, round(left * rng.uniform(1, 1.2))), max(200, round(height)), rng)
    for face, (centre, eyes, angle) in zip(faces, placed):
        paste(scene, face, centre, eyes, angle)
    return np.asarray(scene), placed
