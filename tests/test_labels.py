"""labels.csv: what is read from it, and each thing that can be wrong with it in one line."""

import dataclasses
import time

import numpy as np
import pytest
from conftest import invoke, resident_mb
from PIL import Image
from reference import AUS, EMOTIONS

import mmlfer
from mmlfer_commands import _labels

PLAIN = """\
image,expression,split,aus
a/0001.jpg,happily surprised,train,1+2+12+25
a/0002.jpg,contempt,val,
b/0001.jpg,"sadly, angry",test,?
b/0003.jpg,contempt,Validation,L12+R45
"""
FORMS = {
    "as it is": PLAIN,
    "byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "Windows": PLAIN.replace("\n", "\r\n"),
    "old Mac": PLAIN.replace("\n", "\r"),
    "semicolons": PLAIN.replace('"sadly, angry"', "sadly; angry").replace(",", ";").replace("sadly; angry", "sadly, angry"),
    "tabs": PLAIN.replace('"sadly, angry"', "sadly; angry").replace(",", "\t").replace("sadly; angry", "sadly, angry"),
    "blanks": PLAIN.replace(",", ", ").replace("sadly,  angry", "sadly, angry"),
    "blank rows": PLAIN.replace("\n", "\n\n ,,,\n"),
    "no last line end": PLAIN.rstrip("\n"),
    "capitals": PLAIN.replace("image,expression,split,aus", "Image,Expression,Split,AUs"),
    "file_name": PLAIN.replace("image,expression,split", "file_name,expression,subset"),
    "filepath": PLAIN.replace("image,expression,split", "filepath,expression,partition"),
    "more columns": "\n".join(f"7,{line},x y" for line in PLAIN.splitlines()).replace("7,image", "id,image").replace("aus,x y", "aus,note"),
    "roundabout": PLAIN.replace("a/0001", "./a//0001").replace("b/0001", "a/../b/0001"),
    "commas in the first row alone": PLAIN.replace("split,aus", "split,aus,,"),
    "Excel's first line": "sep=;\r\n" + PLAIN.replace('"sadly, angry"', "sadly; angry").replace(",", ";").replace("sadly; angry", "sadly, angry"),
    "Excel's first line, quoted": b"\xef\xbb\xbf" + ('"sep=|"\n' + PLAIN.replace('"sadly, angry"', "sadly| angry").replace(",", "|").replace("sadly| angry", "sadly, angry")).encode(),
    "spreadsheet": "\n".join(f"{line},," for line in PLAIN.splitlines()),
}


def read(folder, content):
    (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return _labels.load_faces(folder)


@pytest.mark.parametrize("form", FORMS)
def test_labels_as_people_have_them(tmp_path, form):
    faces = read(tmp_path, FORMS[form])
    assert faces.vocabulary == mmlfer.Vocabulary(("contempt", "happily surprised", "sadly, angry"), (1, 2, 12, 25, 45))
    assert faces.names == ["a/0001.jpg", "a/0002.jpg", "b/0001.jpg", "b/0003.jpg"]
    assert faces.y_emo.tolist() == [1, 0, 2, 0] and faces.split.tolist() == [0, 2, 1, 2]
    assert faces.y_au.tolist() == [[1, 1, 1, 1, 0], [0] * 5, [-1] * 5, [0, 0, 1, 0, 1]]


def test_paths_from_the_root_are_taken_below_the_folder(tmp_path):
    assert read(tmp_path, PLAIN.replace("a/0001", f"{tmp_path}/a/0001")).names[0] == "a/0001.jpg"


WIDE = "image,expression,split,AU12,AU01,au4\n1.jpg,b,train,1,0,\n2.jpg,a,train,0,1.0,1\n3.jpg,a,val,,,\n4.jpg,a,test,0,0,0\n"


def test_aus_in_columns_of_their_own(tmp_path):
    faces = read(tmp_path, WIDE)
    assert faces.vocabulary == mmlfer.Vocabulary(("a", "b"), (1, 4, 12))
    assert faces.y_au.tolist() == [[0, -1, 1], [1, 1, 0], [-1, -1, -1], [0, 0, 0]]


def test_rafces_names_keep_rafces_order(tmp_path):
    def rows(names, aus=None):
        lines = [f"{i}.jpg,{name},train,{aus or AUS[i % 32]}" for i, name in enumerate(names)]
        return read(tmp_path, "image,expression,split,aus\n" + "\n".join(lines)).vocabulary

    assert rows(EMOTIONS[::-1]) == mmlfer.RAFCE == mmlfer.Vocabulary(tuple(EMOTIONS), tuple(AUS))  # all 32, 14 are named
    assert rows(EMOTIONS[::-1], 45).aus == (45,)  # none of RAF-CE's
    some = rows(["sadly angry", "happily sad", "happily surprised"])
    assert some.emotions == ("happily surprised", "sadly angry", "happily sad") and some.aus == (1, 2, 4)
    assert rows(["sadly angry", "happily sad", "calm"]).emotions == ("calm", "happily sad", "sadly angry")


BAD = {  # content, and the line of it that is wrong
    "empty": ("", "labels.csv: empty; it begins with a row like image,expression,split,aus"),
    "header alone": ("image,expression,aus\n", "labels.csv: no row below the first; a row names an image"),
    "no image": (PLAIN.replace("image,", "picture,"), "labels.csv:1: no column image or file_name or filepath, as in image,expression,split,aus"),
    "no expression column": (PLAIN.replace("expression", "emotion"), "labels.csv:1: no column expression, as in image,expression,split,aus"),
    "no AUs": (PLAIN.replace("aus", "units"), "labels.csv:1: no column aus, nor AU1, AU2 ...; add aus, ? for not coded"),
    "two images": (PLAIN.replace("split", "file_name"), "labels.csv:1: columns image and file_name say the same; keep one of the two"),
    "two AU 1": (WIDE.replace("au4", "AU1"), "labels.csv:1: columns AU01 and AU1 say the same; keep one of the two"),
    "both forms": (WIDE.replace("au4", "aus"), "labels.csv:1: AUs in a column aus and in columns of their own; keep one"),
    "AU 3's column": (WIDE.replace("au4", "AU03"), "labels.csv:1: column AU03: none of AU1 to AU46; rename or remove it"),
    "unknown AU": (PLAIN.replace("L12+R45", "12+47"), "labels.csv:5: AU 47 is not one of the AUs of FACS, 1 to 46; nothing: coded and "
                   "none seen, ?: not coded"),
    "AUs as a list": (PLAIN.replace("L12+R45", "12 45"), "labels.csv:5: expected AUs like 4+L12+25 or null, got '12 45' in '12 45'; "
                      "nothing: coded and none seen, ?: not coded"),
    "AUs of -1": (PLAIN.replace("?", "-1"), "labels.csv:4: expected AUs like 4+L12+25 or null, got '-1' in '-1'; nothing: coded and "
                  "none seen, ?: not coded"),
    **{f"cell of {n}": (WIDE.replace(",,,", f",,{n},"), f"labels.csv:4: AU 1: '{n}'; write 0, 1 or nothing for not coded, whatever "
                        "number stands for unknown in this data set") for n in ("-1", "9", "999", "2", "?")},
    "unknown split": (PLAIN.replace(",test,", ",fit,"), "labels.csv:4: expected train, val or test, got 'fit'"),
    "no split": (PLAIN.replace(",test,", ",,"), "labels.csv:4: expected train, val or test, got ''"),
    "no expression": (PLAIN.replace("contempt,val", ",val"), "labels.csv:3: no expression; name it, write ? where nobody did, or remove this row"),
    "expression of two lines": (PLAIN.replace("sadly, angry", "sadly\nangry"), "labels.csv:4: no expression; name it, write ? where nobody did, or remove this row"),
    "after two lines": (PLAIN.replace("a/0001.jpg", '"a/0001\n.jpg"').replace("L12", "x"), None),
    "capitals": (PLAIN.replace("contempt,V", "Contempt,V"), "labels.csv:5: 'Contempt' is 'contempt' of row 3 in another spelling; "
                 "choose one"),
    "blanks": (PLAIN.replace("contempt,val", "happily  surprised,val"), "labels.csv:3: 'happily  surprised' is 'happily surprised' of "
               "row 2 in another spelling; choose one"),
    "dashes": (PLAIN.replace("contempt,val", "Happily-surprised,val"), "labels.csv:3: 'Happily-surprised' is 'happily surprised' of "
               "row 2 in another spelling; choose one"),
    "underscores": (PLAIN.replace("contempt,val", "happily_surprised,val"), "labels.csv:3: 'happily_surprised' is 'happily surprised' "
                    "of row 2 in another spelling; choose one"),
    "dash between digits": (PLAIN.replace("contempt,V", "1-2,V").replace("contempt", "1 2"), "labels.csv:5: '1-2' is '1 2' of row 3 in another "
                            "spelling; choose one"),
    "digit at an end": (PLAIN.replace("contempt,V", "class-1,V").replace("contempt", "class 1"), "labels.csv:5: 'class-1' is 'class 1' of row 3 "
                        "in another spelling; choose one"),
    "below Excel's first line": ("sep=;\n" + PLAIN.replace(",", ";").replace("?", "x").replace("sadly; ", ""), "labels.csv:5: expected AUs like 4+L12+25 or null, got "
                                 "'x' in 'x'; nothing: coded and none seen, ?: not coded"),
    "accents apart": ("image,expression,aus\n1.jpg,g\xeane\xb4,\n2.jpg,ge\u0302ne\xb4,\n", "labels.csv:3: 'ge\u0302ne\xb4' is 'g\xeane\xb4' of "
                      "row 2 in another spelling; choose one"),
    **{f"column {n}": (WIDE.replace("au4", n), f"labels.csv:1: column {n}: none of AU1 to AU46; rename or remove it") for n in ("AU 4", "AU04_c", "au-4", "AU4r")},
    "twice": (PLAIN.replace("b/0003", "b/../a/0001"), "labels.csv:5: a/0001.jpg is the image of row 2, too; keep one of the two"),
    "above": (PLAIN.replace("b/0001", "../b/0001"), "labels.csv:4: '../b/0001.jpg' is no image below the folder; name one, or link it there"),
    "above, later": (PLAIN.replace("b/0001", "b/../../0001"), "labels.csv:4: 'b/../../0001.jpg' is no image below the folder; name one, or link it there"),
    "elsewhere": (PLAIN.replace("b/0001", "/b/0001"), "labels.csv:4: '/b/0001.jpg' is no image below the folder; name one, or link it there"),
    "nowhere": (PLAIN.replace("b/0001.jpg", ""), "labels.csv:4: '' is no image below the folder; name one, or link it there"),
    "the folder": (PLAIN.replace("b/0001.jpg", "b/.."), "labels.csv:4: 'b/..' is no image below the folder; name one, or link it there"),
    "comma": (PLAIN.replace('"', ""), "labels.csv:4: expected 4 fields, as in the first row, got 5 (a field with a comma in it stands "
              "in quotes)"),
    "too few": (PLAIN.replace("contempt,val,", "contempt,val"), "labels.csv:3: expected 4 fields, as in the first row, got 3 (a field "
                "with a comma in it stands in quotes)"),
    "open quote": (PLAIN.replace('angry"', "angry"), "labels.csv:4: not CSV (unexpected end of data); fix this row"),
    "Latin 1": (PLAIN.replace("contempt", "mépris").encode("latin-1"), "labels.csv: not text in UTF-8; save it as CSV in UTF-8"),
    "UTF-16": (PLAIN.encode("utf-16"), "labels.csv: not text in UTF-8; save it as CSV in UTF-8"),
    "person in two parts": ("image,expression,split,person,aus\n1.jpg,a,train,7,\n2.jpg,a,val,8,\n3.jpg,b,test,7,\n",
                            "labels.csv:4: person 7 is in another part in row 2; keep each person in one part, or remove the column"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_one_line(tmp_path, kind):
    content, message = BAD[kind]
    with pytest.raises(mmlfer.InputError) as caught:
        read(tmp_path, content)
    if message:
        assert str(caught.value) == f"{tmp_path}/{message}"
    else:
        assert str(caught.value).startswith(f"{tmp_path}/labels.csv:6: expected AUs like")
    result = invoke("stats", "--data", tmp_path)
    assert result.exit_code == 1 and result.stderr == f"Error: {' '.join(str(caught.value).split())}\n"


@pytest.mark.parametrize("rows, message", [
    ("1.jpg,a,train,1\n2.jpg,a,val,1\n3.jpg,a,test,1\n", ": one expression alone, 'a'; add rows of another"),
    ("1.jpg,a,train,1\n2.jpg,a,val,1\n\n3.jpg,b,test,1\n4.jpg,b,test,\n",
     ":5: 'b' has 2 images, none of them to train on; move some to train, or remove its rows")])
def test_what_nothing_can_be_learnt_from_is_refused_by_train_alone(tmp_path, rows, message):
    (tmp_path / "labels.csv").write_text("image,expression,split,aus\n" + rows)
    result = invoke("train", "--data", tmp_path, "--stats", "train", "--stats-least", 1, "--out", tmp_path / "run")
    assert result.exit_code == 1 and result.stderr == f"Error: {tmp_path}/labels.csv{message}\n"
    assert invoke("stats", "--data", tmp_path).exit_code == 0


def test_parts_that_are_too_small_name_their_column(tmp_path):
    faces = read(tmp_path, "image,expression,split,aus\n1.jpg,a,train,1\n2.jpg,b,train,1\n3.jpg,a,val,1\n4.jpg,a,test,1\n")
    with pytest.raises(mmlfer.InputError) as caught:
        _labels.check_trainable(faces, "here", 2)
    assert str(caught.value) == "here: 1 val images, under 2; see labels.csv (column split), --batch-size"


@pytest.mark.parametrize("one, other", [("-1", "1"), ("12", "1-2"), ("1-2", "1--2x"), ("valence -1", "valence 1"), ("0", "-0"), ("1 2", "12")])
def test_numbers_are_no_spellings_of_each_other(tmp_path, one, other):
    faces = read(tmp_path, f"image,expression,split,aus\n1.jpg,{one},train,1\n2.jpg,{other},train,1\n")
    assert faces.vocabulary.emotions == tuple(sorted((one, other)))


def test_rows_without_a_person_may_lie_in_any_part(tmp_path):
    """Each of them is taken for a person of its own."""
    faces = read(tmp_path, "image,expression,split,person,aus\n1.jpg,a,train,,\n2.jpg,a,val,,\n3.jpg,b,test,7,\n4.jpg,b,test,,\n")
    assert faces.split.tolist() == [0, 2, 1, 1]


def test_a_row_that_is_coded_in_part_counts_among_the_coded(tmp_path):
    faces = read(tmp_path, "image,expression,split,AU1,AU2\n1.jpg,a,train,1,\n2.jpg,a,val,,\n3.jpg,b,test,,0\n4.jpg,b,test,1,1\n")
    assert _labels.describe(faces, "here").splitlines()[-1] == "  1 rows without AUs, 1.00 active AUs per face of 3 that are coded"


def test_a_csv_file_may_have_empty_columns_at_its_end(tmp_path):
    (tmp_path / "a.csv").write_text("image,p,,\n1.jpg,2,,\n2.jpg,3\n3.jpg,4,\n")
    columns, rows = _labels.read_columns(tmp_path / "a.csv", "p")
    assert columns == ["image", "p"] and [row for _, row in rows] == [{"image": f"{i}.jpg", "p": str(i + 1)} for i in (1, 2, 3)]
    for bad, n in (("1.jpg,2,3", 3), ("1.jpg", 1)):
        (tmp_path / "a.csv").write_text(f"image,p\n{bad}\n")
        with pytest.raises(mmlfer.InputError, match=f"a.csv:2: expected 2 fields, as in the first row, got {n}; fix this row"):
            list(_labels.read_columns(tmp_path / "a.csv")[1])


def table_of(n, columns):
    """labels.csv with n rows: 3 expressions in turn, and the values of these columns."""
    rows = [",".join([f"{i:05d}.jpg", "abc"[i % 3], *(str(column(i)) for column in columns.values())]) for i in range(n)]
    return ",".join(["image", "expression", *columns]) + "\n" + "\n".join(rows) + "\n"


def test_a_partition_is_drawn_by_expression_and_said(tmp_path):
    content = table_of(60, {"aus": lambda i: 1 + i % 2})
    (tmp_path / "labels.csv").write_text(content)
    result = invoke("stats", "--data", tmp_path)
    said = f"{tmp_path}/labels.csv: no column split; drawn by expression: 60 % train, 20 % val, 20 % test"
    assert said in result.stderr.splitlines()
    faces = read(tmp_path, content)
    parts = [faces.split[faces.y_emo == k] for k in range(3)]
    assert [np.bincount(part).tolist() for part in parts] == [[12, 4, 4]] * 3  # train, test, val
    assert (read(tmp_path, content).split == faces.split).all() and len({tuple(part) for part in parts}) == 3


def test_a_drawn_partition_keeps_each_person_in_one_part(tmp_path):
    """Each expression still has nearly its shares, although some people have ten images and some none of c."""
    person = lambda i: "" if i % 50 == 0 else f"p{int((i % 97) ** 0.7)}"  # noqa: E731
    faces = read(tmp_path, table_of(600, {"person": person, "aus": lambda i: ""}))
    parts = {}
    for i, part in enumerate(faces.split.tolist()):
        parts.setdefault(person(i) or i, set()).add(part)
    assert all(len(of_one) == 1 for of_one in parts.values()) and len(parts) > 30
    for k in range(3):
        assert np.bincount(faces.split[faces.y_emo == k]) / 200 == pytest.approx([0.6, 0.2, 0.2], abs=0.05)


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    faces = read(tmp_path, table_of(6, {"subject": lambda i: i, "aus": lambda i: 1, "author": lambda i: "", "p_": lambda i: 1}))
    assert f"{tmp_path}/labels.csv: not read: 3 columns, subject, author, p_\n" in capsys.readouterr().err and faces.shares is None


def test_labels_csv_wins_over_rafces_files_and_that_is_said(noise_folder, tmp_path, capsys):
    for name in mmlfer.LABEL_FILES:
        (tmp_path / name).write_bytes((noise_folder / name).read_bytes())
    assert _labels.load_faces(tmp_path).vocabulary == mmlfer.RAFCE and capsys.readouterr().err == ""
    read(tmp_path, PLAIN)
    assert _labels.load_faces(tmp_path).files == ("labels.csv",) * 3
    assert capsys.readouterr().err == f"{tmp_path}: read from labels.csv, not from RAFCE_emolabel.txt\n"


def test_a_label_file_in_place_of_its_folder_is_one_line(tmp_path):
    (tmp_path / "labels.csv").write_text(PLAIN)
    result = invoke("train", "--data", tmp_path / "labels.csv", "--out", tmp_path / "run")
    assert result.stderr == f"Error: {tmp_path}/labels.csv: a file; give the folder that it lies in\n" and result.exit_code == 1


@pytest.mark.parametrize("seed", [0, 1, 4, 7, 44])
def test_every_expression_has_somebody_to_train_on(seed):
    """Three images are easily all of people for test and validation, as with these seeds, but for 1."""
    rng = np.random.default_rng(seed)
    y_emo, people = np.repeat(range(5), [200, 100, 3, 3, 2]), [*rng.integers(0, 40, 308)]
    split = _labels.split_people(y_emo, people, seed)
    assert all(mmlfer.TRAIN in split[y_emo == k] for k in range(5))
    assert all(len({*split[np.array(people) == person]}) == 1 for person in {*people})
    assert np.bincount(split)[mmlfer.TRAIN] < 0.7 * 308


def test_the_person_with_the_fewest_images_is_moved_to_training():
    """b and c have the rare expression; the images of a alone are all that is wanted for training."""
    y_emo = np.array([0] * 60 + [0] * 20 + [1] + [0] * 18 + [1])
    people = ["a"] * 60 + ["b"] * 21 + ["c"] * 19
    split = _labels.split_people(y_emo, people, 0)
    assert (split[:60] == mmlfer.TRAIN).all() and (split[81:] == mmlfer.TRAIN).all() and (split[60:81] != mmlfer.TRAIN).all()


def test_people_with_most_images_are_placed_first():
    """In training, of which most is wanted; three images of one person are too many for a fifth of ten, but fewest."""
    people = ["a"] * 3 + ["b"] * 6 + ["c"]
    split = _labels.split_people(np.zeros(10, int), people, 0)
    assert (split[3:9] == mmlfer.TRAIN).all() and {*split[:3], split[9]} == {mmlfer.TEST, mmlfer.VAL}


def test_a_hundred_thousand_rows_take_seconds_and_little_memory(tmp_path):
    """No more memory than names, labels and row numbers need: the rows themselves are not kept."""
    content = table_of(100_000, {"split": lambda i: ("train", "val", "test")[i % 7 % 3], "note": lambda i: "x" * 1000,
                                 "aus": lambda i: "+".join(str(au) for j, au in enumerate(AUS[:12]) if i >> j & 1)})
    (tmp_path / "labels.csv").write_text(content)
    del content
    before, start = resident_mb(), time.perf_counter()
    faces = _labels.load_faces(tmp_path)
    assert time.perf_counter() - start < 20 and resident_mb() - before < 80
    assert len(faces.names) == 100_000 and faces.y_au.shape == (100_000, 12)
    assert faces.y_au[4094].tolist() == [0] + [1] * 11 and faces.split[6] == mmlfer.TRAIN


def test_images_are_found_by_their_paths(tmp_path):
    """Two images of one stem in two folders; an image that is not there is named."""
    for i, place in enumerate(("a/0001.png", "b/0001.png", "b/0001_aligned.png")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / place)
    places = ["b/0001_aligned.png", "a/0001.png", "b/0001.png"]
    faces = read(tmp_path, "image,expression,aus\n" + "".join(f"{place},e,\n" for place in places))
    assert mmlfer.load_images(faces, tmp_path, 32).images[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert _labels.images_of(tmp_path) == [tmp_path / place for place in places]
    (tmp_path / "a/0001.png").unlink()
    with pytest.raises(mmlfer.InputError) as caught:
        mmlfer.load_images(faces, tmp_path, 32)
    assert str(caught.value) == (f"1 of 3 images cannot be read: a/0001.png is not found below {tmp_path}. Images belong in {tmp_path}, "
                                 "as labels.csv names them; --skip-bad-images goes on without them")


def test_labels_csv_comes_before_rafces_files(noise_folder, tmp_path):
    for path in noise_folder.glob("RAFCE_*.txt"):
        (tmp_path / path.name).write_text(path.read_text())
    assert _labels.load_faces(tmp_path).vocabulary == mmlfer.RAFCE
    assert read(tmp_path, PLAIN).vocabulary.emotions[0] == "contempt"
    assert invoke("stats", "--data", tmp_path, "--out", tmp_path / "labels.csv").exit_code == 1  # an input


def test_labels_in_another_vocabulary(tmp_path):
    """By name and number: AUs that it does not have are dropped, AUs that the rows do not have are not coded."""
    faces = read(tmp_path, PLAIN)
    other = mmlfer.Vocabulary(("sadly, angry", "bored", "contempt", "happily surprised"), (45, 4, 1))
    moved = _labels.recode(faces, other, tmp_path)
    assert [other.emotions[k] for k in moved.y_emo] == [faces.vocabulary.emotions[k] for k in faces.y_emo]
    assert moved.y_au.tolist() == [[0, -1, 1], [0, -1, 0], [-1, -1, -1], [1, -1, 0]]
    assert _labels.recode(faces, faces.vocabulary, tmp_path) is faces
    renamed = dataclasses.replace(faces, vocabulary=mmlfer.Vocabulary(("a", "b", "c"), faces.vocabulary.aus))
    assert len({faces.sha256(), moved.sha256(), renamed.sha256()}) == 3
    with pytest.raises(mmlfer.InputError) as caught:
        _labels.recode(faces, mmlfer.Vocabulary(("contempt", "sadly, angry"), (1,)), tmp_path)
    assert str(caught.value) == (f"{tmp_path}/labels.csv: a/0001.jpg: 'happily surprised' is not among the expressions to tell apart: "
                                 "contempt, sadly, angry; rename it or remove its rows")


def test_further_columns_are_kept_where_they_are_asked_for(tmp_path, capsys):
    """Whatever the capitals; a row without a person is a person of its own; they go with the rows that are chosen."""
    rows = "image,expression,Age,aus,person,note\n1.png,a,30-39,,p,x\n2.png,b,,,,y\n3.png,a,0-9,,,z\n4.png,b,0-9,,p,\n"
    (tmp_path / "labels.csv").write_text(rows)
    asked = _labels.load_faces(tmp_path, keep=("age", "person", "expression", "fold"))
    assert "not read: 1 column, note" in capsys.readouterr().err
    assert {name: list(texts) for name, texts in asked.columns.items() if name != "person"} == {
        "age": ["30-39", "", "0-9", "0-9"], "expression": ["a", "b", "a", "b"]}
    first, second, third, last = asked.columns["person"]
    assert first == last == "p" and len({first, second, third}) == 3
    assert asked.select([3, 1]).columns["age"].tolist() == ["0-9", ""]
    other = _labels.recode(_labels.load_faces(tmp_path, ("age",)), mmlfer.Vocabulary(("b", "a"), ()), tmp_path)
    assert other.columns["age"].tolist() == ["30-39", "", "0-9", "0-9"]
    assert _labels.load_faces(tmp_path).columns == {} and "2 columns, Age, note" in capsys.readouterr().err
