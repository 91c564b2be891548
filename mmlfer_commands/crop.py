"""mmlfer crop: the faces of photographs, aligned as the training faces are."""

import contextlib
import itertools
import sys

import click
from PIL import Image

from mmlfer import COUNT, PATH, RATE, SIZE, is_image, plural, progress, try_read, write_whole
from mmlfer_commands._alignment import FACE_COLUMNS, align, choose_template, face_row, find_faces
from mmlfer_commands._inputs import ahead, is_clip, list_images
from mmlfer_commands._outputs import (
    Lines, check_new, check_pictures_folder, csv_table, encoded, filling, output_names, say, shown)
from mmlfer_commands._runs import check_installed
from mmlfer_commands._video import AGAIN, Clip, ClipError, Tracker


def photo_faces(paths):
    """Yield (path, image, faces) of each photograph, or (path, the reason why not, None)."""
    images = ahead((path, try_read(path, None)) for path in paths)
    for path, image in progress(images, "finding faces", len(paths), unit=" photos"):
        yield path, image, None if isinstance(image, str) else find_faces(image)


like_option = click.option("--like", type=PATH, metavar="DIR", help="Folder of aligned faces, "
                           "laid out like RAF-CE, whose alignment is measured and used.")
every_option = click.option("--every", type=COUNT, metavar="N", help="Take every Nth frame.")
fps_option = click.option("--fps", type=RATE, metavar="F", help="Take F frames a second, or all if "
                          "there are fewer.")


class Crops:
    """The crops below out/aligned, and out/faces.csv, where a row follows its crop."""

    def __init__(self, files, template, size, out):
        columns = ["image", "timestamp", "face", "file", *FACE_COLUMNS[1:]]
        self.table = csv_table(Lines(files, out / "faces.csv"), columns)
        self.template, self.size, self.out, self.count = template, size, out, 0

    def add(self, path, image, faces, timestamp=""):
        """Write the faces of an image, [(number, name of the crop, Face)]."""
        for i, name, face in faces:
            crop, file = align(image, face, self.template, self.size), f"aligned/{name}"
            kind = "PNG" if name.endswith(".png") else "JPEG"
            write_whole(self.out / file, encoded(Image.fromarray(crop), kind))
            row = {"image": shown(path), "timestamp": timestamp, "file": shown(file)}
            self.table.writerow(row | face_row({"face": i, **face.described(image)}))
            self.count += 1


def crop_photos(photos, names, crops):
    """Write the crops of photographs. Yields (path, [why it cannot be read]) of each one."""
    for name, (path, image, faces) in zip(names, photo_faces(photos)):
        found = enumerate(faces or ())
        crops.add(path, image, [(i, f"{name}_{i}.png", face) for i, face in found])
        yield path, [f"skipped {image}"] if faces is None else []


def crop_clips(clips, names, crops, every, fps):
    """The same of clips, with all that is wrong with them: they may be broken or cut off."""
    for name, path in zip(names, progress(clips, "finding faces", unit=" clips")):
        remarks = []
        try:
            with contextlib.closing(Clip(str(path))) as clip:
                crop_frames(clip, name, crops, every, fps)
                remarks += clip.remarks()
        except ClipError as error:
            remarks.append(f"skipped {error}")
        yield path, remarks


def crop_frames(clip, name, crops, every, fps):
    """Write the crops of a Clip's frames: of the first one the largest face as 00001.jpg, and of
    the next ones the same person's, until it is gone; those of others as 00001.2.jpg ..."""
    tracker, first = Tracker(AGAIN), None
    for frame in clip.frames(every or 1, fps):
        found, stem = dict(tracker.find(frame)), f"{name}/{frame.number + 1:05d}"
        if first not in tracker.tracks:
            first = max(found, key=lambda number: found[number].box[2], default=None)
        others = [number for number in found if number != first]
        faces = [(first, f"{stem}.jpg", found[first])] if first in found else []
        faces += [(number, f"{stem}.{i}.jpg", found[number]) for i, number in enumerate(others, 2)]
        crops.add(clip.name, frame.image, faces, f"{frame.time:.3f}")


@click.command("crop")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PHOTO...")
@click.option("--out", required=True, type=PATH, help="New folder: aligned/, faces.csv.")
@like_option
@click.option("--size", default=112, type=SIZE, help="Side of a crop, pixels.")
@every_option
@fps_option
def command(paths, out, like, size, every, fps):
    """Cut out and align the faces of photographs and videos, or of folders of them.

    Photographs should be upright: faces turned by more than 45 degrees are often missed; those
    found, also upside down, are turned upright.

    OUT/aligned has NAME_0.png, NAME_1.png ... of each photograph, from left to right; of a video
    NAME/00001.jpg, the largest face of its first frame, NAME/00002.jpg, the same person, and so on;
    other people's are NAME/00001.2.jpg. OUT/faces.csv says where and when they were. What cannot be
    read is named and skipped, and the exit code is then 1.
    """
    if every and fps:
        raise click.UsageError("--every and --fps: give one of them.")
    check_pictures_folder(out / "aligned", *paths)
    check_new(out)
    found = list_images(paths, lambda path: is_image(path) or is_clip(path))
    photos = [path for path in found if not is_clip(path)]
    if clips := list(filter(is_clip, found)):
        check_installed("video", ("av", "scipy"), "photos")
    names, template = output_names([*photos, *clips]), choose_template(like)
    with filling(out), contextlib.ExitStack() as files:
        crops = Crops(files, template, size, out)
        done = itertools.chain(crop_photos(photos, names, crops),
                               crop_clips(clips, names[len(photos) :], crops, every, fps))
        before, without, bad = 0, 0, 0
        for path, remarks in done:
            for remark in remarks:
                say(f"Warning: {remark}")
            if crops.count == before and not remarks:
                without += 1
                say(f"no face: {shown(path)}")
            before, bad = crops.count, bad + bool(remarks)
    videos = f" and {plural(len(clips), 'video')}" if clips else ""
    click.echo(f"{crops.count} faces of {len(photos)} images{videos}, {without} without a face, "
               f"{bad} that cannot be read: {out}")
    if bad:
        sys.exit(1)
