"""mmlfer predict: expressions and AUs of aligned faces, or of the faces in photographs."""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import sys
import textwrap
import types
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mmlfer import (
    COUNT, PATH, InputError, as_batch, decode, device_option, json_option, precision_option,
    predict_faces, try_read, write_whole)
from mmlfer_commands._alignment import FACE_COLUMNS, align, choose_template, face_row
from mmlfer_commands._answers import (
    active_aus, answer, check_columns, probability_columns, probability_row)
from mmlfer_commands._inputs import ahead, list_images
from mmlfer_commands._models import load_model, model_options
from mmlfer_commands._nets import folded
from mmlfer_commands._outputs import (
    Lines, check_new, check_output, check_pictures_folder, check_two_outputs, csv_table, encoded,
    filling, output_names, say, shown, writing)
from mmlfer_commands.crop import like_option, photo_faces

# ---------------------------------------------------------------- predicting
# These are all iterators, so that of a hundred thousand images only some hundred are in memory.


@dataclasses.dataclass
class Item:
    """A face on its way through the net, or an image that has none."""

    number: int  # index of its path
    crop: np.ndarray | str | None  # (S, S, 3); why it cannot be read; or None: no face
    details: dict = dataclasses.field(default_factory=dict)  # of the face: number, box, points ...
    answer: tuple | None = None  # p_emo (K,), p_au (J,)


def items_of_photos(paths, size, template):
    """Yield the Items of each photograph's faces, or its one Item without a face."""
    for i, (_, image, faces) in enumerate(photo_faces(paths)):
        if not faces:
            yield Item(i, image if faces is None else None)
        yield from items_of_photo(i, image, faces or (), template, size)


def items_of_photo(i, image, faces, template, size):
    """Yield the Item of each face that was found in a photograph (H, W, 3)."""
    for number, face in enumerate(faces):
        details = {"face": number, **face.described(image)}
        yield Item(i, align(image, face, template, size), details)


def predict_crops(net, items, batch=64):
    """Yield the same Items; those with a crop now have their answers."""
    items = iter(items)
    for chunk in ahead(iter(lambda: list(itertools.islice(items, batch)), [])):
        crops = [item.crop for item in chunk if isinstance(item.crop, np.ndarray)]
        answers = zip(*predict_faces(net, as_batch(crops))) if crops else iter(())
        for item in chunk:
            item.answer = next(answers) if isinstance(item.crop, np.ndarray) else None
            yield item


def predict_images(net, state, items, paths, top):
    """Yield (index of the path, a list of its faces' predictions or why it cannot be read)."""
    for i, faces in itertools.groupby(predict_crops(net, items), lambda item: item.number):
        faces = list(faces)
        if isinstance(faces[0].crop, str):
            yield i, faces[0].crop
        else:
            yield i, [{"image": shown(paths[i]), **face.details, **answer(state, *face.answer, top)}
                      for face in faces if face.answer]


# ---------------------------------------------------------------- writing


def prediction_line(result):
    """A face's prediction as one line of text."""
    face = f", face {result['face']}" if "face" in result else ""
    if marks := [mark for mark in ("small", "cut") if result.get(mark)]:
        face += f" ({', '.join(marks)})"
    expressions = ", ".join(f"{e['name']} {100 * e['p']:.1f} %" for e in result["expressions"])
    return f"{result['image']}{face}: {expressions}; AUs: {active_aus(result, '{au} {name}', ', ')}"


def csv_row(result):
    """A face's prediction as a row of --csv."""
    row = {name: result[name] for name in ("image", "drawing") if name in result}
    if "face" in result:
        row |= face_row(result)
    for i, e in enumerate(result["expressions"], 1):
        row |= {f"expression_{i}": e["name"], f"p_{i}": round(e["p"], 6)}
    return row | {"aus": active_aus(result, "{au}", "+"), **probability_row(result)}


def part_of(path):
    """The file to which the lines of an output are written until all are there."""
    return Path(f"{os.path.realpath(path)}.part")


@contextlib.contextmanager
def lines_to(path):
    """A text file to which lines are written as they come. Standard output ("-"), devices and pipes
    get each at once, and so does FILE.part, which becomes any other FILE when all are written."""
    if str(path) == "-":
        if not sys.stdout:
            raise InputError("standard output is closed; name a file in place of -")
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
        yield types.SimpleNamespace(write=lambda text: tqdm.write(text, sys.stdout, end=""))
    elif path.exists() and not path.is_file():
        with writing(path), path.open("w", 1, "utf-8", newline="") as file:
            yield file
    else:
        part = part_of(path)
        with writing(path):
            with contextlib.ExitStack() as files:
                lines = Lines(files, part)
                yield lines
                os.fsync(lines.file.fileno())
            if path.exists():
                shutil.copymode(path, part)
            part.replace(os.path.realpath(path))


def table_columns(state, top, photos, draw=False):
    """The columns of --csv."""
    columns = ["image", *(["drawing"] if draw else ()), *(FACE_COLUMNS if photos else ())]
    columns += [f"{c}_{i}" for i in range(1, top + 1) for c in ("expression", "p")]
    columns += ["aus", *probability_columns(state)]
    check_columns(columns)
    return columns


def open_writers(files, csv_path, jsonl_path, state, top, photos, draw):
    """Functions that each write a prediction to a file, which the ExitStack `files` closes."""
    writers = []
    if jsonl_path:
        jsonl = files.enter_context(lines_to(jsonl_path))
        writers.append(lambda result: jsonl.write(json.dumps(result) + "\n"))
    if csv_path:
        columns = table_columns(state, top, photos, draw)
        table = csv_table(files.enter_context(lines_to(csv_path)), columns)
        writers.append(lambda result: table.writerow(csv_row(result)))
    return writers


# ---------------------------------------------------------------- drawing


def label_of(result, wide):
    """The first expression with its probability, and the AUs, in lines of up to `wide` letters."""
    first = result["expressions"][0]
    texts = (f"{first['name']} {100 * first['p']:.0f} %", f"AUs: {active_aus(result, '{au}', ' ')}")
    return "\n".join(line for text in texts for line in textwrap.wrap(text, wide))


def overlap(one, other):
    """The area that two boxes (left, top, right, bottom) have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def place_label(box, size, picture, taken):
    """The place for a label of this size (width, height) above, below, beside or in a face's box
    that covers least of the boxes in `taken`. Boxes are (left, top, right, bottom)."""
    (left, top, right, bottom), (w, h) = box, size
    rows = (top - h, bottom, top - 2 * h, bottom + h)
    places = [(x, y) for y in rows for x in (left, right - w)]
    spots = []
    for x, y in (*places, (right, top), (left - w, top), (left, top)):
        x, y = min(max(x, 0), max(picture[0] - w, 0)), min(max(y, 0), max(picture[1] - h, 0))
        spots.append((x, y, x + w, y + h))
    return min(spots, key=lambda spot: sum(overlap(spot, t) for t in taken))


def place_labels(boxes, sizes, picture):
    """A spot for each face's label, and whether they cover each other or a tenth of a face."""
    taken = boxes.copy()
    for box, size in zip(boxes, sizes):
        taken.append(place_label(box, size, picture, taken))
    spots = taken[len(boxes) :]
    full = any(overlap(a, b) > 1 for a, b in itertools.combinations(spots, 2)) or any(
        sum(overlap(box, spot) for spot in spots) > overlap(box, box) / 10 for box in boxes)
    return spots, full


def draw_predictions(image, results):
    """A copy of a photograph (H, W, 3), enlarged if small, with a box and a label for each face.
    Where there is no room for labels, each box has a number, and a legend stands below."""
    picture = Image.fromarray(image)
    zoom = max(1.0, 640 / max(picture.size))
    if zoom > 1:
        picture = picture.resize([max(1, round(zoom * n)) for n in picture.size], Image.BICUBIC)
    side = math.sqrt(picture.width * picture.height)
    size, line = max(14, side / 52), max(2, round(side / 350))
    wide = max(12, min(28, int(1.8 * picture.width / size)))  # letters a line
    boxes = [(zoom * x, zoom * y, zoom * (x + width), zoom * (y + height))
             for x, y, width, height in (result["box"] for result in results)]
    labels = [Label(label_of(result, wide), size, line) for result in results]
    spots, full = place_labels(boxes, [label.size for label in labels], picture.size)
    legend = labels if full and len(labels) > 1 else []
    if legend:
        line = max(1, line // 2)
        labels = [Label(str(i), max(10, min(size, (box[3] - box[1]) / 3)), line)
                  for i, box in enumerate(boxes)]
        spots, _ = place_labels(boxes, [label.size for label in labels], picture.size)
        legend = [Label(f"{i}  {label.text}", max(12, 0.7 * size), line)
                  for i, label in enumerate(legend)]
    pen = ImageDraw.Draw(picture)
    for box, spot, label in zip(boxes, spots, labels):
        pen.rectangle(box, outline="#ffd400", width=line)
        label.draw(pen, spot)
    return with_legend(picture, legend) if legend else picture


class Label:
    """White text on dark ground, with a margin."""

    def __init__(self, text, size, line):
        self.text, self.line, self.font = text, line, ImageFont.load_default(size)
        pen = ImageDraw.Draw(Image.new("1", (1, 1)))
        self.x, self.y, right, low = pen.multiline_textbbox((0, 0), text, self.font, spacing=line)
        self.size = right - self.x + 4 * line, low - self.y + 4 * line  # width, height

    def draw(self, pen, spot):
        """Draw it in a box (left, top, right, bottom)."""
        pen.rectangle(spot, fill="#202020")
        place = spot[0] + 2 * self.line - self.x, spot[1] + 2 * self.line - self.y
        pen.multiline_text(place, self.text, "#ffffff", self.font, spacing=self.line)


def with_legend(picture, labels):
    """A picture with labels below it, in columns."""
    width, height = (max(sizes) for sizes in zip(*(label.size for label in labels)))
    columns = max(1, int(picture.width // width))
    rows = -(-len(labels) // columns)
    whole = Image.new("RGB", (picture.width, math.ceil(picture.height + rows * height)), "#202020")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for i, label in enumerate(labels):
        left, top = i // rows * width, picture.height + i % rows * height
        label.draw(pen, (left, top, left + width, top + height))
    return whole


def draw_photo(path, results, drawing):
    """Draw a photograph, and note where in its predictions. -> whether it can still be read"""
    image = try_read(path, None)
    if isinstance(image, str):
        say(f"Warning: no drawing: {image}")
        return False
    write_whole(drawing, encoded(draw_predictions(image, results), "JPEG"))
    for result in results:
        result["drawing"] = shown(drawing)
    return True


def check_outputs(images, inputs, draw, **files):
    """Refuse outputs that would replace an input, another one, or an interrupted run's parts."""
    for output in filter(None, files.values()):
        check_output(output, *inputs)
        if part_of(output).exists():
            raise InputError(f"{part_of(output)}: has what an interrupted or running call wrote; "
                             "rename or remove it")
    check_two_outputs(**files)
    if draw:  # links may lead to images elsewhere, which must not be overwritten either
        check_pictures_folder(draw, *inputs, *(image.resolve() for image in images))
        check_new(draw)


@contextlib.contextmanager
def keeping_parts(files, images, counts):
    """If the work within does not reach its end, say what is in the parts of its output files.
    counts: how many images are "done", "bad" (cannot be read or drawn) and "without" a face"""
    try:
        yield
    except BaseException:  # Ctrl-C, too
        parts = [part_of(path) for path in files if path and part_of(path).exists()]
        if (done := counts["done"]) and parts:
            rest = [f"; those from {shown(image)} on are missing" for image in images[done:][:1]]
            say(f"Warning: {', '.join(map(shown, parts))}: the faces of the first {done} of "
                f"{len(images)} images{''.join(rest)}")
        for part in () if done else parts:
            with contextlib.suppress(OSError):  # of Windows, where it is open
                part.unlink()
        raise


def write_all(results, images, draw, writers, counts):
    """Give each face's prediction to the writers, and count images; see predict_images."""
    names = output_names(images)
    for i, faces in results:
        if isinstance(faces, str):
            say(f"Warning: skipped {faces}")
            faces, readable = [], False
        else:
            if not faces:
                counts["without"] += 1
                say(f"no face: {shown(images[i])}")
            readable = not draw or draw_photo(images[i], faces, draw / f"{names[i]}.jpg")
        counts["bad"] += not readable
        for write in writers:
            for face in faces:
                write(face)
        counts["done"] = i + 1


@click.command("predict")
@model_options
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--photos", is_flag=True, help="Find the faces in whole photographs and align them "
              "(needs the extra `photos`).")
@like_option
@click.option("--draw", type=PATH, metavar="DIR", help="With --photos: write a copy of each "
              "photograph with its predictions to this new folder; tables name the copy.")
@click.option("--top", default=3, type=COUNT, help="Expressions to name for each face.")
@json_option
@click.option("--csv", "csv_path", type=PATH, help="Write all to this CSV file too, one row "
              "per face; - is standard output. Until all is there it is called FILE.part.")
@click.option("--jsonl", "jsonl_path", type=PATH, help="One JSON line per face, in the same way.")
@device_option
@precision_option
def command(ckpt, tau, compounds, paths, photos, like, draw, top, as_json, csv_path, jsonl_path,
            device, precision):
    """Predict expressions and active AUs of aligned face crops: images, or folders of them.

    Whole photographs need --photos, and should be upright: faces turned by more than 45 degrees
    are often missed; those found, also upside down, are turned upright.

    Images that cannot be read are named and skipped, and the exit code is then 1.
    """
    if not photos and (like or draw):
        raise click.UsageError("--like and --draw go with --photos.")
    piped = [as_json, str(csv_path) == "-", str(jsonl_path) == "-"]
    if sum(piped) > 1:
        raise click.UsageError("standard output takes one of --json, --csv - and --jsonl -.")
    images = list_images(paths)
    check_outputs(images, (ckpt, *paths), draw, csv=csv_path, jsonl=jsonl_path)
    net, state = load_model(ckpt, device, precision, tau, compounds)
    net = folded(net)
    top, size = min(top, len(state["emotions"])), state["config"]["size"]
    items = (items_of_photos(images, size, choose_template(like, state)) if photos else
             itertools.starmap(Item, enumerate(decode(images, size, "predicting"))))
    everything, counts = [], collections.Counter()
    with contextlib.ExitStack() as files:
        if draw:
            files.enter_context(filling(draw))
        writers = open_writers(files, csv_path, jsonl_path, state, top, photos, draw)
        files.enter_context(keeping_parts((csv_path, jsonl_path), images, counts))
        if as_json:
            writers.append(everything.append)
        elif not any(piped):
            writers.append(lambda result: say(prediction_line(result), err=False))
        write_all(predict_images(net, state, items, images, top), images, draw, writers, counts)
    if as_json:
        click.echo(json.dumps(everything))
    if counts["without"]:
        click.echo(f"{counts['without']} of {len(images)} images without a face", err=True)
    if counts["bad"]:
        sys.exit(1)
