"""mmlfer video: expressions and AUs of the faces in videos, one row per frame and face."""

import collections
import contextlib
import functools
import itertools
import math
import signal
import sys
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmlfer import PATH, RATE, SHARE, InputError, device_option, precision_option, progress
from mmlfer_commands._alignment import POINTS, align, choose_template
from mmlfer_commands._answers import (
    answer, au_column, check_columns, expression_column, probability_columns, probability_row)
from mmlfer_commands._inputs import ahead
from mmlfer_commands._challenge import HANDED_IN, hand_in, listed_frames
from mmlfer_commands._models import load_model, model_options
from mmlfer_commands._nets import folded
from mmlfer_commands._outputs import Lines, csv_table, output_names, say, shown
from mmlfer_commands._runs import caught_signals, check_installed
from mmlfer_commands._video import AGAIN, Clip, ClipError, Drawing, Tracker, camera_number
from mmlfer_commands.crop import every_option, fps_option, like_option
from mmlfer_commands.predict import Item, predict_crops

BATCH, AHEAD = 8, 4  # faces in a batch of the net; frames that are decoded ahead
DRAWN = 640  # the longer side of a drawn copy, pixels
FACE = ("confidence", "success", "x", "y", "width", "height",
        *(f"{point}_{axis}" for point in POINTS for axis in "xy"))


def columns_of(state, smooth):
    """The columns of a table; those that OpenFace also has are called as there."""
    probabilities = probability_columns(state)
    columns = ["frame", "face_id", "timestamp", *FACE, "expression", "p", *probabilities]
    if smooth:
        columns += ["expression_smooth", "p_smooth", *smooth_columns(state)]
    check_columns(columns)
    return columns


def smooth_columns(state):
    """The columns of the smoothed probabilities: of every expression, then of every AU."""
    names = [expression_column(name) for name in state["emotions"]]
    return [f"{name}_smooth" for name in (*names, *map(au_column, state["aus"]))]


def row_of(item, result):
    """The row of an Item, with its `answer` as result, or None in a frame without a face."""
    row = {"frame": item.number, "timestamp": f"{item.details['time']:.3f}", "success": 0}
    if result:
        face, first = item.details["face"], result["expressions"][0]
        box, points = np.round(face.box, 1).tolist(), np.round(face.points, 1).ravel().tolist()
        row |= {"face_id": item.details["face_id"], **probability_row(result)}
        row |= dict(zip(FACE, (round(face.score, 4), 1, *box, *points)))
        row |= {"expression": first["name"], "p": round(first["p"], 6)}
    return row


def smoothed(frames, seconds, state):
    """Yield the frames, (time, [(row, probabilities)]), each row with its face's mean over
    `seconds` around it. The frames of so many seconds are in memory."""
    near, waiting, end = collections.deque(), collections.deque(), object()
    for frame in itertools.chain(frames, [end]):
        if frame is not end:
            near.append(frame)
            waiting.append(frame)
        while waiting and (frame is end or waiting[0][0] + seconds / 2 < frame[0]):
            now, rows = waiting.popleft()
            while near[0][0] < now - seconds / 2:
                near.popleft()
            around = [pair for time, pairs in near for pair in pairs if time <= now + seconds / 2]
            yield now, [(row | mean_columns(row, around, state), p) for row, p in rows]


def mean_columns(row, around, state):
    """The columns of the mean of a face's probabilities in the (row, probabilities) around it."""
    if not row["success"]:
        return {}
    mean = np.mean([p for other, p in around if other.get("face_id") == row["face_id"]], 0, float)
    first = mean[: len(state["emotions"])].argmax()
    values = zip(smooth_columns(state), np.round(mean, 6).tolist())
    return {"expression_smooth": state["emotions"][first], "p_smooth": round(float(mean[first]), 6),
            **{name: value for name, value in values if not np.isnan(value)}}


font = functools.cache(ImageFont.load_default)  # loaded once for each size


def strip_of(result, width):
    """A strip of this width, of the first expressions on bars of their probabilities' length."""
    line = 15
    picture = Image.new("RGB", (width, line * len(result["expressions"])), "#202020")
    pen = ImageDraw.Draw(picture)
    for top, expression in zip(itertools.count(0, line), result["expressions"]):
        pen.rectangle((0, top + 1, expression["p"] * (width - 1), top + line - 2), fill="#2f6fb5")
        text = f"{expression['name']} {100 * expression['p']:.0f} %"
        pen.text((4, top + 1), text, "#ffffff", font=font(11))
    return picture


def draw_frame(image, faces):
    """A copy of a frame (H, W, 3), DRAWN pixels long, with box, number and strip for each face.
    faces: [(Item, its `answer`)]."""
    zoom = DRAWN / max(image.shape)
    size = [max(2, 2 * round(zoom * n / 2)) for n in image.shape[1::-1]]  # VP9 takes even sides
    canvas = Image.fromarray(image).resize(size, reducing_gap=2)
    pen = ImageDraw.Draw(canvas)
    for item, result in faces:
        left, top, width, height = zoom * item.details["face"].box
        pen.rectangle((left, top, left + width, top + height), outline="#ffd400", width=2)
        pen.text((left + 4, top + 2), str(item.details["face_id"]), "#ffd400", font=font(14))
        strip = strip_of(result, int(max(width, min(150, canvas.width))))
        x = min(max(left, 0), canvas.width - strip.width)
        y = min(max(top + height, 0), canvas.height - strip.height)
        canvas.paste(strip, (round(max(x, 0)), round(max(y, 0))))
    return np.asarray(canvas)


def items_of_frames(frames, tracker, template, size, keep):
    """Yield the Items of each frame's faces, or one without a face; `keep` keeps the image."""
    for frame in frames:
        details = {"time": frame.time, "image": frame.image if keep else None}
        found = tracker.find(frame)
        for number, face in found:
            yield Item(frame.number, align(frame.image, face, template, size),
                       {**details, "face_id": number, "face": face})
        if not found:
            yield Item(frame.number, None, details)


def rows_of_frames(groups, state, drawing, caught=()):
    """Yield (time, [(row, probabilities (K + J,))]) of each frame, a list of Items, and draw it,
    until a signal is caught."""
    for items in groups:
        faces = [(item, answer(state, *item.answer, 3)) for item in items if item.answer]
        if drawing:
            drawing.add(draw_frame(items[0].details["image"], faces), items[0].details["time"])
        rows = [(row_of(item, result), np.array([*result["p_expressions"].values(),
                                                 *(result["p_aus"] or {}).values()], float))
                for item, result in faces]
        yield items[0].details["time"], rows or [(row_of(items[0], None), None)]
        if caught:
            return


# What is done with each clip: what it is predicted with, the command's options, the signals caught.
Job = collections.namedtuple(
    "Job", "net state template out every fps start end search smooth draw caught")


def predict_clip(job, clip, table, drawing):
    """Write the rows of a Clip to a table, and draw it. -> frames, faces, frames without a face
    One thread decodes, one finds and aligns faces, one predicts; this one writes and draws."""
    batch = BATCH if clip.camera is None else 1
    decoded = ahead(clip.frames(job.every, job.fps, job.start, job.end), AHEAD)
    tracker, size = Tracker(job.search), job.state["config"]["size"]
    items = items_of_frames(decoded, tracker, job.template, size, drawing)
    answered = ahead(predict_crops(job.net, items, batch), batch)
    count, without = 0, 0
    with contextlib.closing(decoded), contextlib.closing(answered):  # no thread outlives this
        groups = itertools.groupby(answered, lambda item: item.number)
        rows = rows_of_frames((list(items) for _, items in groups), job.state, drawing, job.caught)
        if job.smooth:
            rows = smoothed(rows, job.smooth, job.state)
        total = clip.count // job.every or None
        for _, faces in progress(rows, shown(clip.name), total, unit=" frames"):
            table.writerows(row for row, _ in faces)
            count += 1
            without += not faces[0][0]["success"]
    if drawing and not job.caught:
        drawing.end = max(drawing.end, clip.time + clip.step)
    return count, tracker.count, without


def run_clip(job, name, stem):
    """Predict one clip, and print what was written. -> whether it could be read to its end"""
    path, drawing = job.out / f"{stem}.csv", None
    with contextlib.ExitStack() as files:
        clip = files.enter_context(contextlib.closing(Clip(name)))
        table = csv_table(Lines(files, path), columns_of(job.state, job.smooth))
        if job.draw:
            drawing = Drawing(job.out / f"{stem}.webm", clip.rate)
            files.callback(drawing.close)
        count, faces, without = predict_clip(job, clip, table, drawing)
    say(f"{shown(name)}: {count} frames, {faces} faces, {without} frames without one: "
        f"{shown(path)}", err=False)
    for remark in (remarks := list(clip.remarks())):
        say(f"Warning: {remark}")
    return not remarks


def run_clips(job, clips, stems):
    """Predict clips, and name those that cannot be read. Ctrl-C at a camera ends that camera alone;
    any other signal the program. -> whether all could be read to their end"""
    good = True
    for clip, stem in zip(clips, stems):
        try:
            good &= run_clip(job, clip, stem)
        except ClipError as error:
            good = False
            say(f"Warning: skipped {error}")
        if camera_number(clip) is not None and {*job.caught} == {signal.SIGINT}:
            job.caught.clear()
        elif job.caught:
            say("stopped")
            sys.exit(128 + job.caught[-1])
    return good


def check_new(out, stems, draw, listed):
    """Refuse outputs that exist already, so that nothing is overwritten."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; name another output")
    kinds = (".csv", ".webm") if draw else (".csv",)
    names = [f"{stem}{kind}" for stem in stems for kind in kinds] + [HANDED_IN] * bool(listed)
    for path in (out / name for name in names):
        if path.exists():
            raise InputError(f"{path}: exists; remove it, or name another --out")


@click.command("video")
@click.argument("clips", nargs=-1, required=True, metavar="CLIP...")
@model_options
@click.option("--out", required=True, type=PATH, help="Folder for the NAME.csv of each clip.")
@every_option
@fps_option
@click.option("--start", default=0.0, type=SHARE, help="Begin at this time, seconds, as the clip "
              "has it.")
@click.option("--end", type=SHARE, help="End before this time, seconds.")
@click.option("--search", default=AGAIN, type=SHARE, metavar="SECONDS", help="Time between "
              "searches of the whole frame for new faces; 0: search every frame.")
@click.option("--smooth", type=RATE, metavar="SECONDS", help="Also write the mean of each face's "
              "probabilities over so many seconds around each frame.")
@click.option("--draw", is_flag=True, help="Write NAME.webm too: the clip without its sound, 640 "
              "pixels long, with each face's three most probable expressions.")
@click.option("--list", "listed", type=PATH, metavar="FILE", help="Also write "
              "OUT/predictions.txt, to hand in to C-EXPR-DB's challenge: an answer for each frame "
              "of the organisers' list. Takes --compounds c-expr where none are named.")
@like_option
@device_option
@precision_option
def command(clips, ckpt, tau, compounds, out, every, fps, start, end, search, smooth, draw,
            listed, like, device, precision):
    """Predict expressions and AUs of the faces in videos, one row per frame and face.

    A CLIP is a video file, or the number of a camera (0, 1, ...), which is read until Ctrl-C or
    --end. Each frame is taken as `predict --photos` takes a photograph (needs the extra `photos`).

    A face keeps its face_id while it is seen, and for half a second when it is not. Only its place
    counts: nobody is recognised, and a person who leaves and returns gets a new number.

    Rows are written as they come. Clips that cannot be read, or not to their end, are named, and
    the exit code is then 1.
    """
    if every and fps:
        raise click.UsageError("--every and --fps: give one of them.")
    if end is not None and end <= start:
        raise click.UsageError("--end is not after --start.")
    if listed and (every or fps or start or end is not None):
        raise click.UsageError("--list needs every frame: no --every, --fps, --start and --end.")
    stems = output_names([Path(clip) if camera_number(clip) is None else Path(f"camera{clip}")
                          for clip in clips])
    check_new(out, stems, draw, listed)
    tables = [out / f"{stem}.csv" for stem in stems]
    if listed:
        listed, compounds = listed_frames(listed, clips, tables), compounds or "c-expr"
    check_installed("video", ("av", "scipy"), "photos")
    net, state = load_model(ckpt, device, precision, tau, compounds)
    with caught_signals() as caught:
        job = Job(folded(net), state, choose_template(like, state), out, every or 1, fps, start,
                  math.inf if end is None else end, search, smooth, draw, caught)
        good = run_clips(job, clips, stems)
    if listed:
        hand_in(*listed, state["emotions"], out)
    if not good:
        sys.exit(1)
