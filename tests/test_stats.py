"""The AU analysis of Sec. 3.2."""

import shutil

import numpy as np
import pytest
import yaml
from conftest import invoke, write_labels_as
from PIL import Image
from reference import AUS, EMOTIONS

import mmlfer
from mmlfer_commands import _figures, _rafce, _stats, stats


def naive_frequencies(folder):
    emo, rows = {}, {}
    for line in (folder / "RAFCE_emolabel.txt").read_text().splitlines():
        name, k = line.split()
        emo[name] = int(k)
    for line in (folder / "RAFCE_AUlabel.txt").read_text().splitlines():
        name, text = line.split()
        numbers = set() if text == "null" else {int(t.strip("LRTB")) for t in text.split("+")}
        rows.setdefault(emo[name], []).append(numbers)
    return {(mmlfer.EMOTIONS[k], au): sum(au in r for r in of_k) / len(of_k)
            for k, of_k in rows.items() for au in mmlfer.AUS}


def test_statistics_match_a_naive_count(faces_folder, tmp_path):
    labels = tmp_path / "labels"  # label files alone, no images
    labels.mkdir()
    for name in mmlfer.LABEL_FILES:
        shutil.copy(faces_folder / name, labels)
    result = invoke("stats", "--data", labels, "--out", tmp_path / "s.yaml", "--against", "wild")
    assert result.exit_code == 0, result.output
    naive, written = naive_frequencies(faces_folder), yaml.safe_load((tmp_path / "s.yaml").read_text())
    for (emotion, au), p in naive.items():
        assert written[emotion].get(au, 0) == pytest.approx(p if p >= 0.2 else 0, abs=1e-4)
    header, _, first = result.stdout.splitlines()[:3]
    for column, cell in list(zip(header.split("|"), first.split("|")))[2:-1]:
        p = naive["happily surprised", int(column.split()[1])]
        assert cell.strip() == ("" if p < 0.2 else f"**{100 * p:.0f}**" if p >= 0.7 else f"{100 * p:.0f}")
    assert "here: " in result.output and "there: 13 observed AUs; AU 12 in 10 and AU 25 in 14" in result.output
    assert "0.73 prototypical + 2.12 variant = 2.85 observed" in result.output


def test_below_each_row_is_the_row_that_it_is_compared_with(faces_folder):
    lines = [line.split("|")[1:-1] for line in invoke("stats", "--data", faces_folder, "--against", "lab").stdout.splitlines()[:30]]
    header, lab = lines[0], yaml.safe_load((mmlfer.HERE / "stats/lab.yaml").read_text())
    for k, emotion in enumerate(EMOTIONS):
        assert lines[2 + 2 * k][0].strip().startswith(f"{emotion} (") and lines[3 + 2 * k][0].strip() == f"{emotion}*"
        told = {int(column.split()[1]): float(cell.strip(" *")) for column, cell in zip(header[1:], lines[3 + 2 * k][1:]) if cell.strip()}
        assert told == pytest.approx({au: 100 * p for au, p in lab[emotion].items() if p >= 0.2 and au != 11})


def test_written_statistics_name_what_was_counted(faces_folder, tmp_path):
    assert invoke("stats", "--data", faces_folder, "--split", "val", "--out", tmp_path / "s.yaml").exit_code == 0
    first, _, *rows = (tmp_path / "s.yaml").read_text().splitlines()
    labels = _rafce.load_labels(faces_folder).of("val")
    assert first == (f"# p(AU active | compound expression) of {faces_folder.name} (val), {len(labels.names)} images, by mmlfer "
                     "stats.")
    assert [row.split("# ")[1] for row in rows] == [f"{int((labels.y_emo == k).sum())} images" for k in range(14)]


def test_at_20_and_70_percent_exactly():
    p = np.array([[0.7, 0.69, 0.2, 0.19]])
    assert [stats.cell(x) for x in p[0]] == ["**70**", "69", "20", ""]
    assert stats.au_sums(p) == pytest.approx([0.7, 0.89, 1.59])


def test_statistics_written_are_statistics_read(tmp_path):
    _rafce.write_labels(tmp_path, *zip(*[(f"{i}.jpg", i % 14, 0, "12+25" if i < 28 else "4") for i in range(42)]))
    assert invoke("stats", "--data", tmp_path, "--out", tmp_path / "s.yaml").exit_code == 0
    table = _stats.load_stats(str(tmp_path / "s.yaml"))
    assert np.allclose(table[:, [mmlfer.AUS.index(a) for a in (12, 25, 4)]], [[0.6667, 0.6667, 0.3333]] * 14)


def test_an_au_of_20_percent_exactly_is_written_and_read(tmp_path):
    rows = [(f"{i}.jpg", i % 14, 0, "12+4" if i < 14 else "12") for i in range(70)]
    _rafce.write_labels(tmp_path, *zip(*rows))
    assert invoke("stats", "--data", tmp_path, "--out", tmp_path / "s.yaml").exit_code == 0
    assert yaml.safe_load((tmp_path / "s.yaml").read_text()) == dict.fromkeys(mmlfer.EMOTIONS, {4: 0.2, 12: 1.0})
    assert (_stats.load_stats(str(tmp_path / "s.yaml"))[:, mmlfer.AUS.index(4)] == 0.2).all()


def test_lab_against_wild_gives_the_papers_observations():
    lab, wild = _stats.load_stats("lab"), _stats.load_stats("wild")
    assert stats.observations(wild, [1] * 14, lab, mmlfer.RAFCE).splitlines() == [
        "here: 13 observed AUs; AU 12 in 10 and AU 25 in 14 expressions; mean activated AUs 0.73 prototypical + 2.12 "
        "variant = 2.85 observed",
        "observed here only: AU 16, 27", "observed there only: AU 7, 15, 20, 24",
        "there: 15 observed AUs; AU 12 in 4 and AU 25 in 11 expressions; mean activated AUs "
        "{:.2f} prototypical + {:.2f} variant = {:.2f} observed".format(*stats.au_sums(lab))]
    for (low, high), table in (((0.2, 0.7), wild), ((0.2, 0.7), lab)):
        sums = [sum(p for p in row if p >= high) for row in table], [sum(p for p in row if low <= p < high) for row in table]
        assert stats.au_sums(table) == pytest.approx([np.mean(sums[0]), np.mean(sums[1]), np.mean(sums[0]) + np.mean(sums[1])])


def test_expressions_without_images_or_aus_are_named(tmp_path):
    rows = [f"{i}.jpg" for i in range(30)]  # expressions 0..11; of 3 every AU is below 20 %, 12 and 13 have no image
    _rafce.write_labels(tmp_path, rows, [i % 12 for i in range(30)], [0] * 30, ["null" if i % 12 == 3 else "12" for i in range(30)])
    result = invoke("stats", "--data", tmp_path, "--plot", tmp_path / "h.png", "--out", tmp_path / "s.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == ("no observed AU, and so left out of L^AM: sadly angry (3 images), happily fearful "
                                              "(0 images), happily sad (0 images)")
    assert "mean activated AUs 0.92 prototypical" in result.stdout and "nan" not in result.output.lower()
    assert [k for k, row in enumerate(_stats.load_stats(str(tmp_path / "s.yaml"))) if not row.any()] == [3, 12, 13]


def test_statistics_of_labels_without_any_au(tmp_path):
    write_labels_as(tmp_path, "1.jpg 0\n", "1.jpg 0\n", "1.jpg null\n")
    result = invoke("stats", "--data", tmp_path, "--plot", tmp_path / "h.png")
    assert result.exit_code == 1 and result.stderr.endswith(f"Error: {tmp_path}/h.png: nothing to draw, no AU is at 20 % or more\n")
    assert "here: 0 observed AUs; AU 12 in 0 and AU 25 in 0 expressions" in result.stdout
    result = invoke("stats", "--data", tmp_path, "--split", "val")
    assert result.exit_code == 1 and result.stderr == f"Error: {tmp_path}/RAFCE_partition.txt: no images with an expression, --split val\n"


def test_statistics_of_one_partition(faces_folder, tmp_path):
    labels = _rafce.load_labels(faces_folder)
    for split, code in (("train", 0), ("test", 1), ("val", 2)):
        result = invoke("stats", "--data", faces_folder, "--split", split)
        n = [int(((labels.split == code) & (labels.y_emo == k)).sum()) for k in range(14)]
        assert [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:16]] == [
            f"{e} ({c})" for e, c in zip(mmlfer.EMOTIONS, n)]


def test_yaml_on_standard_output_stands_alone(faces_folder, tmp_path):
    assert invoke("stats", "--data", faces_folder, "--out", tmp_path / "s.yaml").exit_code == 0
    result = invoke("stats", "--data", faces_folder, "--out", "-")
    assert result.exit_code == 0 and result.stdout == (tmp_path / "s.yaml").read_text()
    assert "| happily surprised" in result.stderr
    result = invoke("stats", "--data", faces_folder, "--plot", "-")
    assert result.exit_code == 0 and result.stdout_bytes.startswith(b"\x89PNG") and "| happily surprised" in result.stderr


def test_one_file_takes_no_two_outputs(faces_folder, tmp_path):
    result = invoke("stats", "--data", faces_folder, "--out", tmp_path / "s.png", "--plot", tmp_path / "s.png")
    assert result.exit_code == 2 and "--out and --plot name one file." in result.stderr and not (tmp_path / "s.png").exists()


@pytest.mark.parametrize("option", ["--out", "--plot"])
@pytest.mark.parametrize("name", [*mmlfer.LABEL_FILES, "aligned/0001_aligned.jpg", "mine.yaml"])
def test_outputs_over_inputs_are_refused(faces_folder, tmp_path, option, name):
    data = tmp_path / "rafce"
    shutil.copytree(faces_folder, data)
    shutil.copy(mmlfer.HERE / "stats/wild.yaml", data / "mine.yaml")
    before = (data / name).read_bytes()
    result = invoke("stats", "--data", data, "--against", data / "mine.yaml", option, data / name)
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {data / name}: is an input or lies among the inputs; name another output\n")
    assert (data / name).read_bytes() == before and not result.stdout


@pytest.mark.parametrize("name", ["odd\nname: {12: 1.0}", "b\udcffc"])
def test_a_folders_name_stays_within_its_comment(faces_folder, tmp_path, name):
    data = tmp_path / name
    shutil.copytree(faces_folder, data)
    result = invoke("stats", "--data", data, "--out", tmp_path / "s.yaml", "--plot", tmp_path / "h.png")
    assert result.exit_code == 0, result.output
    assert list(yaml.safe_load((tmp_path / "s.yaml").read_text())) == list(mmlfer.EMOTIONS)


def test_heat_map_shows_both_tables(faces_folder, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(stats, "save_figure", lambda figure, path: kept.append(figure))
    result = invoke("stats", "--data", faces_folder, "--against", "lab", "--plot", tmp_path / "h.png")
    assert result.exit_code == 0, result.output
    here, there = [axis for axis in kept[0].axes if axis.images]
    naive = naive_frequencies(faces_folder)
    lab = yaml.safe_load((mmlfer.HERE / "stats/lab.yaml").read_text())
    aus = [int(label.get_text().removeprefix("AU ")) for label in here.get_xticklabels()]
    for axis, p_of, title in ((here, lambda e, au: naive.get((e, au), 0), f"{faces_folder.name} (all)"),
                              (there, lambda e, au: lab[e].get(au, 0), "lab")):
        assert axis.get_title() == f"{title}: observed AUs (20 % or more)"
        shown = axis.images[0].get_array().filled(0)
        wanted = [[100 * p if (p := p_of(e, au)) >= 0.2 else 0 for au in aus] for e in mmlfer.EMOTIONS]
        assert np.allclose(shown, wanted)
        written = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axis.texts}
        assert written == {(k, j): f"{v:.0f}" for (k, j), v in np.ndenumerate(wanted) if v}
        assert [t.get_text().split(" (")[0] for t in axis.get_yticklabels()] == list(mmlfer.EMOTIONS)
    everywhere = {au for (_, au), p in naive.items() if p >= 0.2} | {au for row in lab.values() for au, p in row.items() if p >= 0.2}
    assert aus == sorted(everywhere - {11})


def test_heat_map_is_a_picture_with_nothing_cut_off(tmp_path):
    table = _stats.load_stats("wild")
    stats.plot_stats([("a" * 60, mmlfer.EMOTIONS, table), ("$x$_^", mmlfer.EMOTIONS, table)], mmlfer.AUS, tmp_path / "h.png")
    picture = np.asarray(Image.open(tmp_path / "h.png").convert("L"))
    assert picture.std() > 30 and all((edge == 255).all() for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]))
    with pytest.raises(mmlfer.InputError, match="h.foo: no format of a figure .* name it like figure.png"):
        stats.plot_stats([("a", mmlfer.EMOTIONS, table)], mmlfer.AUS, tmp_path / "h.foo")
    _figures.pyplot().close("all")


# ---------------------------------------------------------------- Table 1

SUMS = {  # Table 1, percent: of each expression, of each observed AU
    "wild": ([327, 212, 297, 283, 189, 164, 554, 364, 281, 374, 177, 264, 292, 218],
             {1: 293, 2: 147, 4: 519, 5: 211, 6: 119, 9: 142, 10: 427, 12: 434, 16: 174, 17: 29, 25: 958, 26: 258,
              27: 285}),
    "lab": ([519, 450, 481, 304, 421, 456, 390, 569, 631, 412, 423, 528, 505, 519],
            {1: 762, 2: 578, 4: 873, 5: 454, 6: 239, 7: 197, 9: 201, 10: 558, 12: 400, 15: 200, 17: 242, 20: 332,
             24: 69, 25: 1034, 26: 469}),
}


@pytest.mark.parametrize("name", SUMS)
def test_table_1_has_the_papers_sums_along_both_sides(name):
    rows, columns = SUMS[name]
    table = _stats.load_stats(name)
    assert np.allclose(100 * table.sum(1), rows)
    assert np.allclose(100 * table.sum(0), [columns.get(au, 0) for au in AUS])


def test_au_9_of_table_1_stands_where_the_text_has_it():
    column = _stats.load_stats("wild")[:, AUS.index(9)]
    assert {EMOTIONS[k]: column[k] for k in np.flatnonzero(column)} == {
        "happily disgusted": 0.24, "sadly angry": 0.29, "fearfully angry": 0.56, "angrily disgusted": 0.33}


def test_statistics_under_20_percent_count_as_nothing(tmp_path, capsys):
    rows = [f"{e}: {{1: 0.19, 2: 0.2, 4: 0.21, 11: 0.9, 43: 1}}\n" for e in EMOTIONS]
    (tmp_path / "s.yaml").write_text("".join(rows))
    table = _stats.load_stats(str(tmp_path / "s.yaml"))
    assert {AUS[j]: table[5, j] for j in np.flatnonzero(table[5])} == {2: 0.2, 4: 0.21, 43: 1}
    assert capsys.readouterr().err == f"{tmp_path}/s.yaml: left out, not in the labels: AU 11\n"


def test_an_installed_program_reads_its_own_statistics(tmp_path, monkeypatch):
    """Not those in another package's folder beside it that is called stats."""
    shutil.copytree(mmlfer.HERE / "stats", tmp_path / "mmlfer_stats")
    (tmp_path / "stats").mkdir()
    monkeypatch.setattr(_stats, "HERE", tmp_path)
    assert _stats.load_stats("wild").any(1).all()
