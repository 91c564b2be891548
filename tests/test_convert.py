"""labels.csv from other layouts: each with an example written by hand."""

import os
import re
import shutil

import pytest
from conftest import invoke

import mmlfer
from mmlfer_commands import _formats, _labels, convert


def make(folder, files):
    """Files with this content, {path: text}, or empty, [path]."""
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(files[path] if isinstance(files, dict) else "")


def done(folder, *args):
    """The labels.csv that `convert` writes, and what it prints before the counts."""
    result = invoke("convert", *args, folder)
    assert result.exit_code == 0, result.output
    return (folder / "labels.csv").read_text(encoding="utf-8"), result.stdout.split(f"{folder}: ")[0]


def refused(*args):
    result = invoke("convert", *args)
    assert result.exit_code in (1, 2) and result.stderr.count("Error: ") == 1, result.output
    return result.stderr.split("Error: ")[1].strip()


RAFDB = """\
train_0001.jpg 1
train_0002.jpg 9
test_0001.jpg 11
test_0002.jpg 4
"""
RAFDB_CLASSES = "classes, with their images: 1 happily surprised (1), 4 sadly angry (1), 9 angrily surprised (1), 11 disgustedly surprised (1)\n"
RAFDB_IMAGES = ["Image/aligned/train_0001_aligned.jpg", "Image/original/train_0001.jpg", "Image/aligned/train_0002_aligned.jpg",
                "Image/aligned/test_0001_aligned.jpg", "Image/original/test_0002.jpg"]


def test_rafdb_has_its_classes_parts_and_aligned_images(tmp_path):
    make(tmp_path, {"EmoLabel/list_patition_label.txt": RAFDB})
    make(tmp_path, RAFDB_IMAGES)
    text, said = done(tmp_path, "rafdb", "--as-published", tmp_path)
    assert text == """\
image,expression,split,aus
Image/aligned/train_0001_aligned.jpg,happily surprised,train,?
Image/aligned/train_0002_aligned.jpg,angrily surprised,train,?
Image/aligned/test_0001_aligned.jpg,disgustedly surprised,test,?
Image/original/test_0002.jpg,sadly angry,test,?
"""
    assert said == RAFDB_CLASSES


def test_rafdbs_classes_are_those_of_rafce_but_for_three():
    """The published order is that of RAF-CE without fearfully disgusted, happily fearful and happily sad."""
    left = [name for name in mmlfer.EMOTIONS if name not in ("fearfully disgusted", "happily fearful", "happily sad")]
    assert list(_formats.RAFDB) == left and len(left) == 11


def test_rafdbs_basic_part_is_not_taken_for_the_compound_one(tmp_path):
    make(tmp_path, {"EmoLabel/list_patition_label.txt": "train_0001.jpg 7\ntest_0001.jpg 1\n"})
    make(tmp_path, ["Image/aligned/train_0001_aligned.jpg", "Image/aligned/test_0001_aligned.jpg"])
    assert refused("rafdb", tmp_path, tmp_path) == \
        (f"{tmp_path}: no class above 7, no name with five digits as in the basic part: name the classes, from 1, with "
         "--expressions surprise,fear,disgust,happiness,sadness,anger,neutral")
    text, _ = done(tmp_path, "rafdb", "--as-published", "--expressions", "a,b,c,d,e,f,g", tmp_path)
    assert text.splitlines()[1:] == ["Image/aligned/train_0001_aligned.jpg,g,train,?",
                                     "Image/aligned/test_0001_aligned.jpg,a,test,?"]
    (tmp_path / "labels.csv").unlink()
    make(tmp_path, {"EmoLabel/list_patition_label.txt": "train_0001.jpg 10\ntest_0001.jpg 1\n"})  # 10 and 11 are above 7, too
    assert done(tmp_path, "rafdb", "--as-published", tmp_path)[0].splitlines()[1].endswith("aligned.jpg,angrily disgusted,train,?")


def test_a_folder_of_images_for_each_class(tmp_path):
    make(tmp_path, ["faces/joy/b.png", "faces/joy/a.JPG", "faces/calm, or so/x/1.jpg", "faces/calm, or so/notes.txt",
                    "faces/.cache/1.jpg", "faces/__MACOSX/1.jpg", "faces/joy/._a.JPG", "faces/joy/.thumbs/b.png", "faces/readme.md"])
    text, said = done(tmp_path, "folders", tmp_path / "faces")
    assert text == ('image,expression,aus\n"faces/calm, or so/x/1.jpg","calm, or so",?\nfaces/joy/a.JPG,joy,?\n'
                    "faces/joy/b.png,joy,?\n")
    assert said == ""


def test_folders_of_classes_in_folders_of_parts(tmp_path):
    make(tmp_path, ["Training/joy/1.jpg", "Training/calm/2.jpg", "validation/joy/1.jpg", "test/calm/9.jpg"])
    text, said = done(tmp_path, "folders", tmp_path)
    assert text == ("image,expression,split,aus\nTraining/calm/2.jpg,calm,train,?\nTraining/joy/1.jpg,joy,train,?\n"
                    "test/calm/9.jpg,calm,test,?\nvalidation/joy/1.jpg,joy,val,?\n")
    assert said == ""


def test_hugging_faces_metadata_in_each_parts_folder(tmp_path):
    make(tmp_path, {"train/metadata.csv": 'file_name,text,label\n0.jpg,"a, b",1\nsub/1.jpg,,0\n',
                    "validation/metadata.csv": "file_name,text,label\n0.jpg,,1\n",
                    "test/metadata.csv": "file_name,text,label\n0.jpg,,0\n"})
    make(tmp_path, ["train/0.jpg", "train/sub/1.jpg", "validation/0.jpg", "test/0.jpg"])
    text, _ = done(tmp_path, "huggingface", "--expressions", "calm, joy", tmp_path)
    assert text == ("image,expression,split,aus\ntest/0.jpg,calm,test,?\ntrain/0.jpg,joy,train,?\ntrain/sub/1.jpg,calm,train,?\n"
                    "validation/0.jpg,joy,val,?\n")


def test_hugging_faces_metadata_with_other_columns_in_each_part(tmp_path):
    make(tmp_path, {"train/metadata.csv": "file_name,emotion,AU01,AU12,text\n0.jpg,joy,1,0,x\n",
                    "test/metadata.csv": "file_name,expression,AU12,person\n0.jpg,calm,1,ann\n"})
    make(tmp_path, ["train/0.jpg", "test/0.jpg"])
    text, _ = done(tmp_path, "huggingface", "--as-published", tmp_path)
    assert text == ("image,expression,split,person,AU12,AU1\ntest/0.jpg,calm,test,ann,1,\ntrain/0.jpg,joy,train,,0,1\n")


def test_hugging_faces_metadata_with_people_alone_and_with_aus_in_one_column(tmp_path):
    make(tmp_path, {"a/metadata.csv": "file_name,label,person\n0.jpg,joy,ann\n", "b/metadata.csv": "file_name,label,aus\n0.jpg,joy,1+12\n"})
    make(tmp_path, ["a/0.jpg", "b/0.jpg"])
    assert done(tmp_path / "a", "huggingface", tmp_path / "a")[0] == "image,expression,person,aus\n0.jpg,joy,ann,?\n"
    assert done(tmp_path / "b", "huggingface", tmp_path / "b")[0] == "image,expression,aus\n0.jpg,joy,1+12\n"


def test_the_words_that_name_a_part():
    words = {"train": "train training Train", "val": "val valid validation dev", "test": "test testing TEST", "": "tests anxiety"}
    for part, names in words.items():
        assert {_formats.part_of(name) for name in names.split()} == {part}
    for name, part in (("training_set_annotations.txt", "train"), ("my-dev.csv", "val"), ("train_val_list.txt", ""), ("list.txt", "")):
        assert convert.part_in(name) == part


def test_hugging_faces_metadata_of_the_whole_with_aus_and_people(tmp_path):
    make(tmp_path, {"metadata.csv": "file_name,mood,AU1,AU12,person,split\n"
                                    "train/0.jpg,joy,1,,ann,train\ntrain/1.jpg,calm,0,1,bob,test\ntrain/2.jpg,joy,,,,validation\n"})
    make(tmp_path, ["train/0.jpg", "train/1.jpg", "train/2.jpg"])
    text, _ = done(tmp_path, "huggingface", "--column", "mood", tmp_path)
    assert text == ("image,expression,split,person,AU1,AU12\ntrain/0.jpg,joy,train,ann,1,\ntrain/1.jpg,calm,test,bob,0,1\n"
                    "train/2.jpg,joy,val,,,\n")


ABAW = {"training_set_annotations.txt": """\
image,valence,arousal,expression,aus
v1/00001.jpg,0.1,-0.2,4,0,1,0,1,0,0,1,0,0,0,1,0
v1/00002.jpg,-5,-5,-1,0,0,0,0,0,0,0,0,0,0,0,0
v2/00001.jpg,0.1,-0.2,0,0,0,0,0,0,0,0,0,0,0,0,0
v2/00002.jpg,-5,-5,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1
v3/00001.jpg,0.1,-0.2,7,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1
v4/00001.jpg,0.1,-0.2,4,0,0,0,0,0,0,0,0,0,0,0,1
""", "validation_set_annotations.txt": """\
image,valence,arousal,expression,aus
v9/00001.jpg,0.1,-0.2,1,1,0,0,0,0,0,0,0,0,0,0,0
"""}
ABAW_IMAGES = [f"cropped_aligned/{name}.jpg" for name in ("v1/00001", "v1/00002", "v2/00001", "v3/00001", "v4/00001", "v9/00001")]


def test_abaws_lists_have_unknown_expressions_and_uncoded_rows(tmp_path):
    make(tmp_path, ABAW)
    make(tmp_path, ABAW_IMAGES)
    text, said = done(tmp_path, "abaw", "--as-published", "--images", tmp_path / "cropped_aligned",
                      *[tmp_path / name for name in ABAW])
    assert text == """\
image,expression,split,person,aus
cropped_aligned/v1/00001.jpg,happiness,train,v1,2+6+12+25
cropped_aligned/v1/00002.jpg,?,train,v1,
cropped_aligned/v2/00001.jpg,neutral,train,v2,
cropped_aligned/v3/00001.jpg,other,train,v3,?
cropped_aligned/v4/00001.jpg,happiness,train,v4,26
cropped_aligned/v9/00001.jpg,anger,val,v9,1
"""
    assert said == ("classes, with their images: 0 neutral (1), 1 anger (1), 4 happiness (2), 7 other (1)\n"
                    "left out 1 row whose expression is not known\n")


def test_aus_coded_in_part_have_columns_of_their_own(tmp_path):
    make(tmp_path, {"train.csv": "image,valence,arousal,expression,aus\na/1.jpg,0,0,0,1,-1\na/2.jpg,0,0,1,-1,-1\na/3.jpg,0,0,1,0,1\n"})
    make(tmp_path, ["a/1.jpg", "a/2.jpg", "a/3.jpg"])
    text, _ = done(tmp_path, "abaw", "--aus", "12,4", "--expressions", "calm,joy", tmp_path / "train.csv")
    assert text == "image,expression,person,AU4,AU12\na/1.jpg,calm,a,,1\na/2.jpg,joy,a,,\na/3.jpg,joy,a,1,0\n"


# ---------------------------------------------------------------- parts that are missing


def faces_of(*rows):
    """Faces of (person, expression, part) each."""
    return [_formats.Labelled(f"{i}.jpg", expression, part, {"aus": "?", "person": person})
            for i, (person, expression, part) in enumerate(rows)]


def test_a_published_validation_part_is_tested_where_there_is_no_test_part(tmp_path):
    make(tmp_path, [f"{part}/{name}/{i}.jpg" for part in ("train", "val") for name in ("joy", "calm") for i in range(8)])
    text, said = done(tmp_path, "folders", tmp_path)
    rows = [line.split(",") for line in text.splitlines()[1:]]
    assert {row[2] for row in rows if row[0].startswith("val/")} == {"test"}
    drawn = [row[1] for row in rows if row[2] == "val"]
    assert sorted(drawn) == ["calm"] * 2 + ["joy"] * 2 and sum(row[2] == "train" for row in rows) == 12
    assert said == ("no test part is published: the validation part is tested here\nvalidation: 4 of the training images, drawn "
                    "by expression, seed 0; --as-published leaves the parts as published\n")


def test_the_seed_that_is_given_draws_validation_of_folders_and_of_lists(tmp_path):
    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(40)]
    make(tmp_path, [f"f/{'test' if i < 8 else 'train'}/{name}" for i, name in enumerate(names)])
    make(tmp_path, [f"l/{name}" for name in names])
    make(tmp_path, {"train_img_path.txt": "\n".join(names[8:]), "train_label.txt": "0 1\n" * 32,
                    "test_img_path.txt": "\n".join(names[:8]), "test_label.txt": "1 0\n" * 8})
    lists = ("opengraphau", "--aus", "1,2", "--images", tmp_path / "l", tmp_path / "train_img_path.txt", tmp_path / "test_img_path.txt")
    for out, command in ((tmp_path / "f", ("folders", tmp_path / "f")), (tmp_path / "l", lists)):
        drawn = []
        for seed in (0, 1, 1):
            (out / "labels.csv").unlink(missing_ok=True)
            if out.name == "l":
                make(out, {"labels.csv": "image,expression,aus\n" + "".join(f"{name},{name[0]},?\n" for name in names)})
            text, said = done(out, *command, "--seed", seed)
            assert f"validation: 8 of the training images, drawn by expression, seed {seed};" in said
            drawn.append([line for line in text.splitlines() if ",val," in line])
        assert drawn[0] != drawn[1] == drawn[2] and [len(rows) for rows in drawn] == [8] * 3


def test_validation_is_drawn_by_the_seed_and_the_test_part_stays():
    faces = faces_of(*[("", "ab"[i % 2], "train" if i < 40 else "test") for i in range(60)])
    drawn = [convert.complete(faces, seed)[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for one in drawn:
        held = [face for face in one[:40] if face.split == "val"]
        assert [face.expression for face in held].count("a") == 5 and len(held) == 10
        assert {face.split for face in one[40:]} == {"test"}


def test_a_drawn_validation_part_keeps_people_together():
    rows = [(f"p{i // 5}", "ab"[i % 2], "train") for i in range(100)] + [("q", "a", "test")]
    faces, _ = convert.complete(faces_of(*rows), 0)
    parts = {}
    for face in faces:
        parts.setdefault(face.labels["person"], set()).add(face.split)
    assert all(len(part) == 1 for part in parts.values())
    assert 20 <= sum(face.split == "val" for face in faces) <= 30


def test_training_images_alone_have_no_part_of_their_own(tmp_path):
    """`train` draws all three, and says so."""
    make(tmp_path, [f"train/{name}/{i}.jpg" for name in ("joy", "calm") for i in range(10)])
    text, _ = done(tmp_path, "folders", tmp_path)
    assert text.startswith("image,expression,aus\n")


def test_parts_without_a_training_part_stay(tmp_path):
    """A set to test a checkpoint on."""
    make(tmp_path, [f"test/{name}/1.jpg" for name in ("joy", "calm")])
    assert [line.split(",")[2] for line in done(tmp_path, "folders", tmp_path)[0].splitlines()[1:]] == ["test", "test"]


def test_a_classs_name_may_have_a_parts_name_in_it(tmp_path):
    make(tmp_path, ["test anxiety/1.jpg", "calm/2.jpg"])
    assert done(tmp_path, "folders", tmp_path)[0].endswith("calm/2.jpg,calm,?\ntest anxiety/1.jpg,test anxiety,?\n")


def test_images_in_a_part_and_images_in_none_are_not_mixed(tmp_path):
    make(tmp_path, {"metadata.csv": "file_name,label\na/train/0.jpg,joy\na/1.jpg,calm\n"})
    make(tmp_path, ["a/train/0.jpg", "a/1.jpg"])
    assert refused("huggingface", tmp_path, tmp_path) == \
        f"{tmp_path}/a/1.jpg: is in no part, and other images are; say which for all or none"


# ---------------------------------------------------------------- AUs into a labels.csv that has expressions


LABELLED = "image,expression,split,aus\na/1.jpg,joy,train,?\na/2.jpg,calm,test,?\nb/3.jpg,joy,val,?\nb/4.jpg,joy,train,?\n"


def test_opengraphaus_lists(tmp_path):
    """Both sides count as one AU, seen if it is on either; not seen if the AU is -1 and both sides are 0."""
    make(tmp_path, {"labels.csv": LABELLED.replace(",split", "").replace(",train", "").replace(",test", "").replace(",val", ""),
                    "list/own_train_img_path.txt": "\ufeffa/1.jpg\nb/3.jpg\n\n", "list/own_train_label.txt": "\ufeff1 0 -1 0 0\n0 -1 0 1 0\n",
                    "list/own_test_img_path.txt": "a/2.jpg\r\nb/4.jpg\r\n", "list/own_test_label.txt": "-1 -1 -1 0 -1\r\n0 0.0 0 0 0\r\n"})
    text, said = done(tmp_path, "opengraphau", "--aus", "4,38,12,L12,R12", "--images", tmp_path,
                      "--as-published", *[tmp_path / f"list/own_{part}_img_path.txt" for part in ("train", "test")])
    assert text == ("image,expression,split,AU4,AU12,AU38\na/1.jpg,joy,train,1,0,0\na/2.jpg,calm,test,,,\nb/3.jpg,joy,train,0,1,\n"
                    "b/4.jpg,joy,test,0,0,0\n")
    assert said == "AUs for 4 of 4 images; the others are not coded\n"


def test_opengraphaus_images_lie_in_img_beside_the_lists_folder(tmp_path):
    """The rows of other images stay not coded, and existing parts stay."""
    make(tmp_path, {"labels.csv": LABELLED.replace("a/", "img/a/"), "list/x_val_img_path.txt": "a/1.jpg\na/9.jpg\n",
                    "list/x_val_label.txt": "1 1\n0 0\n"})
    text, said = done(tmp_path, "opengraphau", "--aus", "1,2", tmp_path / "list/x_val_img_path.txt")
    assert text == ("image,expression,split,aus\nimg/a/1.jpg,joy,train,1+2\nimg/a/2.jpg,calm,test,?\nb/3.jpg,joy,val,?\n"
                    "b/4.jpg,joy,train,?\n")
    assert "AUs for 1 of 4 images" in said
    rows = (LABELLED.split("\n")[0], *LABELLED.split("\n")[1:3])
    make(tmp_path, {"labels.csv": "\n".join(rows).replace("a/", "img/a/"), "list/x_val_img_path.txt": "a/1.jpg\na/2.jpg\n"})
    text, _ = done(tmp_path, "opengraphau", "--aus", "1,2", tmp_path / "list/x_val_img_path.txt")  # each image is in a list
    assert [row.split(",")[2] for row in text.splitlines()] == ["split", "train", "test"]


def test_images_in_no_list_leave_all_without_a_part(tmp_path):
    """`train` then draws the parts; the paths may be in a column of another name."""
    make(tmp_path, {"labels.csv": "file_name,expression\na/1.jpg,joy\na/2.jpg,calm\n", "train_img_path.txt": "a/1.jpg\n",
                    "train_label.txt": "1 0\n"})
    text, _ = done(tmp_path, "opengraphau", "--aus", "1,2", "--images", tmp_path, tmp_path / "train_img_path.txt")
    assert text == "file_name,expression,aus\na/1.jpg,joy,1\na/2.jpg,calm,?\n"


def test_a_validation_part_is_drawn_of_the_lists_training_images_too(tmp_path):
    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(16)]
    make(tmp_path, {"labels.csv": "image,expression,aus\n" + "".join(f"{name},{name[0]},?\n" for name in names),
                    "train_img_path.txt": "\n".join(names[:12]), "train_label.txt": "0 1\n" * 12,
                    "test_img_path.txt": "\n".join(names[12:]), "test_label.txt": "1 0\n" * 4})
    text, said = done(tmp_path, "opengraphau", "--aus", "1,2", "--images", tmp_path, tmp_path / "train_img_path.txt",
                      tmp_path / "test_img_path.txt")
    rows = [line.split(",") for line in text.splitlines()]
    assert rows[0] == ["image", "expression", "split", "aus"] and [row[2] for row in rows[13:]] == ["test"] * 4
    held = sorted(row[1] for row in rows if row[2] == "val")
    assert len(held) == 4 and set(held) == {"a", "b"} and "validation: 4 of the training images" in said


OPENFACE = {  # FaceLandmarkImg's files of one image each, and FeatureExtraction's
    "of/1.csv": "face, confidence, gaze_0_x, AU01_r, AU12_r, AU01_c, AU12_c, AU28_c\n0, 0.98, 0.1, 2.10, 0.00, 1.0, 0.0, 1.0\n",
    "of/2.csv": "face, confidence, gaze_0_x, AU01_r, AU12_r, AU01_c, AU12_c, AU28_c\n0, 0.98, 0.1, 0.00, 0.00, 0.0, 0.0, 0.0\n"
                "1, 0.98, 0.1, 2.10, 0.00, 1.0, 1.0, 1.0\n",
    "of/3.csv": "frame, face_id, timestamp, confidence, success, AU01_r, AU01_c, AU12_c, AU28_c\n"
                "1, 0, 0.000, 0.98, 1, 0.5, 0.00, 1.00, 0.00\n1, 1, 0.000, 0.98, 1, 0.5, 1.00, 1.00, 1.00\n",
    "of/4.csv": "frame, face_id, timestamp, confidence, success, AU01_r, AU01_c, AU12_c, AU28_c\n"
                "1, 0, 0.000, 0.03, 0, 0.0, 0.00, 0.00, 0.00\n",
    "of/5.csv": "face, confidence, AU01_c\n"}


def test_openfaces_columns_of_presence_by_the_images_names(tmp_path):
    make(tmp_path, {"labels.csv": LABELLED, **OPENFACE})
    text, said = done(tmp_path, "openface", tmp_path / "of")
    assert text == ("image,expression,split,aus\na/1.jpg,joy,train,1+28\na/2.jpg,calm,test,\nb/3.jpg,joy,val,12\nb/4.jpg,joy,train,?\n")
    assert said == ("AUs for 3 of 4 images; the others are not coded\n1 file in which no face was found\n"
                    "1 file without an image of that name\n")


def test_openfaces_files_of_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    files = {"of/a/1.csv": OPENFACE["of/1.csv"], "of/b/1.csv": OPENFACE["of/2.csv"]}
    make(tmp_path, {"labels.csv": "image,expression,aus\nx/a/1.jpg,joy,?\nx/b/1.jpg,calm,?\n", **files})
    text, _ = done(tmp_path, "openface", tmp_path / "of/a/1.csv", tmp_path / "of/b")
    assert text.splitlines()[1:] == ["x/a/1.jpg,joy,1+28", "x/b/1.jpg,calm,"]
    make(tmp_path, {"labels.csv": "image,expression,aus\nx/a/1.jpg,joy,?\nx/b/1.jpg,calm,?\n", "c/1.csv": files["of/a/1.csv"]})
    assert refused("openface", tmp_path / "c/1.csv", tmp_path) == \
        (f"{tmp_path}/c/1.csv: several images are called 1; write the tool's files to folders that are called as the images' "
         "folders")


# ---------------------------------------------------------------- bad input


def test_labels_csv_lies_above_the_images(tmp_path):
    make(tmp_path, ["faces/joy/1.jpg", "faces/calm/2.jpg"])
    (tmp_path / "out").mkdir()
    assert refused("folders", tmp_path / "faces", tmp_path / "out") == \
        (f"{tmp_path}/out/labels.csv: is not above the images, such as {tmp_path}/faces/calm/2.jpg; write to "
         f"{tmp_path}/faces/labels.csv")
    assert done(tmp_path / "faces", "folders", tmp_path / "faces")[0].splitlines()[1] == "calm/2.jpg,calm,?"


def test_what_is_there_is_not_written_over(tmp_path):
    make(tmp_path, ["joy/1.jpg", "calm/2.jpg"])
    make(tmp_path, {"labels.csv": "mine"})
    assert refused("folders", tmp_path, tmp_path / "labels.csv") == f"{tmp_path}/labels.csv: is there already; move it away first"
    assert (tmp_path / "labels.csv").read_text() == "mine"
    assert refused("folders", tmp_path, tmp_path / "mine.csv") == "OUT is a folder, or labels.csv in it, which train looks for."
    make(tmp_path, {"labels.csv": LABELLED.replace("val,?", "val,1"), "of/1.csv": OPENFACE["of/1.csv"]})
    assert refused("openface", tmp_path / "of", tmp_path) == \
        (f"{tmp_path}/labels.csv:4: is coded already, and the labels of two sources are not mixed; put ? in all rows of the column "
         "aus, in a copy")
    make(tmp_path, {"labels.csv": "image,expression,AU1,au12\na/1.jpg,joy,,\n"})
    assert refused("openface", tmp_path / "of", tmp_path).startswith(f"{tmp_path}/labels.csv:2: is coded already, and the labels of ")


def test_images_that_are_not_there_are_named_or_skipped(tmp_path):
    make(tmp_path, {"EmoLabel/list_patition_label.txt": RAFDB})
    make(tmp_path, RAFDB_IMAGES[:-1])
    assert refused("rafdb", tmp_path, tmp_path) == \
        f"1 of 4 images are not there, {tmp_path}/Image/aligned/test_0002.jpg the first; --skip-missing leaves such rows out"
    text, said = done(tmp_path, "rafdb", "--skip-missing", "--as-published", tmp_path)
    assert text.count("\n") == 4 and said.endswith("\nleft out 1 row whose image is not there\n")
    shutil.rmtree(tmp_path / "Image")
    (tmp_path / "labels.csv").unlink()
    assert refused("rafdb", "--skip-missing", tmp_path, tmp_path).startswith("4 of 4 images are not there, ")


BAD = {  # a format's files -> its arguments and what is said
    "a class that rafdb does not have": (
        {"EmoLabel/list_patition_label.txt": "train_0001.jpg 12\n"}, ["rafdb", "."],
        "EmoLabel/list_patition_label.txt:1: expected a class 1..11, got '12'; fix this row, or name all classes with --expressions"),
    "no list of rafdb": ({}, ["rafdb", "."], "EmoLabel/list_patition_label.txt: not there; give RAF-DB's folder `basic` or `compound`"),
    "rafdb's class 0": (
        {"EmoLabel/list_patition_label.txt": "train_0001.jpg 9\ntrain_0002.jpg 0\n", "Image/train_0001.jpg": ""}, ["rafdb", "."],
        "EmoLabel/list_patition_label.txt:2: expected a class 1..11, got '0'; fix this row, or name all classes with --expressions"),
    "no part in rafdb's name": (
        {"EmoLabel/list_patition_label.txt": "0001.jpg 9\n"}, ["rafdb", "."],
        "EmoLabel/list_patition_label.txt:1: expected train_ or test_ in the name; fix this row"),
    "an image of no class": (
        {"joy/1.jpg": "", "2.jpg": ""}, ["folders", "."], "2.jpg: lies beside the folders of the classes; move it into one"),
    "a class beside parts": (
        {"train/joy/1.jpg": "", "joy/2.jpg": ""}, ["folders", "."],
        "joy: no train, val or test, as others are; move it"),
    "no image at all": ({"joy/notes.txt": ""}, ["folders", "."], "no images found; see `mmlfer convert --help` for the layouts"),
    "no metadata": ({"a.csv": ""}, ["huggingface", "."], ".: no metadata.csv in it or below it; name the data set's folder"),
    "no file_name": (
        {"metadata.csv": "picture,label\n1.jpg,joy\n"}, ["huggingface", "."],
        "metadata.csv:1: no column image or file_name or filepath, as in image,expression,split,aus"),
    "an unknown column of expressions": (
        {"metadata.csv": "file_name,mood\n1.jpg,joy\n"}, ["huggingface", "."],
        "metadata.csv: name the expressions' --column: file_name, mood"),
    "two columns of expressions": (
        {"metadata.csv": "file_name,label,emotion\n1.jpg,0,joy\n"}, ["huggingface", "."],
        "metadata.csv: name the expressions' --column: file_name, label, emotion"),
    "classes by number alone": (
        {"metadata.csv": "file_name,label\n1.jpg,3\n"}, ["huggingface", "."],
        "metadata.csv:2: expression 3: --expressions names the classes, from 0, as in --expressions anger,fear,joy"),
    "more classes than names": (
        {"metadata.csv": "file_name,label\n1.jpg,3\n"}, ["huggingface", ".", "--expressions", "a,b,c"],
        "metadata.csv:2: expected a class 0..2, got '3'; fix this row, or name all classes with --expressions"),
    "a row that is cut off": (
        {"metadata.csv": "file_name,label\n1.jpg\n"}, ["huggingface", "."],
        "metadata.csv:2: expected 2 fields, as in the first row, got 1 (a field with a comma in it stands in quotes)"),
    "another list than abaw's": (
        {"train.txt": "image,label\n1.jpg,3\n"}, ["abaw", "train.txt"],
        "train.txt: expected the header image,valence,arousal,expression,aus"),
    "abaw's AUs in another number": (
        {"train.txt": "image,valence,arousal,expression,aus\na/1.jpg,0,0,1,0,1\n"}, ["abaw", "train.txt"],
        "train.txt:2: 2 AU values, expected 12; fix this row, or see --help for the columns"),
    "abaw's rows cut off": (
        {"train.txt": "image,valence,arousal,expression,aus\na/1.jpg,0\n"}, ["abaw", "train.txt"],
        "train.txt:2: expected a class 0..7, got ''; fix this row, or name all classes with --expressions"),
    "an AU that is neither 0 nor 1 nor -1": (
        {"train.txt": "image,valence,arousal,expression,aus\na/1.jpg,0,0,1,9\n"}, ["abaw", "train.txt", "--aus", "L12"],
        "train.txt:2: expected 0, 1 or -1 (not coded) for AU L12, got '9'; fix this row"),
    "a list that is none of paths": (
        {"labels.csv": LABELLED, "train.txt": "a/1.jpg\n"}, ["opengraphau", "--aus", "1", "train.txt"],
        "train.txt: expected a list ..._img_path.txt, and ..._label.txt beside it"),
    "no labels beside the paths": (
        {"labels.csv": LABELLED, "train_img_path.txt": "a/1.jpg\n"}, ["opengraphau", "--aus", "1", "train_img_path.txt"],
        "train_label.txt: cannot be read (No such file or directory)"),
    "lists of other lengths": (
        {"labels.csv": LABELLED, "train_img_path.txt": "a/1.jpg\n", "train_label.txt": "1\n0\n"},
        ["opengraphau", "--aus", "1", "train_img_path.txt"],
        "train_label.txt: 2 rows for the 1 paths of train_img_path.txt; take the two that belong together"),
    "an image twice in the lists": (
        {"labels.csv": LABELLED, "train_img_path.txt": "a/1.jpg\na/1.jpg\n", "train_label.txt": "1\n0\n"},
        ["opengraphau", "--aus", "1", "train_img_path.txt"], "train_img_path.txt: a/1.jpg has two rows; keep one"),
    "lists of other images": (
        {"labels.csv": LABELLED, "list/train_img_path.txt": "a/1.jpg\n", "list/train_label.txt": "1\n"},
        ["opengraphau", "--aus", "1", "list/train_img_path.txt"],
        "labels.csv: none of its images, such as a/1.jpg, is among those with AUs, such as img/a/1.jpg"),
    "no expressions for the lists": (
        {"train_img_path.txt": "a/1.jpg\n", "train_label.txt": "1\n"}, ["opengraphau", "--aus", "1", "train_img_path.txt"],
        "labels.csv: not there; write it first, as mmlfer convert folders does"),
    "a file that is none of openface's": (
        {"labels.csv": LABELLED, "1.csv": "a,b\n1,2\n"}, ["openface", "1.csv"],
        "1.csv: no columns AU01_c, AU02_c ...: give OpenFace's files of AUs"),
    "openface's frames of a video": (
        {"labels.csv": LABELLED, "1.csv": "frame, face_id, success, AU01_c\n1, 0, 1, 1\n2, 0, 1, 1\n"}, ["openface", "1.csv"],
        "1.csv: 2 frames, and no image's name with them; run the tool on images, so that each has its own file or name"),
    "openface's intensity for its presence": (
        {"labels.csv": LABELLED, "1.csv": "face, AU01_c\n0, 0.7\n"}, ["openface", "1.csv"],
        "1.csv:2: expected 0, 1 or -1 (not coded) for AU 1, got '0.7'; fix this row"),
    "two files for an image": (
        {"labels.csv": LABELLED, "1.csv": OPENFACE["of/1.csv"], "x/1.csv": OPENFACE["of/1.csv"]}, ["openface", "1.csv", "x/1.csv"],
        "x/1.csv: a/1.jpg has the file 1.csv too; give one"),
    "no file for any image": (
        {"labels.csv": LABELLED, "9.csv": OPENFACE["of/1.csv"]}, ["openface", "9.csv"],
        "labels.csv: none of its images, such as a/1.jpg, is among those with AUs"),
    "an unknown AU": ({"labels.csv": LABELLED, "1.csv": ""}, ["opengraphau", "--aus", "1,99", "1.csv"], None),
    "one name for two classes": ({"metadata.csv": ""}, ["huggingface", ".", "--expressions", "a,b,a"],
                                 "Invalid value for '--expressions': expected different names with commas between them"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, tmp_path, monkeypatch):
    files, args, message = BAD[name]
    make(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    said = refused(*args, ".")
    assert "\n" not in said and said == (message or said)
    assert (tmp_path / "labels.csv").exists() == ("labels.csv" in files)
    if "labels.csv" in files:
        assert (tmp_path / "labels.csv").read_text() == files["labels.csv"]


def test_the_help_of_each_format_names_its_options():
    for name, command in convert.command.commands.items():
        text = " ".join(invoke("convert", name, "--help").stdout.split())
        assert re.match(r"(Read|Add) [^.]+\.", command.help) and "OUT" in text, name
        assert all(o.help and o.opts[0] in text for o in command.params if o.param_type_name == "option"), name
    listed = re.findall(r"^  (\w+) +(?:Read|Add) .*\.$", invoke("convert", "--help").stdout, re.M)
    assert listed == ["rafdb", "affectnet", "fer2013", "folders", "huggingface", "disfa", "bp4d", "emotionet", "ckplus", "jaffe",
                      "abaw", "mafw", "opengraphau", "openface", "pyfeat", "libreface"]


@pytest.mark.parametrize("place,shown", [
    (b"joy/\xff.jpg", "joy/?.jpg"), (b"\xe9/1.jpg", "?"), (b"joy/1.jpg /2.jpg", None), (b" joy/1.jpg", " joy"),
    (b"jo\ny/1.jpg", "jo\\ny"), (b"joy/a\nb, \"c\".jpg", None), ("joy/\U0001f468\u200d\U0001f469.jpg".encode(), None)])
def test_names_that_labels_csv_cannot_hold_are_named(tmp_path, place, shown):
    """Names that it can hold are read again as they were."""
    make(tmp_path, ["calm/1.jpg"])
    path = tmp_path / os.fsdecode(place)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes((tmp_path / "calm/1.jpg").read_bytes())
    result = invoke("convert", "folders", tmp_path, tmp_path)
    if shown is None:
        names = _labels.load_faces(tmp_path).names
        assert result.exit_code == 0 and names == ["calm/1.jpg", os.fsdecode(place)]
    else:
        assert result.exit_code == 1 and result.stderr == (
            f"Error: {tmp_path}/labels.csv: not written: the name '{shown}' is not in UTF-8, has spaces at its ends, or has "
            "characters that cannot be printed; rename it\n")
        assert not (tmp_path / "labels.csv").exists()


def test_folders_that_are_linked_are_read(tmp_path):
    """A link that leads back above itself is entered once; one that leads nowhere is an image that is not there."""
    make(tmp_path, ["in/joy/1.jpg", "elsewhere/2.jpg", "in/calm/3.jpg"])
    (tmp_path / "in/joy/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/calm/again").symlink_to(tmp_path / "in/calm")
    text, _ = done(tmp_path / "in", "folders", tmp_path / "in")
    assert text.splitlines()[1:] == ["calm/3.jpg,calm,?", "joy/1.jpg,joy,?", "joy/more/2.jpg,joy,?"]
    (tmp_path / "in/labels.csv").unlink()
    (tmp_path / "in/joy/gone.jpg").symlink_to("nowhere")
    assert refused("folders", tmp_path / "in", tmp_path / "in").startswith("1 of 4 images are not there")
