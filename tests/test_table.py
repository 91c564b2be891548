"""Tables 2 and 3 of finished runs."""

import json
import math
import shutil

import pytest
from conftest import invoke

import mmlfer
from mmlfer_commands import table


def fake_run(folder, method, form, seed, pred, truth, rafce=False):
    confusion = mmlfer.confusion_matrix(truth, pred)
    best = {"epoch": 1, **mmlfer.expression_metrics(confusion), "pred": list(pred)}
    run = {"method": method, "form": form, "stats": form, "seed": seed, "rafce": rafce, "best": best,
           "names": [f"{i}.jpg" for i in range(len(truth))], "truth": list(truth)}  # fmt: skip
    (folder / f"{method}-{form}-{seed}").mkdir(parents=True)
    (folder / f"{method}-{form}-{seed}" / "test.json").write_text(json.dumps(run))


def test_mcnemar_by_hand():
    assert table.mcnemar(0, 0) == 1
    assert table.mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert table.mcnemar(1, 8) == table.mcnemar(8, 1)
    naive = sum(math.comb(20, k) for k in range(21) if abs(k - 10) >= 5) / 2**20
    assert table.mcnemar(15, 5) == pytest.approx(naive)


def test_table_gives_means_spread_and_signal(tmp_path):
    truth = [0] * 10 + [1] * 10
    fake_run(tmp_path, "mml", "wild", 0, [0] * 10 + [1] * 10, truth)  # 100 %
    fake_run(tmp_path, "mml", "wild", 1, [0] * 9 + [1] * 11, truth)  # 95 %
    fake_run(tmp_path, "stl", "wild", 0, [0] * 20, truth)  # 50 %
    fake_run(tmp_path, "stl", "wild", 1, [0] * 18 + [1] * 2, truth)  # 60 %
    fake_run(tmp_path, "mtl", "wild", 0, [0] * 11 + [1] * 9, truth)  # 95 %
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert result.exit_code == 0 and result.stdout == text + "\n"
    assert "| mml wild | 2 | 97.50 ± 3.54 | 97.50 ± 3.54 |\n" in text
    assert "| mtl | 1 | 95.00 | 95.00 |\n" in text
    assert "| happily disgusted | 10 | 10.00 ± 14.14 | 90.00 | 100.00 ± 0.00 |" in text
    assert "| mml wild - stl | 42.50 ± 10.61 | 10:0 p=0.002, 8:1 p=0.039 | signal |" in text
    assert "| mml wild - mtl | 5.00 | 1:0 p=1.000 | within noise |" in text
    assert "paper's Acc." not in text and "Not RAF-CE" in text


def test_the_papers_column_stands_beside_rafce_alone(tmp_path):
    fake_run(tmp_path, "mml", "wild", 0, [0], [0], rafce=True)
    text = table.results(tmp_path)
    assert "| mml wild | 1 | 100.00 | 100.00 | 55.23 / 31.68 |" in text
    fake_run(tmp_path, "stl", "wild", 0, [0], [0], rafce=False)
    assert "55.23" not in table.results(tmp_path)


def test_table_refuses_what_it_cannot_pair(tmp_path):
    result = invoke("table", tmp_path)
    assert result.exit_code == 1 and "no test.json below it" in result.stderr
    fake_run(tmp_path, "mml", "wild", 0, [0, 1], [0, 0])
    fake_run(tmp_path, "stl", "wild", 0, [0], [0])
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    assert result.exit_code == 1 and "other test images than" in result.stderr
    shutil.rmtree(tmp_path / "stl-wild-0")
    fake_run(tmp_path / "again", "mml", "wild", 0, [0, 1], [0, 0])
    assert "mml wild with seed 0 stands below" in invoke("table", tmp_path, "--out", tmp_path / "r.md").stderr


def test_runs_with_statistics_of_ones_own_are_not_the_papers(tmp_path):
    fake_run(tmp_path, "mml", "wild", 0, [0, 1], [0, 0], rafce=True)
    path = tmp_path / "mml-wild-0/test.json"
    path.write_text(path.read_text().replace('"stats": "wild"', '"stats": "mine.yaml"'))
    text = table.results(tmp_path)
    assert "| mml mine.yaml | 1 | 50.00 | 50.00 |  |" in text and "55.23" not in text


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"method": []}', "[" * 100000])
def test_table_refuses_strange_files(tmp_path, text):
    (tmp_path / "test.json").write_text(text)
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/test.json: not a run's test.json")
