"""Predictions on faces of one's own."""

import contextlib
import csv
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, command_line, invoke
from PIL import Image
from scenes import two_face_scene

import mmlfer
from mmlfer_commands import _inputs, _rafce, predict


@pytest.fixture(scope="module")
def ckpt(sketch):
    return sketch


@pytest.fixture(scope="module")
def many(faces_folder, tmp_path_factory):
    """300 different images of 32x32 in 3 folders: drawn faces, each under several coloured lights."""
    out, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    faces = sorted((faces_folder / "aligned").iterdir())
    for i in range(300):
        pixels = np.asarray(Image.open(faces[i % 60]).convert("RGB"), float) * rng.uniform(0.3, 1.2, 3)
        path = out / "cab"[i % 3] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return out


@pytest.fixture(scope="module")
def by_hand(sketch_34):
    """p_emo and p_au of one image of the net's size, from the checkpoint's tensors alone."""
    state = torch.load(sketch_34, weights_only=True)["net"]
    net = torchvision.models.resnet34()
    net.fc = torch.nn.Identity()
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    net.eval()

    def answer(path):
        x = torch.tensor(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        with torch.no_grad():
            f = net((x / 255 - 0.5) / 0.5)[0]
        return torch.softmax(state["fe.weight"] @ f + state["fe.bias"], 0), torch.sigmoid(state["au.weight"] @ f + state["au.bias"])

    return answer


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_predict_names_expressions_and_aus(ckpt, faces_folder, tmp_path):
    result = invoke("predict", "--ckpt", ckpt, faces_folder / "aligned", "--top", 2, "--json",
                    "--csv", tmp_path / "p.csv", "--jsonl", tmp_path / "p.jsonl")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [r["image"] for r in rows] == [str(p) for p in sorted((faces_folder / "aligned").iterdir())]
    for row in rows:
        first, second = row["expressions"]
        assert first["name"] in mmlfer.EMOTIONS and 1 >= first["p"] >= second["p"] >= 0
        assert all(a["name"] == mmlfer.AU_NAMES[a["au"]] and a["p"] > 0.5 for a in row["aus"])
    assert rows_of((tmp_path / "p.jsonl").read_text()) == rows
    row = max(rows, key=lambda r: len(r["aus"]))
    first, second = row["expressions"]
    line = invoke("predict", "--ckpt", ckpt, row["image"], "--top", 2).stdout
    assert line == (f"{row['image']}: {first['name']} {100 * first['p']:.1f} %, {second['name']} {100 * second['p']:.1f} %; "
                    f"AUs: {', '.join('{au} {name}'.format(**a) for a in row['aus'])}\n")
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(table[0])[:6] == ["image", "expression_1", "p_1", "expression_2", "p_2", "aus"]
    assert [t["expression_2"] for t in table] == [r["expressions"][1]["name"] for r in rows]
    assert [float(t["p_1"]) for t in table] == pytest.approx([r["expressions"][0]["p"] for r in rows], abs=1e-6)


def test_every_image_has_its_own_answer_past_two_batches_with_bad_ones_between(sketch_34, many, by_hand, tmp_path):
    paths = sorted(many.rglob("*.png"), key=lambda p: (int(p.stem) * 7919) % 300)[:200]  # an odd order
    bad = (0, 63, 64, 65, 100, 128, 199)
    for i in bad:
        paths[i] = tmp_path / f"bad{i}.png"
        paths[i].write_bytes(b"no image")
    result = invoke("predict", "--ckpt", sketch_34, *paths, "--json", "--top", 14)
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [r["image"] for r in rows] == [str(p) for i, p in enumerate(paths) if i not in bad]
    assert result.stderr.count("Warning: skipped") == len(bad) and str(paths[64]) in result.stderr
    good = [p for i, p in enumerate(paths) if i not in bad]
    for i in (0, 61, 62, 63, 64, 65, 90, 91, 125, 126, 127, 128, 192):
        p_emo, p_au = by_hand(good[i])
        told = {e["name"]: e["p"] for e in rows[i]["expressions"]}
        assert [told[name] for name in mmlfer.EMOTIONS] == pytest.approx(p_emo.tolist(), abs=1e-5)
        assert [a["au"] for a in rows[i]["aus"]] == [au for au, p in zip(mmlfer.AUS, p_au) if p > 0.5]
    first = np.array([[e["p"] for e in r["expressions"]] for r in rows])
    assert (abs(np.diff(first, axis=0)).max(1) > 1e-4).all()  # so that a shift would be seen


def test_an_answer_does_not_depend_on_what_else_is_asked(ckpt, many):
    together = {r["image"]: r for r in json.loads(invoke("predict", "--ckpt", ckpt, many, "--json").stdout)}
    assert len(together) == 300
    for path in sorted(many.rglob("*.png"))[5::60]:
        (alone,) = json.loads(invoke("predict", "--ckpt", ckpt, path, "--json").stdout)
        among = together[str(path)]
        assert [e["name"] for e in alone["expressions"]] == [e["name"] for e in among["expressions"]]
        assert [e["p"] for e in alone["expressions"]] == pytest.approx([e["p"] for e in among["expressions"]], abs=1e-5)
        assert [a["au"] for a in alone["aus"]] == [a["au"] for a in among["aus"]]


def test_predict_agrees_with_eval(ckpt, faces_folder):
    faces = _rafce.load_labels(faces_folder)
    test = {n: mmlfer.EMOTIONS[k] for n, k, s in zip(faces.names, faces.y_emo, faces.split) if s == mmlfer.TEST}
    paths = [faces_folder / "aligned" / n.replace(".", "_aligned.") for n in test]
    rows = json.loads(invoke("predict", "--ckpt", ckpt, *paths, "--json").stdout)
    right = sum(r["expressions"][0]["name"] == k for r, k in zip(rows, test.values()))
    numbers = json.loads(invoke("eval", "--ckpt", ckpt, "--json").stdout)
    assert right / len(rows) == pytest.approx(numbers["accuracy"])


def test_predict_skips_and_names_what_it_cannot_read(ckpt, faces_folder, tmp_path):
    shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    result = invoke("predict", "--ckpt", ckpt, tmp_path, "--json")
    assert result.exit_code == 1 and f"{tmp_path}/a.jpg" in result.stderr
    assert result.stderr.startswith("Warning: skipped ") and result.stderr.count("\n") == 1
    assert [r["image"] for r in json.loads(result.stdout)] == [str(tmp_path / "b.jpg")]
    (tmp_path / "empty").mkdir()
    result = invoke("predict", "--ckpt", ckpt, tmp_path / "empty")
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {tmp_path}/empty: no images there\n")
    result = invoke("predict", "--ckpt", ckpt, tmp_path / "gone")
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path}/gone: no such file or folder\n")


# ---------------------------------------------------------------- folders


def test_links_to_folders_are_followed_once(ckpt, faces_folder, tmp_path):
    face = faces_folder / "aligned/0001_aligned.jpg"
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "real", outside):
        folder.mkdir(parents=True)
    shutil.copy(face, outside / "1.jpg")
    shutil.copy(face, inside / "real/2.jpg")
    (inside / "linked").symlink_to(outside)
    (outside / "back").symlink_to(inside)  # a circle
    (inside / "real/self").symlink_to(".")
    (inside / "again").symlink_to(inside / "real")  # its images have a name already
    (inside / "3.jpg").symlink_to(face)
    (inside / "4.jpg").symlink_to(tmp_path / "nowhere")
    result = invoke("predict", "--ckpt", ckpt, inside, "--json")
    names = [r["image"].removeprefix(f"{inside}/") for r in json.loads(result.stdout)]
    assert names == ["3.jpg", "linked/1.jpg", "real/2.jpg"]
    assert result.exit_code == 1 and f"{inside}/4.jpg" in result.stderr  # a broken link is named


def test_pipes_in_folders_are_passed_over(ckpt, faces_folder, tmp_path):
    shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "a.jpg")
    result = invoke("predict", "--ckpt", ckpt, tmp_path)
    assert result.exit_code == 0 and result.stdout.startswith(f"{tmp_path}/b.jpg: ")


def test_hidden_files_in_folders_are_passed_over(ckpt, faces_folder, tmp_path):
    """macOS keeps ._NAME beside NAME on foreign disks and in archives. One that is named is read."""
    inside = tmp_path / ".photos"
    for name in ("b.jpg", ".thumbnails/b.jpg", "sub/c.jpg", ".hidden.jpg"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(faces_folder / "aligned/0001_aligned.jpg", inside / name)
    (inside / "._b.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    result = invoke("predict", "--ckpt", ckpt, inside, inside / ".hidden.jpg", "--json")
    assert result.exit_code == 0, result.stderr
    names = [r["image"].removeprefix(f"{inside}/") for r in json.loads(result.stdout)]
    assert names == ["b.jpg", "sub/c.jpg", ".hidden.jpg"]


@pytest.mark.parametrize("suffix", [".heic", ".CR2"])
def test_pictures_that_are_not_read_are_named_once_for_each_folder(ckpt, faces_folder, tmp_path, suffix):
    shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "b.jpg")
    for name in ("a", "c"):
        (tmp_path / f"{name}{suffix}").write_bytes(b"x")
    result = invoke("predict", "--ckpt", ckpt, tmp_path)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert result.stderr == (f"{tmp_path}: 2 other files passed over ({suffix.lower()}); save pictures among them as JPEG or "
                             "PNG\n")


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(ckpt, faces_folder, tmp_path, suffix):
    frames = [Image.open(faces_folder / f"aligned/000{i}_aligned.jpg") for i in (1, 2)]
    frames[0].save(tmp_path / f"still.{suffix}", lossless=True)
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    result = invoke("predict", "--ckpt", ckpt, tmp_path / f"a.{suffix}", tmp_path / f"still.{suffix}", "--json")
    moving, still = (row["p_expressions"] for row in json.loads(result.stdout))
    assert result.stderr == f"{tmp_path}/a.{suffix}: of 1 animation the first frame is taken\n"
    assert list(moving.values()) == pytest.approx(list(still.values()), abs=0.05)
    assert invoke("predict", "--ckpt", ckpt, tmp_path / f"still.{suffix}").stderr == ""


# ---------------------------------------------------------------- outputs


def test_no_aus_and_untrained_aus_are_distinguished(ckpt, faces_folder, tmp_path):
    state = torch.load(ckpt, weights_only=True)
    state["net"]["au.bias"] -= 1000
    torch.save(state, tmp_path / "none.pt")
    torch.save({**state, "trained_aus": []}, tmp_path / "stl.pt")
    face = faces_folder / "aligned/0001_aligned.jpg"
    for name, word, value in (("none", "none", []), ("stl", "not trained", None)):
        text = invoke("predict", "--ckpt", tmp_path / f"{name}.pt", face, "--csv", tmp_path / "p.csv").stdout
        assert text.endswith(f"; AUs: {word}\n")
        (row,) = csv.DictReader((tmp_path / "p.csv").open())
        assert row["aus"] == word
        assert json.loads(invoke("predict", "--ckpt", tmp_path / f"{name}.pt", face, "--json").stdout)[0]["aus"] == value


def test_standard_output_takes_one_of_three(ckpt, many):
    folder = many / "a"
    result = invoke("predict", "--ckpt", ckpt, folder, "--csv", "-")
    table = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["image"] for row in table] == [str(p) for p in sorted(folder.iterdir())]
    rows = rows_of(invoke("predict", "--ckpt", ckpt, folder, "--jsonl", "-").stdout)
    assert [r["expressions"][0]["name"] for r in rows] == [row["expression_1"] for row in table]
    for more in (("--json", "--csv", "-"), ("--csv", "-", "--jsonl", "-"), ("--json", "--jsonl", "-")):
        result = invoke("predict", "--ckpt", ckpt, folder, *more)
        assert result.exit_code == 2
        assert "standard output takes one of --json, --csv - and --jsonl -." in result.stderr


def test_one_file_takes_no_two_outputs(ckpt, many, tmp_path):
    result = invoke("predict", "--ckpt", ckpt, many / "a", "--csv", tmp_path / "p", "--jsonl", tmp_path / "p")
    assert result.exit_code == 2 and "--csv and --jsonl name one file." in result.stderr and not (tmp_path / "p").exists()


def fail_in_the_third_batch(monkeypatch, error=None):
    calls = []

    def fails(net, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise error or mmlfer.InputError("an output is not finite")
        return mmlfer.predict_faces(net, images)

    monkeypatch.setattr(predict, "predict_faces", fails)
    return calls


def test_lines_come_as_they_are_known(ckpt, many, monkeypatch):
    fail_in_the_third_batch(monkeypatch)
    result = invoke("predict", "--ckpt", ckpt, many, "--jsonl", "-")
    assert result.exit_code == 1 and result.stdout.count("\n") == len(rows_of(result.stdout)) == 127
    # of two whole batches: the last waits to see whether its image has more faces


def test_a_pipe_may_close(sketch_34, many):
    command = command_line("predict", "--ckpt", sketch_34, many, "--jsonl", "-")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["image"] == str(many / "a/1.png")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) in (0, 1)


def test_devices_links_and_pipes_are_written_through(ckpt, many, tmp_path):
    assert invoke("predict", "--ckpt", ckpt, many / "a", "--csv", "/dev/null", "--jsonl", "/dev/null").exit_code == 0
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "link.csv").symlink_to("real.csv")
    invoke("predict", "--ckpt", ckpt, many / "a", "--csv", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text().count("\n") == 101
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error, told", [
    (mmlfer.InputError("an output is not finite"), "Error: an output is not finite\n"), (KeyboardInterrupt(), "stopped\n"),
    (MemoryError(), None)])
def test_what_is_predicted_is_kept_whatever_ends_the_work(ckpt, many, tmp_path, monkeypatch, error, told):
    """Whole rows, said to be a part; the table that stood there is not replaced; a part is not written over."""
    calls = fail_in_the_third_batch(monkeypatch, error)
    table, lines = tmp_path / "p.csv", tmp_path / "p.jsonl"
    table.write_text("what stood there\n")
    command = ("predict", "--ckpt", ckpt, many, "--csv", table, "--jsonl", lines)
    result = invoke(*command, "--json")
    assert calls == [64, 64, 64] and (result.exit_code, result.stdout) == (130 if told == "stopped\n" else 1, "")
    images = [str(path) for folder in sorted(many.iterdir()) for path in sorted(folder.iterdir())]
    assert result.stderr == (f"Warning: {table}.part, {lines}.part: the faces of the first 127 of 300 images; those from {images[127]} on "
                             f"are missing\n{told or ''}")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(kept) == ["p.csv", "p.csv.part", "p.jsonl.part"] and kept["p.csv"] == "what stood there\n"
    assert [row["image"] for row in rows_of(kept["p.jsonl.part"])] == images[:127]
    assert [row["image"] for row in csv.DictReader(io.StringIO(kept["p.csv.part"]))] == images[:127] and kept["p.csv.part"][-1] == "\n"
    result = invoke(*command)
    assert (result.exit_code, result.stdout, result.stderr) == (
        1, "", f"Error: {table}.part: has what an interrupted or running call wrote; rename or remove it\n")
    for path in tmp_path.glob("*.part"):
        path.unlink()
    monkeypatch.undo()
    assert invoke(*command).exit_code == 0 and table.read_text().startswith(kept["p.csv.part"][:9000])
    assert {path.name for path in tmp_path.iterdir()} == {"p.csv", "p.jsonl"}


def test_a_stop_after_the_last_image_is_said_too(ckpt, many, tmp_path, monkeypatch):
    write_all = predict.write_all

    def stopped(*args):
        write_all(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "write_all", stopped)
    images = sorted(next(many.iterdir()).iterdir())[:2]
    result = invoke("predict", "--ckpt", ckpt, *images, "--csv", tmp_path / "p.csv")
    assert (result.exit_code, result.stderr) == (130, f"Warning: {tmp_path}/p.csv.part: the faces of the first 2 of 2 images\nstopped\n")


def test_rows_are_there_as_they_are_known_and_a_start_that_fails_leaves_nothing(ckpt, many, tmp_path, monkeypatch):
    there = []

    def answers(net, x):
        there.append((tmp_path / "p.csv.part").read_text())
        return mmlfer.predict_faces(net, x)

    monkeypatch.setattr(predict, "predict_faces", answers)
    assert invoke("predict", "--ckpt", ckpt, many, "--csv", tmp_path / "p.csv").exit_code == 0
    assert [text.count("\n") for text in there] == [1, 64, 128, 192, 256] and {text[-1] for text in there} == {"\n"}
    monkeypatch.setattr(predict, "predict_faces", lambda *_: (_ for _ in ()).throw(mmlfer.InputError("not at all")))
    result = invoke("predict", "--ckpt", ckpt, many, "--csv", tmp_path / "q.csv")
    assert (result.exit_code, result.stderr, os.listdir(tmp_path)) == (1, "Error: not at all\n", ["p.csv"])


@pytest.mark.parametrize("option", ["--csv", "--jsonl"])
def test_an_output_that_is_an_input_is_refused(ckpt, faces_folder, tmp_path, option):
    face = shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "1.jpg")
    copy = shutil.copy(ckpt, tmp_path / "best.pt")
    for output in (face, copy):
        before = Path(output).read_bytes()
        result = invoke("predict", "--ckpt", copy, face, option, output)
        assert (result.exit_code, result.stderr) == (
            1, f"Error: {output}: is an input or lies among the inputs; name another output\n")
        assert Path(output).read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_before_the_work(ckpt, many, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "predict_faces", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "file").write_text("")
    result = invoke("predict", "--ckpt", ckpt, many, "--csv", tmp_path / "file/p.csv")
    assert result.exit_code == 1 and result.stderr == f"Error: {tmp_path}/file/p.csv.part: cannot be written (File exists)\n"


@pytest.mark.parametrize("output", [(), ("--csv", "-")])
def test_on_a_terminal_every_line_stands_above_the_bar(sketch_34, many, photos, output):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    command = command_line("predict", "--ckpt", sketch_34, many, photos / "text.jpg", *output)
    process, seen = subprocess.Popen(command, stdout=terminal, stderr=terminal), b""
    os.close(terminal)
    with contextlib.suppress(OSError):  # when the program has gone
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert process.wait(60) == 1
    lines = [line.split("\r")[-1] for line in seen.decode().replace("\r\n", "\n").split("\n")]  # as they remain on the terminal
    assert len(lines) > 300 and b"predicting: " in seen and not [line for line in lines if "predicting: " in line]


def test_predict_with_closed_standard_error(sketch_34, many):
    command = f"{sys.executable} {ROOT}/mmlfer.py predict --ckpt {sketch_34} {many}/a 2>&-"
    result = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0 and result.stdout.count("\n") == 100


@pytest.mark.parametrize("option", ["--csv", "--jsonl"])
def test_predict_with_closed_standard_output(sketch_34, many, option):
    command = f"{sys.executable} {ROOT}/mmlfer.py predict --ckpt {sketch_34} {many}/a {option} - >&-"
    result = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "Error: standard output is closed; name a file in place of -\n")


@pytest.mark.parametrize("n", [1, 3])
def test_decoding_goes_on_beside_the_net(n):
    made = []

    def numbers():
        for i in range(6):
            made.append(i)
            yield i

    for item in _inputs.ahead(numbers(), n):
        for _ in range(200):
            if len(made) > min(item + n, 5):
                break
            time.sleep(0.01)
        assert made == list(range(min(item + n + 1, 6)))  # n ahead, no more


def test_memory_stays_flat_over_predictions(ckpt, many, tmp_path, monkeypatch):
    """1,200 images take no more memory than 300, because neither images nor predictions are kept."""
    answers = np.full((64, 14), 1 / 14), np.full((64, 32), 0.9)
    monkeypatch.setattr(predict, "predict_faces", lambda net, x: tuple(p[: len(x)] for p in answers))
    peaks = []
    for times in (1, 1, 4):
        tracemalloc.start()
        result = invoke("predict", "--ckpt", ckpt, *[many] * times, "--csv", tmp_path / "p.csv", "--jsonl", "/dev/null")
        peaks.append((tracemalloc.get_traced_memory()[1] - 4 * len(result.output)) / 2**20)
        tracemalloc.stop()
        assert result.exit_code == 0 and (tmp_path / "p.csv").read_text().count("\n") == 1 + 300 * times
    assert peaks[2] - peaks[1] < 5, peaks


# ---------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def photos(faces_folder, tmp_path_factory):
    """Three scenes with two faces, and one without a face."""
    out, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    faces = [np.asarray(Image.open(p)) for p in sorted((faces_folder / "aligned").iterdir())]
    for i in range(3):
        scene, _ = two_face_scene(faces[2 * i : 2 * i + 2], rng, 30, 60)
        Image.fromarray(scene).save(out / f"{i}.png")
    Image.new("RGB", (300, 200), "gray").save(out / "nobody.png")
    (out / "text.jpg").write_text("no photograph")
    return out


def test_faces_of_photographs_from_left_to_right(ckpt, photos, tmp_path):
    result = invoke("predict", "--ckpt", ckpt, "--photos", photos, "--json", "--csv", tmp_path / "p.csv",
                    "--draw", tmp_path / "drawn")
    assert result.exit_code == 1  # for the text
    rows = json.loads(result.stdout)
    assert [(r["image"], r["face"]) for r in rows] == [(f"{photos}/{i}.png", face) for i in range(3) for face in (0, 1)]
    for left, right in zip(rows[::2], rows[1::2]):
        assert left["box"][0] + left["box"][2] < right["box"][0] and 0.6 <= left["score"] <= 1
    for row in rows:
        x, y, width, height = row["box"]
        assert all(x < px < x + width and y < py < y + height for px, py in row["points"]) and not row["small"]
    assert f"no face: {photos}/nobody.png\n" in result.stderr and "1 of 5 images without a face\n" in result.stderr
    assert f"{photos}/text.jpg" in result.stderr
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [t["aus"] for t in table] == ["+".join(str(a["au"]) for a in r["aus"]) or "none" for r in rows]
    for t, r in zip(table, rows, strict=True):
        assert (int(t["face"]), float(t["score"]), t["small"]) == (r["face"], r["score"], "0")
        assert [float(t[side]) for side in ("left", "top", "width", "height")] == r["box"]
        points = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")
        assert [[float(t[f"{point}_{axis}"]) for axis in "xy"] for point in points] == r["points"]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "nobody.jpg"]


def test_photographs_without_a_face_are_no_failure(ckpt, photos, tmp_path):
    result = invoke("predict", "--ckpt", ckpt, "--photos", *[photos / "nobody.png"] * 2, "--jsonl",
                    tmp_path / "p.jsonl", "--csv", tmp_path / "p.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith(2 * f"no face: {photos}/nobody.png\n" + "2 of 2 images without a face\n")
    assert (tmp_path / "p.jsonl").read_text() == "" and (tmp_path / "p.csv").read_text().count("\n") == 1


def test_photographs_are_aligned_as_the_checkpoints_faces(ckpt, photos, tmp_path, monkeypatch):
    """With a checkpoint whose faces were upside down, it is the same crop, upside down."""
    seen, state = [], torch.load(ckpt, weights_only=True)
    monkeypatch.setattr(predict, "predict_faces", lambda net, x: seen.append(x) or mmlfer.predict_faces(net, x))
    template = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.7]])
    for kept in (template, 1 - template):
        torch.save({**state, "template": kept.tolist()}, tmp_path / "best.pt")
        assert invoke("predict", "--ckpt", tmp_path / "best.pt", "--photos", photos / "0.png").exit_code == 0
    upright, heads_down = (x.int() for x in seen)
    assert (heads_down.flip(2, 3) - upright).abs().max() <= 2 < 20 < (heads_down - upright).abs().float().mean()


def test_photographs_alone_and_together_give_the_same(ckpt, photos):
    together = json.loads(invoke("predict", "--ckpt", ckpt, "--photos", photos, "--json").stdout)
    alone = json.loads(invoke("predict", "--ckpt", ckpt, "--photos", photos / "1.png", "--json").stdout)
    for a, b in zip(alone, together[2:4], strict=True):
        assert a["points"] == b["points"] and a["box"] == b["box"]
        assert [e["p"] for e in a["expressions"]] == pytest.approx([e["p"] for e in b["expressions"]], abs=1e-5)


def test_small_faces_are_marked(ckpt, faces_folder, tmp_path):
    faces = [np.asarray(Image.open(p)) for p in sorted((faces_folder / "aligned").iterdir())[:2]]
    scene, placed = two_face_scene(faces, np.random.default_rng(0), 8, 8.5)
    Image.fromarray(scene[:120]).save(tmp_path / "s.png")
    result = invoke("predict", "--ckpt", ckpt, "--photos", tmp_path / "s.png", "--csv", tmp_path / "p.csv")
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert result.exit_code == 0 and len(table) >= 1 and {row["small"] for row in table} == {"1"}
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        f"{tmp_path}/s.png, face {i} (small)" for i in range(len(table))]


def test_drawing_among_the_inputs_is_refused(ckpt, photos, tmp_path):
    for inputs, out in (([photos], photos / "drawn"), ([photos / "0.png"], photos), ([photos], photos)):
        result = invoke("predict", "--ckpt", ckpt, "--photos", *inputs, "--draw", out)
        assert (result.exit_code, result.stderr) == (
            1, f"Error: {out}: is an input or lies among the inputs; name another output\n")
    assert not (photos / "drawn").exists()
    links = tmp_path / "links"
    links.mkdir()
    (links / "0.png").symlink_to(photos / "0.png")
    result = invoke("predict", "--ckpt", ckpt, "--photos", links, "--draw", photos)
    assert result.exit_code == 1 and f"{photos}: is an input or lies among the inputs" in result.stderr
    for option in ("--draw", "--like"):
        result = invoke("predict", "--ckpt", ckpt, photos, option, photos / "drawn")
        assert result.exit_code == 2 and "--like and --draw go with --photos." in result.stderr


def test_drawings_go_to_a_new_folder(ckpt, photos, tmp_path):
    """A picture of the user that has the name of a drawing stays as it is."""
    (tmp_path / "0.jpg").write_bytes(b"mine")
    command = ("predict", "--ckpt", ckpt, "--photos", photos / "0.png", "--draw")
    for place in (tmp_path, tmp_path / "0.jpg"):
        result = invoke(*command, place)
        assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr == f"Error: {tmp_path}/0.jpg: not an empty folder; name a new one\n"
    assert invoke(*command, tmp_path).stderr == f"Error: {tmp_path}: not an empty folder; name a new one\n"
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("0.jpg", b"mine")]
    (tmp_path / "empty").mkdir()
    assert invoke(*command, tmp_path / "empty").exit_code == 0 and (tmp_path / "empty/0.jpg").exists()


def test_the_tables_name_each_photographs_drawing(ckpt, photos, tmp_path):
    """Two photographs with one name and different sizes: the drawing in each row has its photograph's shape."""
    for name, source, zoom in (("a/p.png", "0.png", 1), ("b/p.png", "1.png", 2)):
        (tmp_path / name).parent.mkdir()
        image = Image.open(photos / source)
        image.resize((image.width * zoom, image.height), Image.BICUBIC).save(tmp_path / name)
    result = invoke("predict", "--ckpt", ckpt, "--photos", tmp_path / "a/p.png", tmp_path / "b/p.png", "--json", "--draw",
                    tmp_path / "drawn", "--csv", tmp_path / "p.csv", "--jsonl", tmp_path / "p.jsonl")
    assert result.exit_code == 0, result.output
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    named = [{(row["image"], row["drawing"]) for row in rows} for rows in (table, lines, json.loads(result.stdout))]
    assert named[0] == named[1] == named[2] and len(named[0]) == len({image for image, _ in named[0]}) >= 1
    for image, drawing in named[0]:
        (width, height), (w, h) = Image.open(image).size, Image.open(drawing).size
        assert w / h == pytest.approx(width / height, rel=0.02), image
    assert "drawing" not in json.loads(invoke("predict", "--ckpt", ckpt, "--photos", photos / "0.png", "--json").stdout)[0]


def test_what_is_aligned_is_what_the_net_sees(ckpt, photos, monkeypatch):
    """--photos gives the net the crop that `crop` writes, RGB."""
    seen = []
    monkeypatch.setattr(predict, "predict_faces", lambda net, x: seen.append(x) or mmlfer.predict_faces(net, x))
    invoke("predict", "--ckpt", ckpt, "--photos", photos / "0.png")
    (x,) = seen
    image = np.asarray(Image.open(photos / "0.png"))
    assert x.shape == (2, 3, 32, 32) and x.dtype == torch.uint8
    from mmlfer_commands.crop import find_faces

    for crop, face in zip(x.permute(0, 2, 3, 1).numpy(), find_faces(image)):
        left, top = (int(v) for v in face.points[2] - 5)  # around the nose, by colour
        patch = image[top : top + 10, left : left + 10].reshape(-1, 3).mean(0)
        assert math.dist(crop[16:20, 14:18].reshape(-1, 3).mean(0), patch) < 40
