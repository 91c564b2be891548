"""mmlfer crop: the faces of photographs, aligned as the training faces are."""

import contextlib
import csv
import sys

import click

from mmlfer import PATH, SIZE, progress, try_read, write_whole
from mmlfer_commands._alignment import FACE_COLUMNS, align, choose_template, face_row, find_faces
from mmlfer_commands._inputs import list_images
from mmlfer_commands._outputs import (
    Lines,
    check_empty,
    check_pictures_folder,
    filling,
    output_names,
    png,
    say,
    shown,
)


def photo_faces(paths):
    """Yield (path, image, faces) of each photograph, or (path, the reason why not, None)."""
    for path in progress(paths, "finding faces", unit=" photos"):
        image = try_read(path, None)
        yield path, image, None if isinstance(image, str) else find_faces(image)


like_option = click.option("--like", type=PATH, metavar="DIR", help="Folder of aligned faces, "
                           "laid out like RAF-CE, whose alignment is measured and used.")


def crop_photos(photos, template, size, out):
    """Write the faces of photographs to out/aligned and, after each crop, its row to out/faces.csv,
    so that every row has a crop if this is interrupted. -> numbers of faces, of images without a
    face, of images that cannot be read"""
    count, bad, without = 0, 0, 0
    columns = ["image", "face", "file", *FACE_COLUMNS[1:]]
    with contextlib.ExitStack() as files:
        table = csv.DictWriter(Lines(files, out / "faces.csv"), columns, lineterminator="\n")
        table.writeheader()
        for name, (path, image, faces) in zip(output_names(photos), photo_faces(photos)):
            if faces is None:
                bad += 1
                say(f"Warning: skipped {image}")
                continue
            if not faces:
                without += 1
                say(f"no face: {shown(path)}")
            for i, face in enumerate(faces):
                place = f"aligned/{name}_{i}.png"
                write_whole(out / place, png(align(image, face, template, size)))
                row = face_row({"face": i, **face.described()})
                table.writerow({"image": shown(path), "file": shown(place), **row})
                count += 1
    return count, without, bad


@click.command("crop")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PHOTO...")
@click.option("--out", required=True, type=PATH, help="New folder: aligned/, faces.csv.")
@like_option
@click.option("--size", default=112, type=SIZE, help="Side of a crop, pixels.")
def command(paths, out, like, size):
    """Cut out and align the faces of photographs: images, or folders of them.

    Photographs should be upright: faces turned by more than 45 degrees are often missed, those
    upside down are not found, and something else may then be taken for a face.

    OUT/aligned has NAME_0.png, NAME_1.png ... of each photograph, from left to right; OUT/faces.csv
    says where they were. Images that cannot be read are named and skipped, and the exit code is
    then 1.
    """
    check_pictures_folder(out / "aligned", *paths)
    check_empty(out)
    photos = list_images(paths)
    template = choose_template(like)
    with filling(out):
        count, without, bad = crop_photos(photos, template, size, out)
    click.echo(f"{count} faces of {len(photos)} images, {without} without a face, {bad} "
               f"that cannot be read: {out}")
    if bad:
        sys.exit(1)
