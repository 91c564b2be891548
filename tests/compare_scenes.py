"""How checkpoints answer test faces as they are and as `predict --photos` finds them in scenes.

    python tests/compare_scenes.py FACES N CKPT..

FACES: a folder of drawn faces, as `mmlfer synth` writes it. Its first N test faces are pasted by twos
into scenes (turned up to 30 degrees, eyes 20 to 200 pixels apart), found there and aligned again. A
face that is not found is a wrong answer, and no agreement.
"""

import sys

import numpy as np
from scenes import two_face_scene

import mmlfer
from mmlfer_commands import _rafce
from mmlfer_commands._alignment import align, choose_template, find_faces, three_of


def nearest(faces, centre, eyes):
    """Of the Faces found in a scene the one pasted around `centre`, with so many pixels between its
    eyes, or None."""
    away = [float(np.linalg.norm(three_of(face.points).mean(0) - centre)) for face in faces]
    return faces[int(np.argmin(away))] if away and min(away) < eyes else None


def crops_in_scenes(images, template, rng):
    """Images (N, S, S, 3), N even, pasted by twos and found again: (N, S, S, 3), and which were found, (N,)."""
    crops, found = np.zeros_like(images), np.zeros(len(images), bool)
    for i in mmlfer.progress(range(0, len(images), 2), "scenes"):
        scene, placed = two_face_scene(images[i : i + 2], rng)
        faces = find_faces(scene)
        for j, (centre, eyes, _) in enumerate(placed, i):
            face = nearest(faces, centre, eyes)
            if face is not None:
                crops[j], found[j] = align(scene, face, template, images.shape[1]), True
    return crops, found


def answers(net, images):
    """The likeliest expression of each of (N, S, S, 3), as (N,)."""
    return mmlfer.predict_faces(net, mmlfer.as_batch(images))[0].argmax(1)


def compare_on(folder, n, ckpts):
    """Yield of each checkpoint its accuracy on the first n test faces as they are, in scenes, and how
    many answers are the same, each in percent; prints how many faces were found."""
    state = mmlfer.read_checkpoint(ckpts[0])
    faces = _rafce.load_labels(folder).of("test").select(slice(n))
    images = mmlfer.load_images(faces, folder, state["config"]["size"]).images.permute(0, 2, 3, 1).numpy()
    crops, found = crops_in_scenes(images, choose_template(folder, state), np.random.default_rng(0))
    print(f"{found.sum()} of {len(found)} faces found")
    for ckpt in ckpts:
        net, _ = mmlfer.load_net(ckpt)
        plain, seen = answers(net, images), answers(net, crops)
        yield [100 * float(np.mean(x)) for x in (plain == faces.y_emo, (seen == faces.y_emo) & found,
                                                 (plain == seen) & found)]


if __name__ == "__main__":
    for name, values in zip(sys.argv[3:], compare_on(sys.argv[1], int(sys.argv[2]), sys.argv[3:])):
        print(f"{name}: as they are {values[0]:.2f} %, in scenes {values[1]:.2f} %, the same answer {values[2]:.2f} %", flush=True)
