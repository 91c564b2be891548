"""Stand-in faces drawn from AUs."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, invoke, write_labels_as
from PIL import Image

import mmlfer
from mmlfer_commands import _drawing, _rafce, _stats, synth

AU = mmlfer.LABEL_FILES[2]


def test_synth_writes_rafces_layout_and_the_same_twice(faces_folder, tmp_path):
    synth.synthesize(tmp_path / "a", 60, "lab", None, 32, 0)
    names = sorted(p.name for p in (faces_folder / "aligned").iterdir())
    assert names == [f"{i:04d}_aligned.jpg" for i in range(1, 61)]
    for path in [faces_folder / "aligned" / n for n in names] + [faces_folder / n for n in mmlfer.LABEL_FILES]:
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(faces_folder)).read_bytes()
    synth.synthesize(tmp_path / "b", 60, "lab", None, 32, 1)
    assert (tmp_path / "b" / AU).read_text() != (faces_folder / AU).read_text()
    sides = re.findall(r"[LR]\d", (faces_folder / AU).read_text())
    assert len(sides) > 5


def test_further_test_faces_leave_the_others_byte_for_byte(faces_folder, tmp_path):
    """30 and 5 after the 60 of the fixture."""
    for n in (30, 5):
        result = invoke("synth", tmp_path / str(n), "--n", 60, "--test", n, "--stats", "lab", "--size", 32)
        assert result.exit_code == 0, result.output
    rows = {}
    for place in (faces_folder, tmp_path / "30", tmp_path / "5"):
        rows[place] = [(place / file).read_text().splitlines() for file in mmlfer.LABEL_FILES]
        pictures = sorted((place / "aligned").iterdir())
        assert [path.name for path in pictures] == [f"{i + 1:04d}_aligned.jpg" for i in range(len(rows[place][0]))]
        for path in pictures[:60]:
            assert path.read_bytes() == (faces_folder / "aligned" / path.name).read_bytes()
    old, new, few = rows.values()
    assert [column[:60] for column in new] == old == [column[:60] for column in few]
    assert [len(column) for column in new] == [90] * 3
    assert new[1][60:] == [f"{i:04d}.jpg 1" for i in range(61, 91)]  # all of them to test
    assert len({row.split()[1] for row in new[2][60:]} - {row.split()[1] for row in old[2]}) > 20  # other labels than those
    assert (tmp_path / "30/aligned/0061_aligned.jpg").read_bytes() != (tmp_path / "30/aligned/0001_aligned.jpg").read_bytes()


def test_further_test_faces_go_with_drawn_labels_alone(faces_folder, tmp_path):
    result = invoke("synth", tmp_path / "a", "--labels", faces_folder, "--test", 3)
    assert result.exit_code == 2 and "--labels says which faces to draw: no --test." in result.stderr
    assert not (tmp_path / "a").exists()


def test_drawn_labels_follow_proportions_and_statistics():
    table = _stats.load_stats("wild")
    y_emo, aus = synth.draw_labels(20000, table, 0)
    assert np.abs(np.bincount(y_emo, minlength=14) / 20000 - np.array(_rafce.RAFCE_TOTALS) / 4549).max() < 0.01
    rows = [{number for number, _ in _rafce.parse_aus(text)} for text in aus]
    surprised = [r for r, k in zip(rows, y_emo) if k == 0]
    assert np.mean([12 in r for r in surprised]) == pytest.approx(0.58 * 0.99, abs=0.03)
    assert sum(not r for r in rows) > 100
    sides = [letters for text in aus for _, letters in _rafce.parse_aus(text)]
    assert [sides.count(side) / len(sides) for side in ("", "L", "R")] == pytest.approx([0.9, 0.05, 0.05], abs=0.004)


def test_every_au_of_table_1_changes_the_drawing_on_its_side():
    columns = np.flatnonzero((_stats.load_stats("wild") + _stats.load_stats("lab")).any(0))
    aus = [mmlfer.AUS[j] for j in columns]
    assert len(aus) == 17
    draw = lambda a: np.asarray(_drawing.draw_face(a, np.random.default_rng(5), 112), int)  # noqa: E731
    neutral = draw({})
    for au in aus:
        changed = np.abs(draw({au: (1, 1)}) - neutral).max(2) > 24
        assert changed.sum() > 60, au
    half = np.abs(draw({1: (0, 1)}) - neutral).max(2) > 24  # the subject's left: right in the picture
    assert half[:, 66:].sum() > 40 and half[:, :40].sum() == 0


def test_a_drawn_person_stays_the_same_and_the_moment_changes(people, tmp_path):
    synth.synthesize_people(tmp_path / "again", 8, 5, "lab", 32, 0)
    faces = {}
    for folder in sorted(people.iterdir()):
        assert [p.name for p in sorted(folder.iterdir())] == [f"{i:03d}.jpg" for i in range(1, 6)]
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / "again" / folder.name / path.name).read_bytes()
        faces[folder.name] = np.array([mmlfer.read_image(p).astype(float) for p in sorted(folder.iterdir())])
    assert list(faces) == [f"{i:05d}" for i in range(1, 9)]
    middle = {name: f[:, 16:19, 8:24].mean((1, 2)) for name, f in faces.items()}  # skin beside the nose: (5, 3)
    within = np.mean([m.std(0).mean() for m in middle.values()])
    between = np.std([m.mean(0) for m in middle.values()], axis=0).mean()
    assert between > 1.3 * within
    corners = np.array([f[:, 0, 0] for f in faces.values()])  # the wall behind changes with the moment
    assert corners.std(1).mean() > 30
    options = ("synth", tmp_path / "x", "--people", 2)
    for option in (("--labels", people), ("--au-noise", 0.1), ("--test", 3)):
        assert "--people has no label files: no --labels, --au-noise or --test" in invoke(*options, *option).stderr
    assert invoke(*options, "--per-person", 1, "--size", 32).stdout == f"{tmp_path}/x: 2 people of 1 faces\n"
    assert "not an empty folder" in invoke(*options).stderr


def test_synth_draws_one_face_from_one_generator_as_ever():
    """Without a generator for the person, all is drawn from one generator, in the order of the drawing."""
    aus = {12: (1, 1), 25: (0.7, 0.7)}
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    assert _drawing.draw_face(aus, one, 32).tobytes() == _drawing.draw_face(aus, two, 32, two).tobytes()
    assert one.random() == two.random()


def test_synth_draws_given_labels(tmp_path):
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, "0007.jpg 5\n0009.jpg 1\n", "0007.jpg 0\n0009.jpg 1\n", "0007.jpg L12+43\n0009.jpg null\n")
    result = invoke("synth", tmp_path / "out", "--labels", source, "--size", 64)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out/aligned").iterdir()) == ["0007_aligned.jpg", "0009_aligned.jpg"]
    assert (tmp_path / "out" / AU).read_bytes() == (source / AU).read_bytes()
    assert Image.open(tmp_path / "out/aligned/0007_aligned.jpg").size == (64, 64)


def test_names_that_say_aligned_already(tmp_path):
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, "0007_aligned.jpg 5\n", "0007_aligned.jpg 0\n", "0007_aligned.jpg 12\n")
    assert invoke("synth", tmp_path / "out", "--labels", source, "--size", 32).exit_code == 0
    faces = mmlfer.load_images(_rafce.load_labels(tmp_path / "out"), tmp_path / "out", 32)
    assert len(faces.images) == 1 and (tmp_path / "out/aligned/0007_aligned.jpg").exists()


@pytest.mark.parametrize("text,right,left", [("12", 1, 1), ("L12", 0, 1), ("12R", 1, 0), ("LT12", 0, 1), ("T12", 1, 1)])
def test_a_side_moves_alone(text, right, left):
    a = np.random.default_rng(0).uniform(0.6, 1.15)
    assert _drawing.strengths(_rafce.parse_aus(text), np.random.default_rng(0)) == {12: (a * right, a * left)}


@pytest.mark.parametrize("seed", range(4))
def test_of_an_au_named_twice_the_stronger_moves_each_side(seed):
    a, b, c = np.random.default_rng(seed).uniform(0.6, 1.15, 3)  # the draws of the tokens, in their order
    for text, right, left in (("L12+R12", b, a), ("R12+L12", a, b), ("12+L12", a, max(a, b)), ("L12+12", b, max(a, b)),
                              ("L12+L12+12", c, max(a, b, c)), ("4+L12+R12", c, b)):
        moved = _drawing.strengths(_rafce.parse_aus(text), np.random.default_rng(seed))
        assert moved[12] == (right, left), text
    assert moved[4] == (a, a)


def test_both_sides_of_l12_r12_are_drawn(tmp_path):
    def changed(aus):
        synth.write_face((tmp_path / "f.png", aus, 112, 7))
        return np.asarray(Image.open(tmp_path / "f.png").convert("L"), int)

    for aus in ("L1+R1", "R1+L1"):
        one, both = changed(aus[:2]), changed(aus)
        half = slice(0, 50) if aus[0] == "L" else slice(62, 112)  # of the picture: the side that aus[:2] leaves
        assert (np.abs(both - one)[:, half] > 24).sum() > 30, aus


def test_a_face_is_of_its_row_and_seed_alone(tmp_path):
    """The recipe of the drawing, written again: strengths first, then everything else, from one stream."""
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, "9.jpg 5\n2.jpg 1\n", "2.jpg 0\n9.jpg 1\n", "2.jpg null\n9.jpg L12+43\n")
    for seed in (0, 5):
        invoke("synth", tmp_path / str(seed), "--labels", source, "--size", 48, "--seed", seed)
        for i, (name, numbers) in enumerate((("9", (12, 43)), ("2", ()))):
            rng = np.random.default_rng([seed, 2, i])
            amounts = {n: rng.uniform(0.6, 1.15) for n in numbers}
            face = _drawing.draw_face({n: (a * (n != 12), a) for n, a in amounts.items()}, rng, 48)
            face.save(tmp_path / "f.jpg", quality=92)
            assert (tmp_path / f"{seed}/aligned/{name}_aligned.jpg").read_bytes() == (tmp_path / "f.jpg").read_bytes()
    drawn = {p.read_bytes() for p in tmp_path.glob("[05]/aligned/*")}
    assert len(drawn) == 4


def test_many_faces_by_several_processes_without_standard_error(tmp_path):
    """With `python mmlfer.py` and standard error closed, the bytes are those that one process draws here."""
    out = tmp_path / "faces"
    command = [sys.executable, ROOT / "mmlfer.py", "synth", out, "--n", "230", "--size", "32", "--stats", "lab", "--seed", "3"]
    result = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], capture_output=True, text=True)
    assert result.returncode == 0 and f"{out}: 230 images" in result.stdout and not result.stderr
    rows = [line.split() for line in (out / AU).read_text().splitlines()]
    assert [name for name, _ in rows] == [f"{i:04d}.jpg" for i in range(1, 231)]
    assert len(list((out / "aligned").iterdir())) == 230 and sorted(p.name for p in out.iterdir()) == [*sorted(mmlfer.LABEL_FILES), "aligned"]
    for i in (0, 1, 4, 199, 200, 201, 229):
        synth.write_face((tmp_path / "one.jpg", rows[i][1], 32, [3, 2, i]))
        assert (out / f"aligned/{i + 1:04d}_aligned.jpg").read_bytes() == (tmp_path / "one.jpg").read_bytes(), i


def test_jobs_come_back_in_order_from_several_processes():
    assert list(synth.in_processes(2, abs, range(-300, 0), 7)) == list(range(300, 0, -1))
    with pytest.raises(TypeError):
        list(synth.in_processes(2, abs, [1, None, 2]))


def test_jobs_that_have_not_begun_are_dropped_when_it_is_stopped():
    jobs = synth.in_processes(1, time.sleep, [0] + [0.3] * 100)
    next(jobs)
    start = time.monotonic()
    jobs.close()
    assert time.monotonic() - start < 10  # not 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_drawing_can_be_repeated_and_leaves_no_process(tmp_path, number):
    out = tmp_path / "faces"
    command = [sys.executable, ROOT / "mmlfer.py", "synth", out, "--n", "2000", "--size", "96"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".part/aligned/*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the program and its processes
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=60)  # ends once no process holds its standard error
    if number == signal.SIGINT:
        assert (process.returncode, error) == (130, "stopped\n") and not list(out.iterdir())
    else:
        assert process.returncode == -number and not (out / AU).exists()
    result = invoke("synth", out, "--n", 2, "--size", 32)
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in out.rglob("*")) == sorted([*mmlfer.LABEL_FILES, "aligned", "0001_aligned.jpg", "0002_aligned.jpg"])


def test_synth_refuses_a_folder_in_use_and_bad_labels(tmp_path, faces_folder):
    result = invoke("synth", faces_folder, "--n", 3)
    assert result.exit_code == 1 and result.stderr == f"Error: {faces_folder}: not an empty folder; name a new one\n"
    result = invoke("synth", tmp_path / "new", "--labels", tmp_path)
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/RAFCE_emolabel.txt: No such file")


# ---------------------------------------------------------------- AU labels gone wrong


def rows_of(folder, file):
    return dict(line.split() for line in (folder / file).read_text().splitlines())


def test_au_noise_exchanges_the_aus_of_training_rows_alone(tmp_path):
    options = ("--n", 90, "--size", 32, "--seed", 3)
    assert invoke("synth", tmp_path / "clean", *options).exit_code == 0
    assert invoke("synth", tmp_path / "noisy", *options, "--au-noise", 0.5).exit_code == 0
    clean, noisy = (rows_of(tmp_path / name, AU) for name in ("clean", "noisy"))
    files = [p.relative_to(tmp_path / "clean") for p in (tmp_path / "clean").rglob("*.*") if p.name != AU]
    assert len(files) == 92  # faces, expressions and partition are the same
    assert all((tmp_path / "clean" / f).read_bytes() == (tmp_path / "noisy" / f).read_bytes() for f in files)
    split = rows_of(tmp_path / "clean", mmlfer.LABEL_FILES[1])
    train = [name for name in clean if split[name] == "0"]
    changed = [name for name in clean if clean[name] != noisy[name]]
    assert set(changed) <= set(train) and list(noisy) == list(clean)
    assert round(0.5 * len(train)) * 0.8 < len(changed) <= round(0.5 * len(train))  # some strings are alike
    assert sorted(noisy.values()) == sorted(clean.values())  # no AU is named more or less often


def test_au_noise_has_its_share_and_its_seed(tmp_path):
    """Of 200 rows that all differ, exactly this share changes, and each gets another row's string."""
    names = [f"{i}.jpg" for i in range(200)]
    aus = ["+".join(str(mmlfer.AUS[j]) for j in range(8) if i >> j & 1) or "null" for i in range(200)]
    results = []
    for folder, share, seed in (("a", 0.3, 0), ("b", 0.3, 0), ("c", 0.3, 1), ("d", 1.0, 0), ("e", 0.0, 0)):
        (tmp_path / folder).mkdir()
        write_labels_as(tmp_path / folder, "", "".join(f"{n} {2 * (i >= 150)}\n" for i, n in enumerate(names)),
                        "".join(f"{n} {a}\n" for n, a in zip(names, aus)))
        synth.mislabel(tmp_path / folder, share, seed)
        results.append(list(rows_of(tmp_path / folder, AU).values()))
    changed = [sum(a != b for a, b in zip(aus, result)) for result in results]
    assert changed == [45, 45, 45, 150, 0] and results[0] == results[1] != results[2]
    assert all(result[150:] == aus[150:] and sorted(result) == sorted(aus) for result in results)


def test_au_noise_of_given_labels_draws_the_right_aus(tmp_path):
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, "1.jpg 5\n2.jpg 1\n", "1.jpg 0\n2.jpg 0\n", "1.jpg 12\n2.jpg 43\n")
    for name, share in (("clean", 0), ("noisy", 1)):
        assert invoke("synth", tmp_path / name, "--labels", source, "--size", 32, "--au-noise", share).exit_code == 0
    assert rows_of(tmp_path / "noisy", AU) == {"1.jpg": "43", "2.jpg": "12"}
    for i in (1, 2):
        assert len({(tmp_path / name / f"aligned/{i}_aligned.jpg").read_bytes() for name in ("clean", "noisy")}) == 1


def test_au_noise_says_the_share_that_differs(tmp_path):
    """Most rows are alike; the printed share is compared with a count over the two files."""
    source = tmp_path / "labels"
    source.mkdir()
    aus = ["12"] * 14 + ["43", "1+2", "4", "null"]
    write_labels_as(source, "".join(f"{i}.jpg {i % 14}\n" for i in range(18)), "".join(f"{i}.jpg {2 * (i == 3)}\n" for i in range(18)),
                    "".join(f"{i}.jpg {row}\n" for i, row in enumerate(aus)))
    result = invoke("synth", tmp_path / "out", "--labels", source, "--size", 32, "--au-noise", 0.7)
    differ = sum(a != b for a, b in zip(aus, rows_of(tmp_path / "out", AU).values()))
    assert result.exit_code == 0 and 0 < differ < 12 == round(0.7 * 17)
    assert result.stdout.startswith(f"AU noise: 12 of 17 training rows got another row's AUs; {differ} "
                                    f"({100 * differ / 17:.1f} % of 17) differ from before\n")


@pytest.mark.parametrize("share, given", [(0.001, 0), (0.2, 1), (1, 4)])
def test_au_noise_that_changes_nothing_is_refused(tmp_path, share, given):
    """No row is chosen, one row gets its own AUs, or all rows are equal."""
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, *("".join(f"{i}.jpg {value}\n" for i in range(4)) for value in ("5", "0", "12")))
    result = invoke("synth", tmp_path / "out", "--labels", source, "--size", 32, "--au-noise", share)
    assert (result.exit_code, result.stdout, result.stderr) == (
        1, "", f"Error: --au-noise {share:g} changes no AU labels ({given} of 4 training rows got another row's AUs); "
               "give a larger share\n")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan", "x"])
def test_au_noise_is_a_share(tmp_path, share):
    result = invoke("synth", tmp_path / "out", f"--au-noise={share}")
    assert result.exit_code == 2 and "--au-noise" in result.stderr and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the drawing as it was

SIX = {0: (1, 2, 5, 25), 1: (4, 7, 9, 23), 2: (6, 12, 10, 25, 16, 17), 3: (15, 17, 20, 24, 16), 4: (14, 18, 22, 26),
       7: (27, 43, 39, 28, 19)}  # seed: AUs; one has long hair, one none


def test_faces_are_drawn_as_those_of_the_results_were():
    """Against a picture that was looked at: AUs of either side, by turns the right and the left one more. In means of 3x3
    pixels what JPEG loses is below 4 of 255. Another drawing, of another Pillow too, would be another data set."""
    drawn = []
    for seed, aus in SIX.items():
        strength = {au: ((1.0, 0.5), (0.7, 1.0))[i % 2] for i, au in enumerate(aus)}
        face = _drawing.draw_face(strength, np.random.default_rng(seed), 96, np.random.default_rng([seed, 1]))
        drawn.append(np.asarray(face, float))
    before = np.asarray(Image.open(ROOT / "tests/figures/drawn.jpg"), float)
    off = (np.hstack(drawn) - before).reshape(32, 3, 192, 3, 3).mean((1, 3))
    assert abs(off).max() < 6
