"""--compounds: p(a and b) of a checkpoint of basic expressions, through eval, predict, video and serve."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from clips import grey, write_clip
from conftest import invoke, run_of, with_template
from PIL import Image
from reference import EMOTIONS

import mmlfer
from mmlfer_commands import _compounds, _models, _rafce, eval, serve

BASIC = ("neutral", "joy", "Sad", "surprise", "fearful", "disgust", "anger")  # as nobody spells all of them
PAIRS = {"happily": "joy", "sadly": "Sad", "fearfully": "fearful", "angrily": "anger", "disgustedly": "disgust",
         "surprised": "surprise", "disgusted": "disgust", "fearful": "fearful", "angry": "anger", "sad": "Sad"}
C_EXPR = ("fearfully surprised", "happily surprised", "sadly surprised", "disgustedly surprised", "angrily surprised",
          "sadly fearful", "sadly angry")


def checkpoint(path, emotions, test=None, data=""):
    """A checkpoint of random weights with these expressions and RAF-CE's AUs, all trained."""
    cfg = mmlfer.Config(data=str(data), method="mtl", size=32, arch="resnet18", weights="none", device="cpu")
    run = run_of(cfg)
    run.net.vocabulary, run.trained_aus = mmlfer.Vocabulary(tuple(emotions), mmlfer.AUS), list(mmlfer.AUS)
    run.net.fe = torch.nn.Linear(512, len(emotions))
    torch.nn.init.normal_(run.net.fe.weight, generator=torch.Generator().manual_seed(3))
    run.table = torch.full((len(emotions), 32), 0.3)
    mmlfer.save_checkpoint({**mmlfer.inference_state(run), **({"test": test} if test else {})}, path)
    return path


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("basic") / "best.pt", BASIC, {"accuracy": 0.9})


def answers(ckpt, faces, *options):
    """The lines of `predict --jsonl` for a folder's faces."""
    result = invoke("predict", "--ckpt", ckpt, faces / "aligned", "--jsonl", "-", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def naive(p_basic, pairs):
    """p(a and b) by the definition, {name: p}, from {basic expression: p} and {name: (a, b)}."""
    products = {name: p_basic[a] * p_basic[b] for name, (a, b) in pairs.items()}
    return {name: product / sum(products.values()) for name, product in products.items()}


def pairs_of(names):
    return {name: tuple(PAIRS[word] for word in name.split()) for name in names}


# ---------------------------------------------------------------- the probabilities


@pytest.mark.parametrize("source,names", [("rafce", EMOTIONS), ("c-expr", C_EXPR)])
def test_compounds_are_products_of_basic_expressions(basic, faces_folder, source, names):
    plain, _ = answers(basic, faces_folder)
    given, said = answers(basic, faces_folder, "--compounds", source, "--top", 20)
    assert said == f"--compounds {source}: products of basic expressions; not used: neutral\n"
    assert len(plain) == len(given) == 60 and len({one["expressions"][0]["name"] for one in given}) > 2
    for one, other in zip(plain, given):
        wanted = naive(one["p_expressions"], pairs_of(names))
        assert list(other["p_expressions"]) == list(names) and other["p_expressions"] == pytest.approx(wanted, rel=1e-3, abs=1e-7)
        assert other["p_aus"] == one["p_aus"] and other["aus"] == one["aus"]
        assert [e["name"] for e in other["expressions"]] == sorted(names, key=lambda name: -other["p_expressions"][name])


def test_a_list_of_ones_own_in_its_order_and_with_own_names(basic, faces_folder, tmp_path):
    (tmp_path / "mine.txt").write_bytes("\ufeffAngry-and-disgusted\r\n\r\n bittersweet : joy + SAD \r\nscared_surprise".encode())
    plain, _ = answers(basic, faces_folder)
    given, said = answers(basic, faces_folder, "--compounds", tmp_path / "mine.txt")
    assert said == f"--compounds {tmp_path}/mine.txt: products of basic expressions; not used: neutral\n"
    pairs = {"Angry-and-disgusted": ("anger", "disgust"), "bittersweet": ("joy", "Sad"), "scared_surprise": ("fearful", "surprise")}
    for one, other in zip(plain, given):
        assert list(other["p_expressions"]) == list(pairs) and other["p_expressions"] == pytest.approx(naive(one["p_expressions"], pairs), rel=1e-3)


def test_names_of_ones_own_that_no_table_has(faces_folder, tmp_path):
    ckpt = checkpoint(tmp_path / "own.pt", ("Anxiety", "help-less", "calm", "joy"))
    (tmp_path / "mine.txt").write_text("despair: anxiety + Help less\nhope: joy + calm\n")
    plain, _ = answers(ckpt, faces_folder)
    given, said = answers(ckpt, faces_folder, "--compounds", tmp_path / "mine.txt", "--top", 1)
    assert said.endswith("; not used: none\n")
    pairs = {"despair": ("Anxiety", "help-less"), "hope": ("joy", "calm")}
    for one, other in zip(plain, given):
        assert other["p_expressions"] == pytest.approx(naive(one["p_expressions"], pairs), rel=1e-3)


def test_a_checkpoint_that_has_the_compounds_answers_with_them_alone(faces_folder, tmp_path):
    """Of RAF-CE's 14, or MAFW's spelling of them, the seven of C-EXPR-DB: p over these, in their order; also where it has
    basic expressions too."""
    for names in (EMOTIONS, ("surprise_fear", "happiness_surprise", "sadness_surprise", "disgust_surprise", "anger_surprise",
                             "fear_sadness", "anger_sadness", "anger", "fear", "surprise", "happy", "sad", "disgust")):
        ckpt = checkpoint(tmp_path / "own.pt", names)
        plain, _ = answers(ckpt, faces_folder)
        given, said = answers(ckpt, faces_folder, "--compounds", "c-expr")
        own = {name: other for name in C_EXPR for other in names if {_word(w) for w in name.split()} == {_word(w) for w in other.replace("_", " ").split()}}
        assert said == f"--compounds c-expr: the checkpoint's own; not used: {', '.join(name for name in names if name not in own.values())}\n"
        assert len(own) == 7
        for one, other in zip(plain, given):
            p = {name: one["p_expressions"][own[name]] for name in C_EXPR}
            assert list(other["p_expressions"]) == list(C_EXPR)
            assert other["p_expressions"] == pytest.approx({name: q / sum(p.values()) for name, q in p.items()}, rel=1e-3, abs=1e-7)


def _word(word):
    return word[:3].replace("joy", "hap").replace("ang", "anger")


@pytest.mark.parametrize("names,source,said", [
    (("happy", "sad", "surprise", "fear", "anger"), "rafce", "none of its expressions mean disgust"),
    (EMOTIONS[:13], "rafce", "none of its expressions mean anger"),
    ((*BASIC, "happy"), "c-expr", "2 of its expressions mean happiness"),
    (("calm", "joy"), "mine.txt", "none of its expressions mean wonder"),
])
def test_a_checkpoint_without_a_basic_expression_is_one_line(tmp_path, faces_folder, monkeypatch, names, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("awe: joy + wonder\nbliss: joy + calm\n")
    result = invoke("predict", "--ckpt", checkpoint(tmp_path / "best.pt", names), "--compounds", source, faces_folder / "aligned")
    assert (result.exit_code, result.stdout) == (1, "") and result.stderr == (
        f"Error: {tmp_path}/best.pt: --compounds: {said}, and one should: {', '.join(names)}; a file may have "
        "NAME: a + b in its own names\n")


@pytest.mark.parametrize("text,said", [
    ("happily surprised\nhappily\n", ":2: happily: expected"), ("happily surprised\nx: joy\n", ":2: x: joy: expected"),
    ("happily surprised\n\nx: joy + sad + fear\n", ":3: x: joy + sad + fear: expected"), (": joy + sad\n", ":1: : joy + sad: expected"),
    ("happily surprised\nx: surprise + joy\n", ":2: x: surprise + joy: expected"), ("a: joy+sad\na: joy+fear\n", ":2: a: joy+fear: expected"),
    ("", ": 0 compounds; name two or more"), ("\nhappily surprised\n", ": 1 compound; name two or more"), (b"\xff\xfe", ": cannot be read"),
])
def test_a_list_that_cannot_be_used_is_one_line(basic, faces_folder, tmp_path, text, said):
    (tmp_path / "mine.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = invoke("predict", "--ckpt", basic, "--compounds", tmp_path / "mine.txt", faces_folder / "aligned")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/mine.txt{said}") and result.stderr.count("\n") == 1
    result = invoke("predict", "--ckpt", basic, "--compounds", "c_expr", faces_folder / "aligned")
    assert (result.exit_code, result.stderr) == (1, "Error: --compounds c_expr: neither rafce, nor c-expr, nor a file\n")


def test_a_damaged_checkpoint_is_one_line(basic, faces_folder, tmp_path):
    state = torch.load(basic, weights_only=True)
    state["net"]["fe.weight"] = state["net"]["fe.weight"][:3]
    torch.save(state, tmp_path / "best.pt")
    result = invoke("predict", "--ckpt", tmp_path / "best.pt", "--compounds", "rafce", faces_folder / "aligned")
    assert result.exit_code == 1 and result.stderr.splitlines()[1].startswith(f"Error: {tmp_path}/best.pt: damaged (")


def test_every_spelling_has_one_meaning():
    same = [("happy", "Happily", "happiness", "JOY", "joyful"), ("sad", "sadly", "sadness"), ("surprise", "surprised"),
            ("fear", "fearful", "fearfully", "afraid", "scared"), ("anger", "angry", "angrily"), ("disgust", "disgusted", "disgustedly"),
            ("contempt",), ("neutral",)]
    meanings = [{_compounds.meaning(name) for name in names} for names in same]
    assert all(len(m) == 1 for m in meanings) and len(set.union(*meanings)) == len(same)
    assert len({_compounds.meaning(name) for name in EMOTIONS}) == 14
    for one, other in itertools.product(EMOTIONS, C_EXPR):
        assert (_compounds.meaning(one) == _compounds.meaning(other.title().replace(" ", "_"))) == (one == other)


# ---------------------------------------------------------------- with other options


def test_tables_and_photographs_name_the_compounds(basic, faces_folder, tmp_path):
    (given, _), face = answers(basic, faces_folder, "--compounds", "c-expr"), faces_folder / "aligned/0001_aligned.jpg"
    result = invoke("predict", "--ckpt", basic, "--compounds", "c-expr", "--top", 2, "--csv", tmp_path / "p.csv", "--json", face)
    assert result.exit_code == 0
    (one,), (row,) = json.loads(result.stdout), list(csv.DictReader((tmp_path / "p.csv").open()))
    assert one["p_expressions"] == pytest.approx(given[0]["p_expressions"], abs=1e-6) and len(one["expressions"]) == 2
    assert [name for name in row if name.startswith("p_") and not name[2:].isdigit()] == ["p_" + name.replace(" ", "_") for name in C_EXPR]
    assert row["expression_1"] == one["expressions"][0]["name"] and "expression_3" not in row
    scene = np.full((64, 64, 3), 120, np.uint8)
    Image.fromarray(scene).save(tmp_path / "grey.png")
    templated = with_template(basic, tmp_path / "t.pt")
    result = invoke("predict", "--ckpt", templated, "--photos", tmp_path / "grey.png", "--compounds", "rafce", "--csv", "-")
    assert result.exit_code == 0 and "p_happily_sad," in result.stdout and "p_joy" not in result.stdout


def test_the_page_offers_the_compounds_and_not_the_basic_expressions_figures(basic, faces_folder, tmp_path):
    ckpt = with_template(basic, tmp_path / "t.pt")
    plain, given = (serve.Model(ckpt, None, "cpu", 0.0, compounds).facts() for compounds in (None, "c-expr"))
    assert (plain["expressions"], plain["test_accuracy"], plain["compounds"]) == (list(BASIC), 0.9, None)
    assert (given["expressions"], given["test_accuracy"]) == (list(C_EXPR), None)
    assert given["compounds"] == "products of basic expressions"
    assert np.shape(given["table"]) == (7, 32) and not np.any(given["table"]) and np.all(plain["table"])
    face = (faces_folder / "aligned/0001_aligned.jpg").read_bytes()
    model = serve.Model(ckpt, None, "cpu", 0.0, "c-expr")
    assert model.gradcam(face, "face").startswith(b"\x89PNG") and model.net.fe.out_features == 7


def test_serve_and_video_take_the_option(basic, nobody, tmp_path, monkeypatch):
    ckpt, given = with_template(basic, tmp_path / "t.pt"), []
    monkeypatch.setattr(serve, "run_server", lambda service, *_: given.append(service.facts["expressions"]))
    assert invoke("serve", "--ckpt", ckpt, "--compounds", "c-expr", "--port", 0, "--device", "cpu").exit_code == 0
    clip = write_clip(tmp_path / "grey.webm", grey(2))
    assert invoke("video", clip, "--ckpt", ckpt, "--compounds", "c-expr", "--out", tmp_path, "--device", "cpu").exit_code == 0
    columns = (tmp_path / "grey.csv").read_text().splitlines()[0].split(",")
    assert given == [list(C_EXPR)] and [name for name in columns if name.startswith("p_")] == ["p_" + name.replace(" ", "_") for name in C_EXPR]


def test_the_net_itself_gives_sums_of_logits(basic):
    x = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (net, _), (made, state) = _models.load_model(basic, "cpu"), _models.load_model(basic, "cpu", compounds="rafce")
    with torch.no_grad():
        (f, z, z_au), (f_c, z_c, z_au_c) = net(x), made(x)
    assert torch.equal(f, f_c) and torch.equal(z_au, z_au_c) and made.vocabulary == mmlfer.RAFCE and state["emotions"] == list(EMOTIONS)
    for k, name in enumerate(EMOTIONS):
        a, b = (BASIC.index(one) for one in pairs_of([name])[name])
        torch.testing.assert_close(z_c[:, k], z[:, a] + z[:, b])


# ---------------------------------------------------------------- eval


def write_rafce_like(folder, faces_folder):
    """The faces under labels.csv with C-EXPR-DB's and MAFW's spellings, others among them."""
    names = ["Fearfully Surprised", "happily surprised", "anger_surprise", "anger_sadness", "anger_disgust", "joy", "?"]
    rows = [("image", "expression", "split", "aus")]
    for i in range(1, 41):
        rows.append((f"aligned/{i:04d}_aligned.jpg", names[i % 7], "test" if i % 5 else "val", "1+2" if i % 2 or i % 7 == 6 else "?"))
    (folder / "aligned").symlink_to(faces_folder / "aligned")
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return rows[1:]


def test_eval_of_compounds_counts_naively(basic, faces_folder, tmp_path):
    rows = write_rafce_like(tmp_path, faces_folder)
    result = invoke("eval", "--ckpt", basic, "--data", tmp_path, "--compounds", "c-expr", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    numbers, (given, _) = json.loads(result.stdout), answers(basic, faces_folder, "--compounds", "c-expr")
    meant = {"Fearfully Surprised": C_EXPR[0], "happily surprised": C_EXPR[1], "anger_surprise": C_EXPR[4], "anger_sadness": C_EXPR[6]}
    confusion = np.zeros((7, 7), int)
    for (_, name, split, _), one in zip(rows, given):
        if name in meant and split == "test":
            confusion[C_EXPR.index(meant[name]), C_EXPR.index(one["expressions"][0]["name"])] += 1
    assert numbers["confusion"] == confusion.tolist() and numbers["n"] == confusion.sum() > 10
    left = sum(row[1] in ("anger_disgust", "joy") for row in rows)
    assert result.stderr.splitlines() == ["--compounds c-expr: products of basic expressions; not used: neutral",
                                          f"{tmp_path}: left out {left} images of other expressions: anger_disgust, joy"]
    assert numbers["au_n"] == sum(row[2] == "test" and row[3] != "?" and row[1] not in ("anger_disgust", "joy") for row in rows)
    text = invoke("eval", "--ckpt", basic, "--data", tmp_path, "--compounds", "c-expr").stdout
    assert "disgustedly surprised         0        -        -" in text and "the paper" not in text


def test_the_papers_figures_stand_beside_those_on_rafces_own_test_images(basic, sketch, faces_folder, monkeypatch):
    def said(ckpt, *options):
        return invoke("eval", "--ckpt", ckpt, "--data", faces_folder, *options).stdout

    assert "the paper" not in said(basic, "--compounds", "rafce")
    monkeypatch.setattr(eval, "is_rafce", lambda faces: faces.files == mmlfer.LABEL_FILES and len(faces.names) == 60)
    line = ("the paper's nets, trained on RAF-CE, Acc. / Diag. here: stl 51.49 / 28.12; mtl 53.25 / 29.58; mal 52.37 / 30.73; "
            "am lab 54.12 / 30.15; am wild 53.36 / 28.02; mml lab 55.01 / 30.85; mml wild 55.23 / 31.68")
    assert said(basic, "--compounds", "rafce").splitlines()[-1] == said(sketch).splitlines()[-1] == line
    assert "the paper" not in said(basic, "--compounds", "rafce", "--split", "val") + said(basic, "--compounds", "c-expr")
    assert json.loads(said(basic, "--compounds", "rafce", "--json"))["n"] == int((_rafce.load_labels(faces_folder).split == 1).sum())


def test_eval_of_compounds_needs_data_with_them(faces_folder, tmp_path):
    """The data that a checkpoint of basic expressions was trained on have none."""
    (tmp_path / "labels.csv").write_text("image,expression,split,aus\naligned/0001_aligned.jpg,joy,test,\n")
    (tmp_path / "aligned").symlink_to(faces_folder / "aligned")
    ckpt = checkpoint(tmp_path / "best.pt", BASIC, data=tmp_path)
    for options in ((), ("--data", tmp_path)):
        result = invoke("eval", "--ckpt", ckpt, "--compounds", "rafce", *options)
        assert (result.exit_code, result.stderr.splitlines()[1:]) == (1, [
            f"{tmp_path}: left out 1 image of other expressions: joy", f"Error: {tmp_path}: no test images; see labels.csv"])


def test_logits_are_adjusted_before_they_are_added(faces_folder, tmp_path):
    """--logit-adjust lowers the basic expressions' z by tau log p; p_a p_b is of the adjusted ones. Own test figures of
    the checkpoint do not come back by either."""
    ckpt = checkpoint(tmp_path / "best.pt", BASIC, {"accuracy": 0.9})
    state = torch.load(ckpt, weights_only=True)
    prior = [0.3, 0.2, 0.15, 0.15, 0.1, 0.06, 0.04]
    torch.save({**state, "prior": prior}, ckpt)
    plain, _ = answers(ckpt, faces_folder)
    given, said = answers(ckpt, faces_folder, "--compounds", "c-expr", "--logit-adjust", 0.7)
    assert said.startswith("--compounds c-expr: products")
    for one, other in zip(plain, given):
        weighed = {name: one["p_expressions"][name] * p**-0.7 for name, p in zip(BASIC, prior)}
        assert other["p_expressions"] == pytest.approx(naive(weighed, pairs_of(C_EXPR)), rel=1e-3, abs=1e-7)
