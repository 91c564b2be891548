"""The layouts in which the field's sets come, from their public descriptions: small files, and their labels worked out by hand."""

import numpy as np
import pytest
from conftest import invoke
from PIL import Image
from test_convert import LABELLED, make, refused

import mmlfer
from mmlfer_commands import _formats, _labels


def written(folder, *args):
    """The rows of the labels.csv that `convert` writes, and the lines that it prints: it can be read as it is."""
    result = invoke("convert", *args, folder)
    assert result.exit_code == 0, result.output
    faces, rows = _labels.load_faces(folder), (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    assert len(faces.names) == len(rows) - 1
    return rows, result.stdout.splitlines()


ATTRIBUTES = "38.1 40.2\n71 39\n50 60\n41 74\n66 73\n{}\n{}\n{}\n"  # five landmarks, gender, race, age


def test_rafdbs_basic_part_with_attributes(tmp_path):
    make(tmp_path, {"EmoLabel/list_patition_label.txt": "train_00001.jpg 5\r\ntrain_00002.jpg 7\r\ntest_0001.jpg 1\r\ntest_0002.jpg 6",
                    "Annotation/manual/train_00001_manu_attri.txt": ATTRIBUTES.format(1, 0, 4),
                    "Annotation/manual/train_00002_manu_attri.txt": ATTRIBUTES.format(0, 2, 0),
                    "Annotation/manual/test_0001_manu_attri.txt": ATTRIBUTES.format(2, 1, 2).strip()})
    make(tmp_path, [f"Image/aligned/{name}_aligned.jpg" for name in ("train_00001", "train_00002", "test_0001", "test_0002")])
    rows, said = written(tmp_path, "rafdb", "--as-published", tmp_path)
    assert rows == ["image,expression,split,aus,gender,race,age",
                    "Image/aligned/train_00001_aligned.jpg,sadness,train,?,female,Caucasian,70+",
                    "Image/aligned/train_00002_aligned.jpg,neutral,train,?,male,Asian,0-3",
                    "Image/aligned/test_0001_aligned.jpg,surprise,test,?,unsure,African-American,20-39",
                    "Image/aligned/test_0002_aligned.jpg,anger,test,?,,,"]
    assert said[0] == "classes, with their images: 1 surprise (1), 5 sadness (1), 6 anger (1), 7 neutral (1)"


def test_rafdbs_copy_at_kaggle(tmp_path):
    """No validation part is published: a quarter of the training images, by expression."""
    make(tmp_path, {"train_labels.csv": "image,label\n" + "".join(f"train_{i:05d}_aligned.jpg,{4 - i % 2}\n" for i in range(8)),
                    "test_labels.csv": "image,label\ntest_0001_aligned.jpg,2\n"})
    make(tmp_path, [f"DATASET/train/{4 - i % 2}/train_{i:05d}_aligned.jpg" for i in range(8)])
    make(tmp_path, ["DATASET/test/2/test_0001_aligned.jpg"])
    rows, said = written(tmp_path, "rafdb", tmp_path)
    assert rows[1].startswith("DATASET/train/4/train_00000_aligned.jpg,happiness,")
    assert rows[2].startswith("DATASET/train/3/train_00001_aligned.jpg,disgust,")
    assert rows[9] == "DATASET/test/2/test_0001_aligned.jpg,fear,test,?"
    assert sorted(row.split(",")[2] for row in rows[1:]) == ["test"] + ["train"] * 6 + ["val"] * 2
    assert said[0] == "classes, with their images: 2 fear (1), 3 disgust (4), 4 happiness (4)"


def test_affectnets_arrays_of_one_text_or_number_each(tmp_path):
    """The published validation part is tested, as everybody does."""
    make(tmp_path, [f"train_set/images/{i}.jpg" for i in (0, 3, 12, 5)] + ["val_set/images/1.jpg", "train_set/annotations/x"])
    (tmp_path / "val_set/annotations").mkdir()
    for name, value in (("train_set/annotations/0", "7"), ("train_set/annotations/3", np.array(2.0)), ("train_set/annotations/12", np.array(0)),
                        ("train_set/annotations/5", "8"), ("val_set/annotations/1", "1")):
        np.save(tmp_path / f"{name}_exp.npy", value)
        np.save(tmp_path / f"{name}_val.npy", "0.3")
    rows, said = written(tmp_path, "affectnet", "--as-published", tmp_path)
    assert sorted(rows) == ["image,expression,split,aus", "train_set/images/0.jpg,contempt,train,?", "train_set/images/12.jpg,neutral,train,?",
                            "train_set/images/3.jpg,sadness,train,?", "val_set/images/1.jpg,happiness,val,?"]
    assert said[:2] == ["classes, with their images: 0 neutral (1), 1 happiness (1), 2 sadness (1), 7 contempt (1), 8 left out (1)",
                        "left out 1 row whose expression is not known"]
    (tmp_path / "labels.csv").unlink()
    assert written(tmp_path, "affectnet", tmp_path)[0][-1] == "val_set/images/1.jpg,happiness,test,?"


POINTS = ";".join(str(i) for i in range(136))  # 68 landmarks: more semicolons than commas
AFFECTNET = {"training.csv": "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
                             f"689/a.JPG,10,10,20,20,{POINTS},6,0.1,0.2\n689/b.jpg,10,10,20,20,{POINTS},10,-2,-2\n"
                             f"12/a.JPG,50,10,20,20,{POINTS},4,0.1,0.2\n",
             "validation.csv": f"736/c.jpg,0,0,9,9,{POINTS},3,0,0\n"}


def test_affectnets_older_lists_want_faces_that_are_cut_out(tmp_path):
    """The validation list has no header; of several faces in a photograph it is the one in the row's box, nearest to its middle."""
    make(tmp_path, AFFECTNET)
    assert refused("affectnet", tmp_path, tmp_path) == \
        (f"{tmp_path}: lists of whole photographs (or no AffectNet); cut out the faces first, mmlfer crop PHOTOS --out CROPS, and "
         "add --images CROPS")
    make(tmp_path, {"crops/faces.csv": "image,face,file,score,left,top,width,height\n"
                                       "photos/689/a.JPG,0,aligned/a_0.png,0.9,0,0,22,22\n"
                                       "photos/689/a.JPG,1,aligned/a_1.png,0.9,11,11,20,20\n"
                                       "/x/photos/12/a.JPG,0,aligned/a-2_0.png,0.9,0,10,20,20\n"
                                       "/x/photos/12/a.JPG,1,aligned/a-2_1.png,0.9,51,11,22,20\n"
                                       "photos/736/c.jpg,0,aligned/c_0.png,0.9,40,40,9,9\n"})
    make(tmp_path, [f"crops/aligned/{name}.png" for name in ("a_0", "a_1", "a-2_0", "a-2_1", "c_0")])
    assert refused("affectnet", "--images", tmp_path / "crops", tmp_path, tmp_path) == \
        f"1 of 3 images are not there, {tmp_path}/crops/736/c.jpg the first; --skip-missing leaves such rows out"
    rows, _ = written(tmp_path, "affectnet", "--images", tmp_path / "crops", "--skip-missing", "--as-published", tmp_path)
    assert rows[1:] == ["crops/aligned/a_1.png,anger,train,?", "crops/aligned/a-2_1.png,fear,train,?"]
    for middle, file in (((15, 15), "f.png"), ((15, 31), "a.jpg"), ((15, 9), "a.jpg"), ((31, 15), "a.jpg"), ((9, 15), "a.jpg")):
        found = _formats.nearest({"p/a.jpg": [("f.png", middle)]}, ["p/a.jpg", "10", "10", "20", "20"], tmp_path)
        assert found.name == file, middle


def test_affectnets_older_lists_with_aligned_faces_under_the_same_names(tmp_path):
    make(tmp_path, AFFECTNET)
    make(tmp_path, ["mine/689/a.JPG", "mine/12/a.JPG", "mine/736/c.jpg"])
    rows, _ = written(tmp_path, "affectnet", "--images", tmp_path / "mine", "--as-published", tmp_path)
    assert rows[1:] == ["mine/689/a.JPG,anger,train,?", "mine/12/a.JPG,fear,train,?", "mine/736/c.jpg,surprise,val,?"]


def pixels(value):
    return " ".join([str(value)] * 47 + ["7"] + ["0"] * (48 * 47))


FER = f"emotion,pixels,Usage\n3,{pixels(10)},Training\n0,{pixels(20)},PublicTest\n6,{pixels(30)},PrivateTest\n2,{pixels(40)},Training\n"
VOTES = ("Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
         "Training,fer0000000.png,1,7,0,0,0,0,0,0,2,0\nPublicTest,fer0000001.png,0,0,4,0,4,0,1,0,1,0\n"
         "PrivateTest,fer0000002.png,4,0,0,2,0,0,0,0,4,1\nTraining,,0,9,0,0,0,0,0,0,0,1\n")


def test_fer2013s_pixels_become_pictures(tmp_path):
    make(tmp_path, {"fer2013.csv": FER})
    rows, said = written(tmp_path, "fer2013", tmp_path / "fer2013.csv")
    assert rows == ["image,expression,split,aus", "fer2013/fer0000000.png,happiness,train,?", "fer2013/fer0000001.png,anger,val,?",
                    "fer2013/fer0000002.png,neutral,test,?", "fer2013/fer0000003.png,fear,train,?"]
    assert said[0] == "classes, with their images: 0 anger (1), 2 fear (1), 3 happiness (1), 6 neutral (1)"
    image = mmlfer.read_image(tmp_path / "fer2013/fer0000001.png")
    assert image.shape == (48, 48, 3) and (image[0, :47] == 20).all() and (image[0, 47] == 7).all() and not image[1:].any()
    assert Image.open(tmp_path / "fer2013/fer0000001.png").mode == "L"


def test_ferplus_votes_stand_in_columns_and_name_the_expression(tmp_path):
    """The columns of the ICML file have blanks before their names, in another order. Most votes name the expression, ? is a tie;
    rows that as many or more took for unknown, or that have no name, are left out, and their pictures are not written."""
    lines = [line.split(",") for line in FER.splitlines()]
    make(tmp_path, {"icml.csv": "".join(f"{emotion}, {usage}, {values}\n" for emotion, values, usage in lines), "votes.csv": VOTES})
    rows, said = written(tmp_path, "fer2013", tmp_path / "icml.csv", "--votes", tmp_path / "votes.csv", "--as-published")
    assert rows == ["image,expression,split,aus,p_neutral,p_happiness,p_surprise,p_sadness,p_anger,p_disgust,p_fear,p_contempt",
                    "fer2013/fer0000000.png,happiness,train,?,1,7,0,0,0,0,0,0", "fer2013/fer0000001.png,?,val,?,0,0,4,0,4,0,1,0"]
    assert said[0] == "left out 2 rows whose expression is not known"
    assert sorted(path.name for path in (tmp_path / "fer2013").iterdir() if path.suffix) == ["fer0000000.png", "fer0000001.png"]


def test_ckplus_has_the_last_frames_and_a_neutral_first_one(tmp_path):
    make(tmp_path, {"Emotion/S005/001/S005_001_00000005_emotion.txt": "   3.0000000e+00\n",
                    "FACS/S005/001/S005_001_00000005_facs.txt": "   9.0000000e+00   4.0000000e+00\n   1.7000000e+01   0.0000000e+00\n"
                                                                "   6.4000000e+01   0.0000000e+00\n   2.5000000e+01   1.0000000e+00\n",
                    "FACS/S010/002/S010_002_00000002_facs.txt": "\n", "Emotion/S011/001/S011_001_00000002_emotion.txt": "1\n",
                    "FACS/S011/001/S011_001_00000002_facs.txt": "4 5\n"})
    names = [f"cohn-kanade-images/S005/001/S005_001_0000000{i}.png" for i in range(1, 6)]
    make(tmp_path, [*names, "cohn-kanade-images/S010/002/S010_002_00000001.png", "cohn-kanade-images/S010/002/S010_002_00000002.png",
                      "cohn-kanade-images/S011/001/S011_001_00000001.png", "cohn-kanade-images/S011/001/S011_001_00000002.png"])
    rows, said = written(tmp_path, "ckplus", "--frames", 2, tmp_path)
    last = ",disgust,9+17+25,S005"
    assert rows == ["image,expression,aus,person", names[3] + last, names[4] + last, names[0] + ",neutral,?,S005",
                    "cohn-kanade-images/S010/002/S010_002_00000001.png,?,,S010", "cohn-kanade-images/S010/002/S010_002_00000002.png,?,,S010",
                    "cohn-kanade-images/S011/001/S011_001_00000001.png,anger,4,S011", "cohn-kanade-images/S011/001/S011_001_00000002.png,anger,4,S011"]
    assert said[0] == "classes, with their images: 0 neutral (1), 1 anger (2), 3 disgust (2)"
    (tmp_path / "labels.csv").unlink()
    rows, _ = written(tmp_path, "ckplus", "--frames", 1, "--present-from", 2, tmp_path)
    assert rows[1] == names[4] + ",disgust,9+17,S005"


def test_jaffes_names(tmp_path):
    make(tmp_path, ["KA.AN1.39.tiff", "KM.HA12.4.tiff", "UY.NE2.139.tiff", "KA.SU3.38.tiff"])
    rows, said = written(tmp_path, "jaffe", tmp_path)
    assert rows == ["image,expression,aus,person", "KA.AN1.39.tiff,anger,?,KA", "KA.SU3.38.tiff,surprise,?,KA",
                    "KM.HA12.4.tiff,happiness,?,KM", "UY.NE2.139.tiff,neutral,?,UY"]
    assert said[0] == "classes, with their images: AN anger (1), HA happiness (1), NE neutral (1), SU surprise (1)"


def test_disfas_intensities_are_present_from_two(tmp_path):
    """AU 4 of frame 3 is 1: present only from 1. The frames' names have any zeros."""
    make(tmp_path, {"ActionUnit_Labels/SN001/SN001_au1.txt": "1,0\n2,2\n3,5\n", "ActionUnit_Labels/SN001/SN001_au4.txt": "1,0\n2,0\n3,1\n",
                    "ActionUnit_Labels/SN016/SN016_au1.txt": "1,3\n", "ActionUnit_Labels/SN016/SN016_au4.txt": "1,4\n"})
    make(tmp_path, ["frames/SN001/1.png", "frames/SN001/0002.png", "frames/SN001/SN001_00003.png", "frames/SN016/00001.jpg"])
    args = ("disfa", "--images", tmp_path / "frames", tmp_path)
    assert written(tmp_path, *args)[0] == [
        "image,expression,person,aus", "frames/SN001/1.png,?,SN001,", "frames/SN001/0002.png,?,SN001,1", "frames/SN001/SN001_00003.png,?,SN001,1",
        "frames/SN016/00001.jpg,?,SN016,1+4"]
    (tmp_path / "labels.csv").unlink()
    assert written(tmp_path, *args, "--present-from", 1)[0][3] == "frames/SN001/SN001_00003.png,?,SN001,1+4"


def test_bp4ds_nines_are_not_coded(tmp_path):
    """AU 7 is coded nowhere, and gets no column."""
    make(tmp_path, {"AU_OCC/F001_T1.csv": "0,1,7,12\n2440,0,9,1\n2441,9,9,0\n", "AU_OCC/M002_T8.csv": "0,1,7,12\n5,1,9,1\n"})
    make(tmp_path, ["F001/T1/2440.jpg", "F001/T1/02441.jpg", "M002/T8/0005.jpg"])
    rows, _ = written(tmp_path, "bp4d", "--images", tmp_path, tmp_path / "AU_OCC")
    assert rows == ["image,expression,person,AU1,AU12", "F001/T1/2440.jpg,?,F001,0,1", "F001/T1/02441.jpg,?,F001,,0",
                    "M002/T8/0005.jpg,?,M002,1,1"]


def test_bp4ds_intensities(tmp_path):
    make(tmp_path, {"AU_INT/F001_T1.csv": ",6,10\n1,2,0\n2,5,3\n3,9,9\n"})
    make(tmp_path, ["F001/T1/1.jpg", "F001/T1/2.jpg", "F001/T1/3.jpg"])
    rows, said = written(tmp_path, "bp4d", "--images", tmp_path, "--present-from", 3, tmp_path / "AU_INT")
    assert rows == ["image,expression,person,aus", "F001/T1/1.jpg,?,F001,", "F001/T1/2.jpg,?,F001,6+10"]
    assert said[0] == "left out 1 row whose expression is not known"


def test_emotionets_lines_of_sixty_aus(tmp_path):
    """AU 51, of the head, is left out; a header is passed over."""
    def line(name, **seen):
        return "\t".join(["http://x.org/a,b.jpg", name, *[str(seen.get(f"au{au}", 0 if au in (1, 12, 51) else 999)) for au in range(1, 61)]])
    make(tmp_path, {"dataFile_0001.txt": "\t".join(["URL", "Orig. File", *[f" AU {au}" for au in range(1, 61)]]) + "\n"
                                         + line("N_1.jpg", au1=1, au51=1) + "\n" + line("N_2.jpg", au12=1, au1=999) + "\n",
                    "dataFile_0002.txt": line("sub/N_3.jpg") + "\n"})
    make(tmp_path, ["images/N_1.jpg", "images/N_2.jpg", "images/N_3.jpg"])
    rows, _ = written(tmp_path, "emotionet", "--images", tmp_path / "images", tmp_path / "dataFile_0001.txt", tmp_path / "dataFile_0002.txt")
    assert rows == ["image,expression,AU1,AU12", "images/N_1.jpg,?,1,0", "images/N_2.jpg,?,,1", "images/N_3.jpg,?,0,0"]


AFFWILD = {"EXPR/Train_Set/v1.txt": "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n4\n-1\n7\n",
           "EXPR/Validation_Set/v2_left.txt": "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n2\n",
           "AU/Train_Set/v1.txt": "AU1,AU2,AU26\n1,0,0\n0,1,1\n-1,-1,-1\n-1,-1,-1\n"}


def test_affwild2s_text_files_are_put_together_frame_by_frame(tmp_path):
    """Frame 4 has neither expression nor AUs."""
    make(tmp_path, AFFWILD)
    make(tmp_path, [f"cropped/{name}.jpg" for name in ("v1/00001", "v1/00002", "v1/00003", "v1/00004", "v2_left/00001")])
    rows, said = written(tmp_path, "abaw", "--images", tmp_path / "cropped", "--as-published", tmp_path / "EXPR", tmp_path / "AU")
    assert rows == ["image,expression,split,person,aus", "cropped/v1/00001.jpg,happiness,train,v1,1", "cropped/v1/00002.jpg,?,train,v1,2+26",
                    "cropped/v1/00003.jpg,other,train,v1,?", "cropped/v2_left/00001.jpg,disgust,val,v2_left,?"]
    assert said[:2] == ["classes, with their images: 2 disgust (1), 4 happiness (1), 7 other (1)", "left out 1 row whose expression is not known"]


def test_mafws_lists_have_five_folds(tmp_path):
    """Clip 3 is tested in fold 2, and trained on in fold 1; a clip's frames stay together."""
    clips = {1: ("00001", "anger"), 2: ("00003", "anger_disgust"), 3: ("00002", "fear"), 4: ("00004", "surprise"), 5: ("00005", "fear")}
    for k in clips:
        for part, rows in (("train", [c for i, c in clips.items() if i != k]), ("test", [clips[k]])):
            make(tmp_path, {f"no_caption/set_{k}/{part}.txt": "".join(f"{clip}.mp4 {name}\r\n" for clip, name in rows)})
    make(tmp_path, [f"crops/{clip}/{i:05d}.jpg" for clip, _ in clips.values() for i in (1, 9)])
    args = ("mafw", "--images", tmp_path / "crops", "--as-published", tmp_path / "no_caption")
    rows, _ = written(tmp_path, *args)
    assert rows[:3] == ["image,expression,split,aus,person,fold", "crops/00003/00001.jpg,anger_disgust,train,?,00003,2",
                        "crops/00003/00009.jpg,anger_disgust,train,?,00003,2"]
    assert len(rows) == 11 and rows[-2:] == ["crops/00001/00001.jpg,anger,test,?,00001,1", "crops/00001/00009.jpg,anger,test,?,00001,1"]
    (tmp_path / "labels.csv").unlink()
    rows, _ = written(tmp_path, *args, "--fold", 2)
    assert [row for row in rows if ",test," in row] == ["crops/00003/00001.jpg,anger_disgust,test,?,00003,2",
                                                       "crops/00003/00009.jpg,anger_disgust,test,?,00003,2"]


def test_openfaces_windows_files_pyfeats_and_librefaces(tmp_path):
    """py-feat names the images in a column, with a row for each face (the first is taken) and none of numbers where it found none."""
    files = {"w.csv": "face, confidence, AU01_c, AU12_c\r\n0, 0.98, 1.0, 0.0\r\n",
             "p/fex.csv": "FaceRectX,FaceScore,AU01,AU12,AU43,anger,input,frame\n1,0.9,0.2,0.51,0.5,0.1,x/1.jpg,0\n"
                          "9,0.8,0.9,0.1,0.1,0.1,x/1.jpg,0\n3,0.9,0.7,0.1,0,0.1,x/2.jpg,1\n,,,,,,x/3.jpg,2\n1,0.9,1,1,1,0,y/99.jpg,3\n",
             "p/labels.csv": "image,expression,aus\n", "l/1.csv": "frame_idx,frame_time_in_ms,facial_expression,au_1,au_12,au_1_intensity,au_26_intensity\n0,0.0,Neutral,0,1,1.2,3.3\n"}
    make(tmp_path, files)
    found = {}
    for tool, place in (("openface", "1.csv"), ("pyfeat", "p"), ("libreface", "l")):
        make(tmp_path, {"labels.csv": LABELLED, "1.csv": files["w.csv"]})
        rows, said = written(tmp_path, tool, tmp_path / place)
        found[tool] = [row.split(",")[3] for row in rows[1:]], said[:3]
    assert found["openface"][0] == ["1", "?", "?", "?"] and found["libreface"][0] == ["12", "?", "?", "?"]
    assert found["pyfeat"][0] == ["12+43", "1", "?", "?"]
    assert found["pyfeat"][1] == ["AUs for 2 of 4 images; the others are not coded", "1 file in which no face was found",
                                  "1 file without an image of that name"]


BAD = {  # a layout's files -> its arguments and the one line that is said
    "a class that the basic part does not have": (
        {"EmoLabel/list_patition_label.txt": "train_00001.jpg 0\n"}, ["rafdb", "."],
        "EmoLabel/list_patition_label.txt:1: expected a class 1..7, got '0'; fix this row, or name all classes with --expressions"),
    "an attribute's code": (
        {"EmoLabel/list_patition_label.txt": "train_00001.jpg 1\n", "Annotation/manual/train_00001_manu_attri.txt": ATTRIBUTES.format(1, 3, 0)},
        ["rafdb", "."], "Annotation/manual/train_00001_manu_attri.txt:7: expected race 0..2, got '3'; fix this row"),
    "attributes cut off": (
        {"EmoLabel/list_patition_label.txt": "train_00001.jpg 1\n", "Annotation/manual/train_00001_manu_attri.txt": "1 2\n"},
        ["rafdb", "."], "Annotation/manual/train_00001_manu_attri.txt:6: expected gender 0..2, got ''; fix this row"),
    "kaggle's image that is not there": (
        {"train_labels.csv": "image,label\ntrain_00001_aligned.jpg,4\n", "test_labels.csv": "image,label\n"}, ["rafdb", "."],
        "1 of 1 image are not there, DATASET/train/4/train_00001_aligned.jpg the first; --skip-missing leaves such rows out"),
    "an array that is none": (
        {"train_set/annotations/0_exp.npy": "7"}, ["affectnet", "."], "train_set/annotations/0_exp.npy: not one class in NumPy's form; take the published file"),
    "affectnet's list a column short": (
        {"training.csv": "1/a.jpg,1,2,3,4,5;6,0,0\n", "validation.csv": "", "c/x": ""}, ["affectnet", "--images", "c", "."],
        "training.csv:1: expected 9 fields, got 8; fix this row"),
    "affectnet's unknown class": (
        {"training.csv": "1/a.jpg,1,2,3,4,5;6,11,0,0\n", "validation.csv": "", "c/x": ""}, ["affectnet", "--images", "c", "."],
        "training.csv:1: expected one of AffectNet's classes 0..10, got '11'; fix this row"),
    "a pixel too few": (
        {"f.csv": f"emotion,pixels,Usage\n3,{pixels(10)[:-2]},Training\n"}, ["fer2013", "f.csv"],
        "f.csv:2: expected 48x48 values 0..255, got 2303; fix them"),
    "a pixel too bright": (
        {"f.csv": f"emotion,pixels,Usage\n3,{pixels(256)},Training\n"}, ["fer2013", "f.csv"],
        "f.csv:2: expected 48x48 values 0..255, got 2304; fix them"),
    "fer2013's unknown part": (
        {"f.csv": f"emotion,pixels,Usage\n3,{pixels(1)},Test\n"}, ["fer2013", "f.csv"],
        "f.csv:2: expected a Usage of Training, PublicTest, PrivateTest, got 'Test'; fix this row"),
    "fer2013 without its parts": (
        {"f.csv": "emotion,pixels\n3,1 2\n"}, ["fer2013", "f.csv"], "f.csv: no column Usage; it has emotion, pixels"),
    "votes of other rows": (
        {"f.csv": FER, "v.csv": VOTES[: VOTES.rindex("Training")]}, ["fer2013", "f.csv", "--votes", "v.csv"],
        "v.csv: 3 rows for the 4 of f.csv; take the two that belong together"),
    "votes that are no numbers": (
        {"f.csv": FER, "v.csv": VOTES.replace("1,7,", "1,?,")}, ["fer2013", "f.csv", "--votes", "v.csv"],
        "v.csv:2: expected whole numbers of votes; fix this row"),
    "ckplus' row without an intensity": (
        {"FACS/S1/1/x_facs.txt": "1.0 2.0\n4.0\n", "cohn-kanade-images/S1/1/a.png": ""}, ["ckplus", "."],
        "FACS/S1/1/x_facs.txt:2: expected 2 whole numbers, got '4.0'; fix this row"),
    "ckplus' row of a number that is none": (
        {"FACS/S1/1/x_facs.txt": "1.0 2.0\nnan 1.0\n", "cohn-kanade-images/S1/1/a.png": ""}, ["ckplus", "."],
        "FACS/S1/1/x_facs.txt:2: expected 2 whole numbers, got 'nan 1.0'; fix this row"),
    "ckplus' class with a fraction": (
        {"FACS/S1/1/x_facs.txt": "", "Emotion/S1/1/x_emotion.txt": "3.7\n", "cohn-kanade-images/S1/1/a.png": ""}, ["ckplus", "."],
        "Emotion/S1/1/x_emotion.txt:1: expected 1 whole number, got '3.7'; fix this row"),
    "ckplus' empty class": (
        {"FACS/S1/1/x_facs.txt": "", "Emotion/S1/1/x_emotion.txt": "\n", "cohn-kanade-images/S1/1/a.png": ""}, ["ckplus", "."],
        "Emotion/S1/1/x_emotion.txt: expected one of CK+'s classes 0..7, got ''; fix this row"),
    "affectnet's box without a number": (
        {**AFFECTNET, "training.csv": f"689/a.JPG,10,NULL,20,20,{POINTS},6,0,0\n",
         "c/faces.csv": "image,file,left,top,width,height\n"}, ["affectnet", "--images", "c", "."],
        "training.csv:1: expected numbers for the face's box; fix this row"),
    "crops without a box": (
        {**AFFECTNET, "c/faces.csv": "image,file,left,top,width,height\n1.jpg,a.png,1,,2,2\n"}, ["affectnet", "--images", "c", "."],
        "c/faces.csv:2: expected numbers for left, top, width, height; take the file as `mmlfer crop` wrote it"),
    "ckplus' unknown class": (
        {"FACS/S1/1/x_facs.txt": "1.0 2.0\n", "Emotion/S1/1/x_emotion.txt": "8.0\n", "cohn-kanade-images/S1/1/a.png": ""}, ["ckplus", "."],
        "Emotion/S1/1/x_emotion.txt: expected one of CK+'s classes 0..7, got '8'; fix this row"),
    "ckplus' images that are not there": (
        {"FACS/S1/1/x_facs.txt": "1.0 2.0\n"}, ["ckplus", "."],
        "cohn-kanade-images/S1/1: cannot be read (No such file or directory)"),
    "a name that is none of jaffe's": (
        {"KA.XX1.39.tiff": ""}, ["jaffe", "."], "KA.XX1.39.tiff: expected a name like KA.AN1.39.tiff; move it away"),
    "disfa's intensity 6": (
        {"ActionUnit_Labels/SN001/SN001_au1.txt": "1,0\n2,6\n"}, ["disfa", ".", "--images", "."],
        "ActionUnit_Labels/SN001/SN001_au1.txt:2: expected 0..5 or -1 (not coded) for AU 1, got '6'; fix this row"),
    "disfa's row of one cell": (
        {"ActionUnit_Labels/SN001/SN001_au1.txt": "1\n"}, ["disfa", ".", "--images", "."],
        "ActionUnit_Labels/SN001/SN001_au1.txt:1: expected frame,intensity; fix this row"),
    "disfa's frame that is not there": (
        {"ActionUnit_Labels/SN001/SN001_au1.txt": "1,0\n2,0\n", "SN001/1.png": ""}, ["disfa", ".", "--images", "."],
        "1 of 2 images are not there, SN001/00002.jpg the first; --skip-missing leaves such rows out"),
    "a frame twice": (
        {"ActionUnit_Labels/SN001/SN001_au1.txt": "1,0\n", "SN001/1.png": "", "SN001/01.png": ""}, ["disfa", ".", "--images", "."],
        "SN001/1.png: is frame 1, as 01.png is; keep one"),
    "bp4d's unknown code": (
        {"F001_T1.csv": "0,1,2\n5,0,8\n"}, ["bp4d", ".", "--images", "."],
        "F001_T1.csv:2: expected 0, 1 or 9 (not coded) for AU 2, got '8'; fix this row"),
    "bp4d's row cut off": (
        {"F001_T1.csv": "0,1,2\n5,0\n"}, ["bp4d", ".", "--images", "."],
        "F001_T1.csv:2: 1 AU value, expected 2; fix this row, or see --help for the columns"),
    "bp4d's frame without a number": (
        {"F001_T1.csv": "0,1,2\nx,0,1\n"}, ["bp4d", ".", "--images", "."],
        "F001_T1.csv:2: expected a frame, an integer, got 'x'; fix this row"),
    "emotionet's row a column short": (
        {"d.txt": "\t".join(["u", "a.jpg", *["0"] * 59]) + "\n"}, ["emotionet", "d.txt", "--images", "."],
        "d.txt:1: 59 AU values, expected 60; fix this row, or see --help for the columns"),
    "affwild2's valence": (
        {"VA/Train_Set/v.txt": "valence,arousal\n0.1,0.2\n"}, ["abaw", "VA", "--images", "."],
        "VA/Train_Set/v.txt: expected a header of AUs, AU1,AU2,..., or of 8 classes; give the folders of these alone"),
    "affwild2's unknown class": (
        {"E/Train_Set/v.txt": "a,b,c,d,e,f,g,h\n0\n8\n"}, ["abaw", "E", "--images", "."],
        "E/Train_Set/v.txt:3: expected a class 0..7, got '8'; fix this row, or name all classes with --expressions"),
    "affwild2 without images": (
        {"E/Train_Set/v.txt": "a,b,c,d,e,f,g,h\n0\n"}, ["abaw", "E"],
        "E/Train_Set/v.txt: names no images; add --images, the videos' parent folder"),
    "affwild2's video in two parts": (
        {"E/Train_Set/v.txt": "a,b,c,d,e,f,g,h\n0\n", "E/Validation_Set/w.txt": "a,b,c,d,e,f,g,h\n0\n", "A/Validation_Set/v.txt": "AU1\n0\n1\n",
         "v/1.jpg": "", "v/2.jpg": "", "w/1.jpg": ""}, ["abaw", "E", "A", "--images", ".", "--as-published"],
        "A/Validation_Set/v.txt:2: not in the part of E/Train_Set/v.txt:2; give lists that agree"),
    "mafw's folds in another folder": (
        {"x": ""}, ["mafw", ".", "--images", "."], ".: no set_1 in it; give MAFW's folder of set_1 to set_5"),
    "mafw's row of one field": (
        {f"set_{k}/{part}.txt": "1.mp4 fear\n" if k < 5 else "1.mp4\n" for k in range(1, 6) for part in ("train", "test")},
        ["mafw", ".", "--images", "."], "set_5/train.txt:1: expected an image name and 1 value, got 1 field; fix this row"),
    "pyfeat's probability of 2": (
        {"labels.csv": LABELLED, "f.csv": "AU01,input\n2,1.jpg\n"}, ["pyfeat", "f.csv"],
        "f.csv:2: expected 0, 1 or -1 (not coded) for AU 1, got '2'; fix this row"),
    "pyfeat's file of a video": (
        {"labels.csv": LABELLED, "f.csv": "AU01,input,frame\n0.1,1.mp4,0\n0.1,1.mp4,1\n"}, ["pyfeat", "f.csv"],
        "f.csv: 2 frames, and no image's name with them; run the tool on images, so that each has its own file or name"),
    "libreface's file without AUs": (
        {"labels.csv": LABELLED, "1.csv": "frame_idx,facial_expression\n0,Neutral\n"}, ["libreface", "1.csv"],
        "1.csv: no columns au_1, au_2 ...: give LibreFace's files of AUs"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_layout_is_named_in_one_line(name, tmp_path, monkeypatch):
    files, args, message = BAD[name]
    make(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    said = refused(*args, ".")
    assert "\n" not in said and said == message
    assert (tmp_path / "labels.csv").exists() == ("labels.csv" in files)
    assert not (tmp_path / "fer2013").exists()
