"""What `convert` reads as labels.csv is read, refuses before it writes, and passes over only with a word."""

import pytest
from conftest import invoke
from test_convert import LABELLED, done, make, refused

HEADER = "file_name,Label,Split,Person,au01,AU12,text\n"


def test_hugging_faces_columns_are_named_as_labels_csvs_are(tmp_path):
    """In any case, and by the same names and values: a published partition stays."""
    make(tmp_path, {"metadata.csv": HEADER + "0.jpg,joy,Training,ann,1,,x\n1.jpg,calm,TEST,bob,0.0,1,\n2.jpg,joy,dev,cleo,0,0,\n"})
    make(tmp_path, [f"{i}.jpg" for i in range(3)])
    text, said = done(tmp_path, "huggingface", tmp_path)
    assert text == ("image,expression,split,person,AU1,AU12\n0.jpg,joy,train,ann,1,\n1.jpg,calm,test,bob,0.0,1\n"
                    "2.jpg,joy,val,cleo,0,0\n")
    assert said == ""


@pytest.mark.parametrize("name", ["split", "Partition", "SUBSET"])
def test_every_name_of_the_split_is_taken(name, tmp_path):
    make(tmp_path, {"metadata.csv": f"file_name,expression,{name}\n0.jpg,joy,train\n1.jpg,calm,test\n"})
    make(tmp_path, ["0.jpg", "1.jpg"])
    assert done(tmp_path, "huggingface", "--as-published", tmp_path)[0] == \
        "image,expression,split,aus\n0.jpg,joy,train,?\n1.jpg,calm,test,?\n"


def test_a_column_beside_that_of_the_expressions_may_be_called_so(tmp_path):
    """The one that --column names has them."""
    make(tmp_path, {"metadata.csv": "file_name,expression,mood,aus\n0.jpg,1,joy,1+12\n1.jpg,2,calm,\n"})
    make(tmp_path, ["0.jpg", "1.jpg"])
    assert done(tmp_path, "huggingface", "--column", "mood", tmp_path)[0] == "image,expression,aus\n0.jpg,joy,1+12\n1.jpg,calm,\n"


REFUSED = {  # metadata.csv -> what is said
    "a part of another name": (HEADER + "0.jpg,joy,fit,ann,1,0,\n", "2: expected train, val or test, got 'fit'"),
    "no part": (HEADER + "0.jpg,joy,train,ann,1,0,\n1.jpg,joy,,ann,1,0,\n", "3: expected train, val or test, got ''"),
    "an AU's code": (HEADER + "0.jpg,joy,train,ann,9,0,\n",
                     "2: AU 1: '9'; write 0, 1 or nothing for not coded, whatever number stands for unknown in this data set"),
    "two columns of a split": ("file_name,label,split,Subset\n0.jpg,joy,train,train\n",
                               "1: columns split and Subset say the same; keep one of the two"),
    "an image twice": ("file_name,label\n0.jpg,joy\n./0.jpg,joy\n", "3: 0.jpg is the image of row 2, too; keep one of the two"),
    "a person in two parts": (HEADER + "0.jpg,joy,train,ann,1,0,\n1.jpg,joy,test,ann,1,0,\n",
                              "3: person ann is in another part in row 2; keep each person in one part, or remove the column"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hugging_faces_rows_are_refused_as_labels_csvs_are(name, tmp_path):
    metadata, message = REFUSED[name]
    make(tmp_path, {"metadata.csv": metadata})
    make(tmp_path, ["0.jpg", "1.jpg"])
    assert refused("huggingface", tmp_path, tmp_path) == f"{tmp_path}/metadata.csv:{message}"
    assert not (tmp_path / "labels.csv").exists()


def test_a_person_in_the_folders_of_two_parts_is_named_by_both_rows(tmp_path):
    make(tmp_path, {"train/metadata.csv": "file_name,label,person\n0.jpg,joy,ann\n1.jpg,calm,bob\n",
                    "test/metadata.csv": "file_name,label,person\n0.jpg,calm,cleo\n1.jpg,joy,bob\n"})
    make(tmp_path, [f"{part}/{i}.jpg" for part in ("train", "test") for i in (0, 1)])
    assert refused("huggingface", "--as-published", tmp_path, tmp_path) == \
        (f"{tmp_path}/train/metadata.csv:3: person bob is in another part in {tmp_path}/test/metadata.csv:3; keep each person in "
         "one part, or remove the column")
    assert not (tmp_path / "labels.csv").exists()


def test_two_spellings_of_a_class_are_named_by_their_images_before_anything_is_written(tmp_path):
    make(tmp_path, ["Joy/1.jpg", "calm/2.jpg", "joy/3.jpg"])
    assert refused("folders", tmp_path, tmp_path) == \
        f"{tmp_path}/joy/3.jpg: 'joy' is 'Joy' of {tmp_path}/Joy/1.jpg in another spelling; choose one"
    assert not (tmp_path / "labels.csv").exists()


def test_a_labels_csv_that_cannot_be_read_gets_no_aus(tmp_path):
    """It stays as it is, and the row that is named is one of it."""
    bad = LABELLED.replace("b/4.jpg,joy", "b/4.jpg,Joy")
    make(tmp_path, {"labels.csv": bad, "of/1.csv": "face, AU01_c\n0, 1\n"})
    assert refused("openface", tmp_path / "of", tmp_path) == \
        f"{tmp_path}/labels.csv:5: 'Joy' is 'joy' of row 2 in another spelling; choose one"
    assert (tmp_path / "labels.csv").read_text() == bad


def test_images_of_every_suffix_and_no_systems_folders_are_classes(tmp_path):
    make(tmp_path, ["joy/1.jfif", "joy/2.PGM", "calm/1.gif", "calm/2.jp2", "calm/a.txt", "calm/b.heic", "@eaDir/1.jfif/t.jpg",
                    "lost+found/x.jpg", "__MACOSX/joy/1.jpg", "joy/@eaDir/1.jfif/t.jpg", "notes.txt", "#recycle/1.jpg"])
    result = invoke("convert", "folders", tmp_path, tmp_path)
    assert (tmp_path / "labels.csv").read_text() == \
        "image,expression,aus\ncalm/1.gif,calm,?\ncalm/2.jp2,calm,?\njoy/1.jfif,joy,?\njoy/2.PGM,joy,?\n"
    assert result.stderr.splitlines()[:2] == [
        f"{tmp_path}: 1 other file passed over (.txt); save pictures among them as JPEG or PNG",
        f"{tmp_path}/calm: 2 other files passed over (.heic, .txt); save pictures among them as JPEG or PNG"]


def test_openfaces_files_may_end_their_rows_in_commas_and_their_names_in_capitals(tmp_path):
    make(tmp_path, {"labels.csv": LABELLED, "of/1.CSV": "face, AU01_c, AU12_c,\n0, 1.0, 0.0,\n", "of/._1.csv": "\0",
                    "of/2.Csv": "face, AU01_c, AU12_c\n0, 1.0, 1.0,,\n", "of/3.csv": "face, AU01_c, AU12_c,\r\n0, 0, 1\r\n"})
    text, said = done(tmp_path, "openface", tmp_path / "of")
    assert [line.split(",")[3] for line in text.splitlines()[1:]] == ["1", "1+12", "12", "?"]
    assert said == "AUs for 3 of 4 images; the others are not coded\n"


def test_openface_3s_file_is_refused_with_the_reason(tmp_path):
    columns = "timestamp,image_path,face_id,face_detection,landmarks,emotion,gaze_yaw,gaze_pitch,action_units".replace(",", "\t")
    make(tmp_path, {"labels.csv": LABELLED, "1.csv": columns + "\n0\ta/1.jpg\t0\t[1, 2]\t[3]\t1\t0.1\t0.2\t[0.1, 0.9]\n"})
    assert refused("openface", tmp_path / "1.csv", tmp_path) == \
        (f"{tmp_path}/1.csv: OpenFace 3 does not name its eight AUs; run OpenFace 2")


def test_the_line_of_opengraphaus_labels_that_is_wrong_is_named(tmp_path):
    make(tmp_path, {"labels.csv": LABELLED, "train_img_path.txt": "a/1.jpg\na/2.jpg\nb/3.jpg\n", "train_label.txt": "1 0\n0 2\n1 1\n"})
    assert refused("opengraphau", "--aus", "1,2", "--images", tmp_path, tmp_path / "train_img_path.txt", tmp_path) == \
        f"{tmp_path}/train_label.txt:2: expected 0, 1 or -1 (not coded) for AU 2, got '2'; fix this row"
