"""What entrants of C-EXPR-DB's challenge hand in: an answer for each frame of a list."""

import collections
import re
from pathlib import Path

import numpy as np

from mmlfer import InputError, plural, write_whole
from mmlfer_commands._inputs import read_list
from mmlfer_commands._labels import read_columns
from mmlfer_commands._outputs import say, shown

LOCATION = re.compile(r"((?:.*/)?([^/]+)/0*([1-9][0-9]*)\.\w+)\s*(,.*)?")  # VIDEO/00001.jpg,
HANDED_IN = "predictions.txt"


def listed_frames(path, clips, tables):
    """The rows of the organisers' list, [(location, video, frame from 1)], and by the videos' names
    the clips' tables, {video: (path, "_left" or "_right" of a clip of two people, else "")}."""
    rows, own = [], dict(zip((Path(clip).stem for clip in clips), tables))
    for number, line in enumerate(read_list(path), 1):
        if match := LOCATION.fullmatch(line):
            rows.append((match[1], match[2], int(match[3])))
        elif line and (rows or not line.startswith("image")):
            raise InputError(f"{path}:{number}: expected VIDEO/00001.jpg, with frames from 1, got "
                             f"{line:.60}; fix this row")
    tables = {name + side: (table, side) for side in ("_left", "_right", "")
              for name, table in own.items()}
    if tables.keys().isdisjoint(video for _, video, _ in rows) or len(own) < len(clips):
        raise InputError(f"{path}: clips must be called as the folders in the list, and each "
                         f"differently; none of {', '.join(own):.80} is, or two are called alike")
    return rows, tables


def answers_of(table, side, emotions):
    """{frame from 0: k} and the last frame of a table of `video`. Of a frame's faces that counts
    which covers most, added up over the clip; on a side, of those beyond the middle between the
    outermost two (the median of it)."""
    columns, rows = read_columns(table)
    what = "expression_smooth" if "expression_smooth" in columns else "expression"
    kept = ("frame", "face_id", "success", "x", "width", "height", what)  # of a hundred
    rows = [{name: row[name] for name in kept} for _, row in rows]
    faces = [row for row in rows if row["success"] == "1"]
    area, middles = collections.Counter(), collections.defaultdict(list)
    for row in faces:
        row["middle"] = float(row["x"]) + float(row["width"]) / 2
        middles[row["frame"]].append(row["middle"])
        area[row["face_id"]] += float(row["width"]) * float(row["height"])
    if edges := [(min(xs) + max(xs)) / 2 for xs in middles.values() if side and len(xs) > 1]:
        edge = np.median(edges)
        faces = [row for row in faces if (row["middle"] < edge) == (side == "_left")]
    faces.sort(key=lambda row: area[row["face_id"]])  # the last one of a frame stays
    answers = {int(row["frame"]): emotions.index(row[what]) for row in faces}
    return answers, max((int(row["frame"]) for row in rows), default=-1)


def hand_in(rows, tables, emotions, out):
    """Write HANDED_IN, and say which answers are not of their own frame, and what is lacking."""
    found = {video: answers_of(*tables[video], emotions) for video in {v for _, v, _ in rows}
             if video in tables and tables[video][0].exists()}
    counted = collections.Counter(k for answers, _ in found.values() for k in answers.values())
    if not counted:
        raise InputError(f"{out}: no face in any of the list's clips; nothing to hand in")
    commonest, lines, notes = max(counted, key=counted.get), [], collections.defaultdict(list)
    for location, video, number in rows:
        (answers, last), near = found.get(video, ({}, -1)), number - 1
        if last < 0:
            notes["are lacking: their clip is not given, or cannot be read"].append(video)
            continue
        if not answers:
            why = f"have the commonest answer, {emotions[commonest]}: no face in their clip"
            notes[why].append(video)
        elif near not in answers:
            why = "the clip ends before" if near > last else "no face in theirs"
            notes[f"have the nearest frame's answer: {why}"].append(video)
            near = min(answers, key=lambda n: (abs(n + 1 - number), n))
        lines.append(f"{location},{answers.get(near, commonest)}\n")
    header = ",".join(["image_location", *(name.title().replace(" ", "_") for name in emotions)])
    write_whole(out / HANDED_IN, f"{header}\n{''.join(lines)}".encode())
    say(f"{shown(out / HANDED_IN)}: {len(lines)} of {plural(len(rows), 'row')}", err=False)
    for why, videos in notes.items():
        say(f"{plural(len(videos), 'row')} {why} ({', '.join(dict.fromkeys(videos)):.80})")
