"""Rows whose expression nobody named, shares of expressions, and data sets put together."""

import csv
import dataclasses
import json
import math
import os

import numpy as np
import pytest
from conftest import SMALL, invoke, load
from PIL import Image

import mmlfer
from mmlfer_commands import _labels, _outputs, _stats, build, gradcam, merge, synth

ROWS = """\
image,expression,split,aus,p_b_c,P_a
1.jpg,a,train,1+12,1,3
2.jpg,?,train,12,,
3.jpg,?,val,?,2,2
4.jpg,b c,val,?,,
5.jpg,,test,,5,0
6.jpg,b c,test,1,0.25,0.75
"""


def done(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def read(folder, text):
    (folder / "labels.csv").write_text(text)
    return _labels.load_faces(folder)


def test_rows_with_and_without_expressions_aus_and_shares(tmp_path):
    """An expression that is left out is that of the largest share; rows without shares are as the expression says."""
    faces = read(tmp_path, ROWS)
    assert faces.vocabulary == mmlfer.Vocabulary(("a", "b c"), (1, 12)) and faces.y_emo.tolist() == [0, -1, -1, 1, 1, 1]
    assert np.allclose(faces.shares, [[0.75, 0.25], [np.nan] * 2, [0.5, 0.5], [np.nan] * 2, [0, 1], [0.75, 0.25]], equal_nan=True)
    assert faces.soft().tolist() == [[0.75, 0.25], [0, 0], [0.5, 0.5], [0, 1], [0, 1], [0.75, 0.25]]
    assert faces.named().names == ["1.jpg", "4.jpg", "5.jpg", "6.jpg"] and faces.select([2, 5]).shares.tolist() == [[0.5, 0.5], [0.75, 0.25]]
    assert _labels.describe(faces, "here").splitlines()[:6] == [
        "here: 6 images", f"  {'':24}  train   test    val", f"  {'a':24}{1:7}{0:7}{0:7}", f"  {'b c':24}{0:7}{2:7}{1:7}",
        f"  {'no expression':24}{1:7}{0:7}{1:7}", f"  {'all':24}{2:7}{2:7}{2:7}"]
    without = read(tmp_path, ROWS.replace("expression,", "").replace(",a,", ",").replace(",?,train", ",train").replace(
        ",?,val,?,2,2", ",val,?,1,2").replace(",b c,", ",").replace(",,test", ",test").replace("12,,", "12,0,1").replace("?,,", "?,1,0"))
    assert without.y_emo.tolist() == [0, 0, 0, 1, 1, 0]
    other = read(tmp_path, ROWS.replace("4.jpg,b c", "4.jpg,c"))  # which has no column
    assert other.soft()[[3, 4]].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_names_of_columns_are_spelled_as_the_rows_spell_them(tmp_path):
    names = [f"p_{name.replace(' ', '_')}" for name in mmlfer.EMOTIONS]
    row = ",".join("1" if i == 3 else "0" for i in range(14))
    faces = read(tmp_path, f"image,aus,{','.join(names)}\n1.jpg,1,{row}\n")
    assert faces.vocabulary == mmlfer.RAFCE and faces.y_emo.tolist() == [3]
    faces = read(tmp_path, "image,expression,aus,p_high-five,p_1\n1.jpg,High_Five,1,3,1\n2.jpg,1,1,,\n")
    assert faces.vocabulary.emotions == ("1", "High_Five") and faces.shares[0].tolist() == [0.25, 0.75]


BAD = {
    "neither": (ROWS.replace("2.jpg,?,train,12", "2.jpg,?,train,?"), "3: neither an expression nor a coded AU; remove this row"),
    "neither, in columns": ("image,expression,AU1,AU2\n1.jpg,a,1,\n2.jpg,?,,\n", "3: neither an expression nor a coded AU; remove this row"),
    "nothing": (ROWS.replace("4.jpg,b c", "4.jpg,"), "5: no expression; name it, write ? where nobody did, or remove this row"),
    "a tie": (ROWS.replace("3.jpg,?", "3.jpg,"), "4: b c and a have equal shares; name the expression, or ?"),
    "all 0": (ROWS.replace("1,3", "0,0"), "2: p_ columns: 0, 0; write shares or votes, not all 0, or nothing in all of them"),
    "below 0": (ROWS.replace("1,3", "-1,3"), "2: p_ columns: -1, 3; write shares or votes, not all 0, or nothing in all of them"),
    "half a row": (ROWS.replace("1,3", ",3"), "2: p_ columns: , 3; write shares or votes, not all 0, or nothing in all of them"),
    "nan": (ROWS.replace("1,3", "nan,3"), "2: p_ columns: nan, 3; write shares or votes, not all 0, or nothing in all of them"),
    "inf": (ROWS.replace("1,3", "1,inf"), "2: p_ columns: 1, inf; write shares or votes, not all 0, or nothing in all of them"),
    "text": (ROWS.replace("1,3", "1,many"), "2: p_ columns: 1, many; write shares or votes, not all 0, or nothing in all of them"),
    "two columns": (ROWS.replace("P_a", "P_b-c"), "1: columns p_b_c and P_b-c say the same; keep one of the two"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_one_line(tmp_path, kind):
    content, message = BAD[kind]
    with pytest.raises(mmlfer.InputError) as caught:
        read(tmp_path, content)
    assert str(caught.value) == f"{tmp_path}/labels.csv:{message}"


def test_in_another_vocabulary_shares_move_with_their_names(tmp_path):
    faces = read(tmp_path, ROWS)
    moved = _labels.recode(faces, mmlfer.Vocabulary(("b c", "x", "a"), (1,)), tmp_path)
    assert moved.y_emo.tolist() == [2, -1, -1, 0, 0, 0] and moved.shares[0].tolist() == [0.25, 0, 0.75] and np.isnan(moved.shares[1]).any()
    assert moved.soft()[3].tolist() == [1, 0, 0] and not moved.soft()[1].any()
    with pytest.raises(mmlfer.InputError, match="1.jpg: 'b c' is not among the expressions to tell apart: a; "):
        _labels.recode(faces, mmlfer.Vocabulary(("a",), (1,)), tmp_path)  # it has a share there
    aus = read(tmp_path, "image,expression,aus\n1.jpg,?,1\n")
    assert _labels.recode(aus, mmlfer.RAFCE, tmp_path).y_emo.tolist() == [-1] and aus.vocabulary.emotions == ()
    digests = [read(tmp_path, text).sha256() for text in (ROWS, ROWS.replace("1,3", "1,2"), ROWS.replace("4.jpg,b c", "4.jpg,a"))]
    assert len({*digests}) == 3


def test_a_partition_is_drawn_of_rows_without_expressions_too(tmp_path):
    """By expression those are one more; people stay in one part."""
    rows = [f"{i}.jpg,{'?ab'[i % 3]},1,{'p' + str(i % 37) if i % 4 else ''}" for i in range(300)]
    faces = read(tmp_path, "image,expression,aus\n" + "\n".join(row.rsplit(",", 1)[0] for row in rows))
    for k in (-1, 0, 1):
        assert np.bincount(faces.split[faces.y_emo == k]).tolist() == [60, 20, 20]
    faces = read(tmp_path, "image,expression,aus,person\n" + "\n".join(rows))
    parts = {}
    for row, part in zip(rows, faces.split.tolist()):
        parts.setdefault(row.rsplit(",", 1)[1] or row, set()).add(part)
    assert all(len(part) == 1 for part in parts.values())
    for k in (-1, 0, 1):
        assert np.bincount(faces.split[faces.y_emo == k]) / 100 == pytest.approx([0.6, 0.2, 0.2], abs=0.08)
    split = _labels.split_people(np.full(6, -1), ["a", "a", "b", "c", "d", "e"], 0)
    assert split[0] == split[1]
    votes = "".join(f"{i}.jpg,1,{i % 20},0,1,2\n{i}.png,1,{i % 20},0,2,1\n" for i in range(50))  # nobody is first of all seen as a
    faces = read(tmp_path, "image,aus,person,p_a,p_b,p_c\n" + votes)
    assert {*faces.y_emo.tolist()} == {1, 2} and {*faces.split.tolist()} == {0, 1, 2}


def test_parts_need_faces_with_expressions(tmp_path):
    def check(text):
        faces = read(tmp_path, "image,expression,split,aus\n" + text)
        _labels.check_learnable(faces, tmp_path)
        _labels.check_trainable(faces, "here", 2)

    plain = "1.jpg,a,train,1\n2.jpg,b,train,1\n3.jpg,a,val,1\n4.jpg,b,val,1\n5.jpg,a,test,1\n6.jpg,?,val,1\n7.jpg,?,test,1\n"
    check(plain)
    for old, new, said in (("4.jpg,b", "4.jpg,?", "here: 1 val images with an expression, under 2; "),
                           ("5.jpg,a", "5.jpg,?", "here: 0 test images with an expression, under 1; ")):
        with pytest.raises(mmlfer.InputError, match=said):
            check(plain.replace(old, new))
    with pytest.raises(mmlfer.InputError, match="no row has an expression; mmlfer merge adds a set that has them"):
        check("1.jpg,?,train,1\n")


def test_validation_batches_are_of_faces_with_expressions(tmp_path):
    faces = read(tmp_path, ROWS)
    faces = dataclasses.replace(faces, images=mmlfer.torch.zeros(6, 3, 2, 2, dtype=mmlfer.torch.uint8))
    for labels, target in (("hard", [-1]), ("soft", [[0.0, 0.0]])):
        batches = mmlfer.Batches(faces, mmlfer.Config(batch_size=2, labels=labels), mmlfer.torch.device("cpu"))
        ((index, _, val_index, _),) = batches.epoch(0)
        assert sorted(index.tolist()) == [0, 1] and val_index.tolist() == [3, 3]
        assert batches.take(mmlfer.torch.tensor([1]), mmlfer.torch.tensor([False]))[1].tolist() == target


def test_metrics_are_of_the_rows_that_have_each_label():
    """Acc. of named rows, AU F1 of coded ones, KL of those with shares: against loops."""
    rng, k = np.random.default_rng(4), 5
    p, q = rng.dirichlet(np.ones(k), 40), rng.dirichlet(np.ones(k), 40)
    q[:10] = np.round(q[:10] * 2) / 2 + [0.5, 0.5, 0, 0, 0]  # some have no two largest shares
    q /= q.sum(1, keepdims=True)
    numbers = mmlfer.share_metrics(p, q)
    kl = np.mean([sum(b * math.log(b / a) for a, b in zip(*pair) if b > 0) for pair in zip(p, q)])
    clear = [i for i in range(40) if sorted(q[i])[-2] > sorted(q[i])[-3]]
    right = sum({*sorted(range(k), key=lambda j: -p[i, j])[:2]} == {*sorted(range(k), key=lambda j: -q[i, j])[:2]} for i in clear)
    assert numbers["kl"] == pytest.approx(kl) and (numbers["shares_n"], numbers["top_two_n"]) == (40, len(clear)) and len(clear) < 40
    assert numbers["top_two"] == pytest.approx(right / len(clear)) and 0 < right < len(clear)
    assert mmlfer.share_metrics(np.array([[0.3, 0.7]]), np.array([[1.0, 0.0]]))["top_two"] is None
    three = mmlfer.share_metrics(np.array([[0.5, 0.3, 0.2]] * 3), np.array([[0.4, 0.3, 0.3], [0.5, 0.3, 0.2], [0.5, 0.2, 0.3]]))
    assert (three["top_two_n"], three["top_two"]) == (2, 0.5)
    y_au = np.array([[1, -1], [0, 1], [-1, -1]])
    numbers = mmlfer.au_metrics(y_au, np.array([[True, True], [False, False], [True, True]]), (1, 2))
    assert numbers["au_n"] == 2 and numbers["au_f1"] == {"1": 1.0, "2": 0.0}


# ---------------------------------------------------------------- sets that do not overlap


def leave_expressions_out(folder):
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()]
    text = "\n".join(",".join([row[0], row[1] if i == 0 else "?", *row[2:]]) for i, row in enumerate(rows))
    (folder / "labels.csv").write_text(text + "\n")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A set of expressions alone, one of AUs alone, and both put together."""
    folder = tmp_path_factory.mktemp("sets")
    synth.synthesize_csv(folder / "emo", 60, "lab", 32, 0, uncoded=1)
    synth.synthesize_csv(folder / "au", 60, "lab", 32, 1)
    leave_expressions_out(folder / "au")
    done("merge", folder / "emo", folder / "au", "--out", folder / "both")
    return folder


def test_a_net_is_trained_on_an_expression_set_and_an_au_set(sets, tmp_path):
    """Each loss falls on what it can read; the numbers are of the rows that have each label."""
    result = done("train", "--data", sets / "both", "--out", tmp_path / "r", "--method", "mml", "--stats", "lab", "--epochs", 2, *SMALL)
    assert "  no expression" in result.stdout
    test, state = json.loads((tmp_path / "r/test.json").read_text()), load(tmp_path / "r/best.pt")
    with open(sets / "both/labels.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    named = [row["image"] for row in rows if row["expression"] != "?"]
    assert test["names"] == named and len(test["truth"]) == len(test["best"]["pred"]) == test["best"]["n"] == len(named)
    assert test["best"]["au_n"] == sum(row["AU12"] != "" for row in rows) and state["trained_aus"] == state["aus"]
    with open(tmp_path / "r/log.csv") as file:
        log = list(csv.DictReader(file))
    assert all(float(row[name]) > 0 for row in log for name in ("train_loss_emo", "train_loss_au", "train_loss_am"))
    text = done("eval", "--ckpt", tmp_path / "r/best.pt").stdout
    assert f"AU F1 %, {test['best']['au_n']} coded faces" in text
    assert done("table", tmp_path / "r", "--out", "-").stdout.count(f"{len(named)} test images") == 1
    told = json.loads(done("eval", "--ckpt", tmp_path / "r/best.pt", "--data", sets / "au", "--json").stdout)
    assert told["n"] == 0 and told["accuracy"] is None and told["au_n"] > 0
    result = invoke("train", "--data", sets / "both", "--out", tmp_path / "s", "--method", "mml", "--stats", "train", *SMALL)
    assert result.exit_code == 1 and result.stderr.endswith(
        f"statistics train: no training row of {sets}/both has both an expression and coded AUs; give a file, or for RAF-CE "
        "wild or lab\n")
    result = invoke("train", "--data", sets / "both", "--out", tmp_path / "s", "--labels", "soft", *SMALL)
    assert result.exit_code == 1 and "labels.csv: no columns p_NAME with shares or votes, which --labels soft needs" in result.stderr
    result = invoke("train", "--data", sets / "au", "--out", tmp_path / "s", *SMALL)
    assert result.exit_code == 1 and "no row has an expression; mmlfer merge adds" in result.stderr
    result = invoke("stats", "--data", sets / "au")
    assert result.exit_code == 1 and result.stderr.endswith("labels.csv: no images with an expression, --split all\n")
    assert "here: no row has an expression and coded AUs" in done("stats", "--data", sets / "both", "--against", "wild").stdout


def test_a_face_without_an_expression_has_no_truth_in_figures(sets):
    paths = sorted((sets / "au/aligned").iterdir())[:2]
    assert gradcam.known_truths(paths, sets / "au") == [None, None]


def test_a_merged_row_says_what_its_set_says(sets):
    both, emo, au = (_labels.load_faces(sets / name) for name in ("both", "emo", "au"))
    assert both.names == [f"emo/{name}" for name in emo.names] + [f"au/{name}" for name in au.names]
    assert both.split.tolist() == [*emo.split, *au.split] and both.y_emo.tolist() == [*emo.y_emo, *au.y_emo]
    assert (both.y_au[:60] == -1).all() and both.vocabulary == mmlfer.Vocabulary(emo.vocabulary.emotions, au.vocabulary.aus)
    assert (both.y_au[60:] == au.y_au).all() and (sets / "both/au").is_symlink()
    assert mmlfer.load_images(both, sets / "both", 32).images.shape == (120, 3, 32, 32)


# ---------------------------------------------------------------- merge


def write_set(folder, text, colours=()):
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_text(text)
    for i, colour in enumerate(colours, 1):
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_sets_keep_their_people_shares_and_names(tmp_path, faces_folder):
    one = write_set(tmp_path / "x/faces", "image,expression,split,person,aus,p_joy,p_fear\n1.png,joy,train,7,1,3,1\n2.png,fear,val,,?,,\n")
    two = write_set(tmp_path / "y/faces", "image,expression,split,person,AU2,AU12\n1.png,happiness,train,7,0,\n2.png,?,test,8,,1\n")
    done("merge", one, two, faces_folder, "--rename", "happiness=joy", "--out", tmp_path / "c")
    with open(tmp_path / "c/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [[row[name] for name in ("image", "source", "expression", "split", "person", "AU1", "AU2", "AU12", "p_joy", "p_fear")] for row in rows[:4]]
    assert told == [["faces/1.png", "faces", "joy", "train", "faces/7", "1", "", "", "0.75", "0.25"],
                    ["faces/2.png", "faces", "fear", "val", "", "", "", "", "", ""],
                    ["faces-2/1.png", "faces-2", "joy", "train", "faces-2/7", "", "0", "", "", ""],
                    ["faces-2/2.png", "faces-2", "?", "test", "faces-2/8", "", "", "1", "", ""]]
    assert rows[4]["image"] == "faces-3/aligned/0001_aligned.jpg" and rows[4]["AU12"] in ("0", "1") and len(rows) == 64
    assert all((tmp_path / "c" / row["image"]).is_file() for row in rows[4:])
    names = _labels.load_faces(tmp_path / "c").vocabulary.emotions
    assert {"joy", "fear", "sadly angry"} <= {*names} and "happiness" not in names


def test_sets_of_one_name_are_numbered_whatever_others_are_called(tmp_path):
    assert _outputs.numbered(["a", "a-3", "a-2b", "a", "a", "a"]) == ["a", "a-3", "a-2b", "a-2", "a-4", "a-5"]
    text = "image,expression,split,aus\n1.png,{},train,?\n"
    odd = write_set(tmp_path / os.fsdecode(b" b\xff"), text.format("joy"))
    done("merge", odd, write_set(tmp_path / "c", text.format("fear")), "--out", tmp_path / "d")
    assert _labels.load_faces(tmp_path / "d").names == ["b?/1.png", "c/1.png"] and (tmp_path / "d/b?").samefile(odd)


def test_one_expression_in_two_spellings_is_to_be_renamed(tmp_path):
    one = write_set(tmp_path / "one", "image,expression,split,aus\n1.png,Joy,train,?\n2.png,fear,val,?\n")
    two = write_set(tmp_path / "two", "image,expression,split,aus\n1.png,joy,train,?\n")
    result = invoke("merge", one, two, "--out", tmp_path / "c")
    assert (result.exit_code, result.stderr) == (1, "Error: two: 'joy' is 'Joy' of one in another spelling; --rename 'joy=Joy'\n")
    assert done("merge", one, two, "--out", tmp_path / "c", "--rename", "joy=Joy") and "aus" in (tmp_path / "c/labels.csv").read_text()
    result = invoke("merge", one, two, "--out", tmp_path / "d", "--rename", "happy=Joy")
    assert (result.exit_code, result.stderr) == (1, "Error: --rename happy: no set has it; they have Joy, fear, joy\n")
    for args, said in (((one,), "Name two data sets or more."), ((one, two, "--rename", "joy"), "expected OLD=NEW, two names, such as"),
                       ((one, two, "--rename", "joy=?"), "expected OLD=NEW, two names, such as")):
        result = invoke("merge", *args, "--out", tmp_path / "d")
        assert result.exit_code == 2 and said in result.stderr
    result = invoke("merge", one, two, "--out", tmp_path / "c", "--rename", "joy=Joy")
    assert result.exit_code == 1 and "not an empty folder; name a new one" in result.stderr and not (tmp_path / "d").exists()


def test_pictures_that_two_sets_hold_in_different_parts_are_counted(tmp_path):
    """By content; not those in one part, nor of one set."""
    one = write_set(tmp_path / "one", "image,expression,split,aus\n1.png,a,train,?\n2.png,b,val,?\n3.png,a,train,?\n4.png,b,val,?\n", (9, 20, 30, 9))
    two = write_set(tmp_path / "two", "image,expression,split,aus\n1.png,a,test,?\n2.png,b,val,?\n3.png,a,test,?\n4.png,b,val,?\n", (30, 20, 77, 9))
    result = done("merge", one, two, "--out", tmp_path / "c")
    assert result.stderr == (f"Warning: one and two hold 2 pictures in different parts, such as {one}/3.png (train) and {two}/1.png (test); "
                             "remove them from one set, or faces are tested that are trained on\n")
    assert merge.same_pictures([("one", one / "2.png", "val"), ("two", two / "2.png", "val")]) == {}


# ---------------------------------------------------------------- shares


def test_soft_labels_train_and_are_measured(tmp_path):
    synth.synthesize_csv(tmp_path / "q", 60, "wild", 32, 0, soft=True)
    synth.synthesize_csv(tmp_path / "plain", 60, "wild", 32, 0)
    one, other = (_labels.load_faces(tmp_path / name) for name in ("q", "plain"))
    names = [[faces.vocabulary.emotions[k] for k in faces.y_emo] for faces in (one, other)]
    assert names[0] == names[1] and one.shares.shape == (60, 14) and other.shares is None
    digests = set()
    for labels in ("soft", "hard"):
        done("train", "--data", tmp_path / "q", "--out", tmp_path / labels, "--method", "mml", "--labels", labels, "--epochs", 1, *SMALL)
        digests.add(json.loads((tmp_path / labels / "test.json").read_text())["data_sha256"])
    logs = [(tmp_path / labels / "log.csv").read_text() for labels in ("soft", "hard")]
    assert logs[0].split(",")[:12] != logs[1] and len(digests) == 1
    told = json.loads(done("eval", "--ckpt", tmp_path / "soft/best.pt", "--json").stdout)
    assert told["shares_n"] == told["n"] and told["kl"] > 0 and "mean KL(shares || p)" in done("eval", "--ckpt", tmp_path / "soft/best.pt").stdout
    rows = done("table", tmp_path, "--out", "-").stdout
    assert "mml wild, labels hard" in rows and "mml wild, labels soft" in rows
    result = invoke("synth", tmp_path / "z", "--soft")
    assert result.exit_code == 2 and "--uncoded and --soft need --form csv: RAF-CE's files have neither." in result.stderr


def test_drawn_shares_follow_the_aus_of_each_face():
    """40 votes a face; a face whose AUs fit one expression alone has most of them there."""
    table, vocabulary = np.array([[0.9, 0.0], [0.0, 0.9]]), mmlfer.Vocabulary(("a", "b"), (4, 12))
    shares = synth.draw_shares(["4", "L12", "null"] * 50, [0, 1, 0] * 50, table, vocabulary, 0)
    assert np.allclose(shares.sum(1), 1) and np.allclose(shares * 40, np.round(shares * 40))
    means = shares.reshape(50, 3, 2).mean(0)
    odds = [0.9 / 0.001 * 0.999 / 0.1] * 2  # of one expression to the other, by its AU and the other's absence
    wanted = [2 * odds[0] ** 0.25 / (1 + 2 * odds[0] ** 0.25), 2 / (2 + odds[1] ** 0.25), 2 / 3]
    assert means[:, 0] == pytest.approx(wanted, abs=0.05)


def test_build_gives_the_shares_of_the_annotators(tmp_path):
    """Of a compound the product of its two; the largest is the published label wherever nothing is tied."""
    rng, p = np.random.default_rng(2), []
    while len(p) < 40:
        row = np.round(rng.dirichlet(np.ones(6) * 0.7), 4)
        if len({*row}) == 6 and not isinstance(build.name_compound(row), str):
            p.append(row)
    (tmp_path / "ml/EmoLabel").mkdir(parents=True)
    (tmp_path / "au/aligned").mkdir(parents=True)
    (tmp_path / "ml/EmoLabel/distribution.txt").write_text("".join(f"{i:04}.jpg {' '.join(map(str, row))}\n" for i, row in enumerate(p)))
    (tmp_path / "au/RAFAU_label.txt").write_text("".join(f"{i:04}.jpg {'null' if i == 3 else 'L4+12'}\n" for i in range(40)))
    for i in range(39):
        Image.new("RGB", (8, 8)).save(tmp_path / ("au" if i == 5 else "au/aligned") / f"{i:04}.jpg")
    done("build", "--raf-ml", tmp_path / "ml", "--raf-au", tmp_path / "au", "--out", tmp_path / "hard")
    done("build", "--raf-ml", tmp_path / "ml", "--raf-au", tmp_path / "au", "--out", tmp_path / "soft", "--soft")
    hard, soft = _labels.load_faces(tmp_path / "hard"), _labels.load_faces(tmp_path / "soft")
    assert soft.vocabulary == mmlfer.RAFCE and soft.y_emo.tolist() == hard.y_emo.tolist() == soft.shares.argmax(1).tolist()
    assert soft.split.tolist() == hard.split.tolist() and (soft.y_au == hard.y_au).all()
    assert soft.names[5] == "0005.jpg" and soft.names[0] == "aligned/0000_aligned.jpg"
    found = [path is not None for path in mmlfer.image_paths(soft, tmp_path / "soft")]
    assert found == [True] * 39 + [False]
    order = ["surprise", "fear", "disgust", "happiness", "sadness", "anger"]
    pairs = [("happiness", "surprise"), ("happiness", "disgust"), ("sadness", "fear"), ("sadness", "anger"), ("sadness", "surprise"),
             ("sadness", "disgust"), ("fear", "anger"), ("fear", "surprise"), ("fear", "disgust"), ("anger", "surprise"),
             ("anger", "disgust"), ("disgust", "surprise"), ("happiness", "fear"), ("happiness", "sadness")]
    for row, q in zip(p, soft.shares):
        products = [row[order.index(a)] * row[order.index(b)] for a, b in pairs]
        assert q == pytest.approx([product / sum(products) for product in products], abs=1e-5)


def test_statistics_count_the_rows_that_have_both_labels(tmp_path):
    rows = "1.jpg,a,train,1\n2.jpg,a,train,\n3.jpg,a,train,?\n4.jpg,?,train,1\n5.jpg,b,train,12\n"
    p, coded = _stats.frequencies(read(tmp_path, "image,expression,split,aus\n" + rows))
    assert p.tolist() == [[0.5, 0], [0, 1]] and coded.tolist() == [[2, 2], [1, 1]]
    faces = read(tmp_path, "image,expression,split,AU1,AU2\n1.jpg,a,train,0,\n2.jpg,a,train,0,1\n3.jpg,b,train,1,1\n4.jpg,b,train,1,1\n5.jpg,c,train,,1\n")
    table = np.array([[0, 0], [1, 1], [0, 0]])
    assert [*_stats.left_out("train", 2, faces, table)] == ["with fewer than 2 coded training images, left out of L^AM: c",
                                                            "without AUs of 20 % or more, left out of L^AM: a"]
