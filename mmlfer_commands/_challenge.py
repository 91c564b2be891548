"""What entrants of C-EXPR-DB's challenge hand in: an answer for each frame of a list."""

import collections
import re
from pathlib import Path

import numpy as np

from mmlfer import InputError, plural, write_whole
from mmlfer_commands._formats import read_list
from mmlfer_commands._labels import read_columns
from mmlfer_commands._outputs import say, shown

LOCATION = re.compile(r"((?:.*/)?([^/]+)/0*([1-9][0-9]*)\.\w+)\s*(,.*)?")  # VIDEO/00001.jpg,
HANDED_IN = "predictions.txt"


def listed_frames(path, clips, stems):
    """The rows of the organisers' list, [(location, video, frame from 1)], and {video: (stem of its
    clip's table, "left" or "right" where it is one half of a clip of two people)}."""
    own, rows, tables = dict(zip((Path(clip).stem for clip in clips), stems)), [], {}
    for number, line in enumerate(read_list(path), 1):
        match = LOCATION.fullmatch(line)
        if line and not match and (rows or not line.startswith("image")):
            raise InputError(f"{path}:{number}: expected VIDEO/00001.jpg, with frames from 1, got "
                             f"{line:.60}; fix this row")
        rows += [(match[1], match[2], int(match[3]))] if match else []
    for video in dict.fromkeys(video for _, video, _ in rows):
        whole, _, side = video.rpartition("_")
        if video in own or whole in own and side in ("left", "right"):
            tables[video] = (own[video], "") if video in own else (own[whole], side)
    if not tables or len(own) < len(clips):
        raise InputError(f"{path}: clips must be called as the folders in the list, and each "
                         f"differently; none of {', '.join(own):.80} is, or two are called alike")
    return rows, tables


def answers_of(table, emotions, side):
    """{frame from 0: k} and the last frame of a table of `video`. Of a frame's faces that counts
    which covers most, added up over the clip; on a side, of those beyond the middle between the
    outermost two (the median of it)."""
    columns, rows = read_columns(table)
    what = "expression_smooth" if "expression_smooth" in columns else "expression"
    faces = [row for _, row in rows if row["success"] == "1"]
    area, middles = collections.Counter(), collections.defaultdict(list)
    for row in faces:
        row["middle"] = float(row["x"]) + float(row["width"]) / 2
        middles[row["frame"]].append(row["middle"])
        area[row["face_id"]] += float(row["width"]) * float(row["height"])
    if edges := [(min(xs) + max(xs)) / 2 for xs in middles.values() if side and len(xs) > 1]:
        faces = [row for row in faces if (row["middle"] < np.median(edges)) == (side == "left")]
    faces.sort(key=lambda row: area[row["face_id"]])  # the last one of a frame stays
    answers = {int(row["frame"]): emotions.index(row[what]) for row in faces}
    return answers, max((int(row["frame"]) for _, row in rows), default=None)


def hand_in(rows, tables, emotions, out):
    """Write HANDED_IN, and say which answers are not of their own frame, and what is lacking."""
    found = {video: answers_of(out / f"{stem}.csv", emotions, side)
             for video, (stem, side) in tables.items() if (out / f"{stem}.csv").exists()}
    counted = collections.Counter(k for answers, _ in found.values() for k in answers.values())
    if not counted:
        raise InputError(f"{out}: no face in any of the list's clips; nothing to hand in")
    (commonest, _), *_ = counted.most_common(1)
    lines, notes = [], collections.defaultdict(list)
    for location, video, number in rows:
        answers, last = found.get(video, ({}, None))
        near, why = number - 1, "" if answers else f"the commonest, {emotions[commonest]}: no face"
        if last is None:
            notes["are lacking: their clip is not given, or cannot be read"].append(video)
            continue
        if answers and near not in answers:
            why = "the nearest frame's: " + ("the clip ends before" if near > last else "no face")
            near = min(answers, key=lambda n: (abs(n + 1 - number), n))
        if why:
            notes[f"have as their answer {why}"].append(video)
        lines.append(f"{location},{answers.get(near, commonest)}\n")
    header = ",".join(["image_location", *(name.title().replace(" ", "_") for name in emotions)])
    write_whole(out / HANDED_IN, f"{header}\n{''.join(lines)}".encode())
    say(f"{shown(out / HANDED_IN)}: {len(lines)} of {plural(len(rows), 'row')}", err=False)
    for what, videos in notes.items():
        say(f"{plural(len(videos), 'row')} {what} ({', '.join(dict.fromkeys(videos)):.80})")
