import csv
import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one thread in this process and in those that it starts

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import mmlfer
from mmlfer_commands import _alignment, _stats, _video, train
from mmlfer_commands.synth import synthesize, synthesize_people

torch = mmlfer.torch  # loads at its first use: the process that only hands out the files uses none
ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--size", "32", "--batch-size", "4", "--arch", "resnet18", "--weights", "none", "--device", "cpu")
SMALL_PRETRAINING = ("--arch", "resnet18", "--size", 32, "--batch-size", 8, "--holdout", 0.3, "--workers", 0, "--device",
                     "cpu", "--lr", 1, "--warmup", 1)
TIMES = {"elapsed", "seconds", "images_per_second"}
LONG = ("run_sh", "train", "processes", "page", "serve", "readme", "own_data", "vocabulary", "demo", "video", "bench", "reference")


def pytest_collection_modifyitems(items):
    """Run the files that take longest first, so that no process still has one when the others are done."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(scope="session", autouse=True)
def quick():
    """`train` measures the eyes and mouths of 8 faces instead of 100, and no write waits for the disk.
    test_crop.py and test_files.py test both without these changes. ResNet-18 is thin, see thin.py."""
    with pytest.MonkeyPatch.context() as patch:
        use_thin_backbones(patch)
        patch.setattr(_alignment, "MEASURED", 8)
        patch.setattr(os, "fsync", lambda number: None)
        yield


def use_thin_backbones(patch, thin=True):
    """ResNet-18 is thin (see thin.py) from now on, or real."""
    module = importlib.import_module("thin")  # it loads torch
    module.use(patch, module.make_backbone if thin else module.whole_backbone)


@pytest.fixture
def real_resnet18(monkeypatch):
    """The real ResNet-18, in the test's own process; see thin.py."""
    use_thin_backbones(monkeypatch, thin=False)


def end_at_the_third_step(monkeypatch):
    """Send SIGTERM to this process at the third training step from now on."""
    step, taken = mmlfer.train_step, []

    def interrupted(*args):
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(train, "train_step", interrupted)


def invoke(*args):
    """Run the command line in this process; the result has standard output and error separately."""
    return CliRunner().invoke(mmlfer.main, [str(a) for a in args])


def run_program(*args, cwd=ROOT, **options):
    """Run the command line as its own process."""
    return subprocess.run(command_line(*args), cwd=cwd, capture_output=True, text=True, **options)


def command_line(*args):
    """The words of a command line that runs as its own process: 2 to 4 s of processor time if it loads torch."""
    return [sys.executable, str(ROOT / "mmlfer.py"), *map(str, args)]


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory):
    """60 stand-in faces of 32x32 in RAF-CE's layout."""
    out = tmp_path_factory.mktemp("data") / "faces"
    synthesize(out, 60, "lab", None, 32, 0)
    return out


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """8 drawn people of 5 faces, 32x32."""
    out = tmp_path_factory.mktemp("people") / "people"
    synthesize_people(out, 8, 5, "lab", 32, 0)
    return out


@pytest.fixture(scope="session")
def trained(faces_folder, tmp_path_factory):
    """A run of two epochs of mml on faces_folder: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "mml"
    result = invoke("train", "--data", faces_folder, "--out", out, "--epochs", 2, *SMALL)
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="session")
def pretrained(people, tmp_path_factory):
    """A run of `pretrain` of four epochs on `people`: the path of its weights, and click's result."""
    out = tmp_path_factory.mktemp("weights") / "resnet18_people.pth"
    result = invoke("pretrain", "--faces", people, "--out", out, "--epochs", 4, *SMALL_PRETRAINING)
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture(scope="session")
def sketch(faces_folder, tmp_path_factory):
    """A checkpoint of random weights whose predictions differ from face to face; it is not trained."""
    return write_sketch(tmp_path_factory.mktemp("sketch") / "best.pt", faces_folder, "resnet18")


@pytest.fixture(scope="session")
def sketch_34(faces_folder, tmp_path_factory):
    """The same of the whole ResNet-34."""
    return write_sketch(tmp_path_factory.mktemp("sketch") / "best.pt", faces_folder, "resnet34")


def write_sketch(path, data, arch):
    cfg = mmlfer.Config(data=str(data), method="mtl", size=32, arch=arch, weights="none", device="cpu")
    run = run_of(cfg, 1)
    run.trained_aus = list(mmlfer.AUS)
    for module in run.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        _, z_emo, z_au = run.net.train()(random_batch(16)[0])
        for head, z in ((run.net.fe, z_emo), (run.net.au, z_au)):
            head.weight /= z.std()
            head.bias -= z.mean(0)
    mmlfer.save_checkpoint(mmlfer.inference_state(run), path)
    return path


@pytest.fixture(scope="session")
def templated(sketch, tmp_path_factory):
    """`sketch` with a template of aligned faces, as `train` keeps it."""
    return with_template(sketch, tmp_path_factory.mktemp("templated") / "best.pt")


def with_template(ckpt, path):
    torch.save({**load(ckpt), "template": [[0.35, 0.4], [0.65, 0.4], [0.5, 0.7]]}, path)
    return path


@pytest.fixture
def nobody(monkeypatch):
    """In videos no face is found; gives the list of the frames that were searched."""
    seen = []
    monkeypatch.setattr(_video, "find_faces", lambda image, found=(): seen.append(image) or [])
    return seen


@pytest.fixture
def everywhere(monkeypatch):
    """In videos the same face is found in every frame; gives this Face."""
    face = _alignment.Face(np.array([10.0, 10, 30, 30]), np.array([[18.0, 20], [32, 20], [25, 28], [20, 34], [30, 34]]), 0.9)
    monkeypatch.setattr(_video, "find_faces", lambda image, found=(): [face])
    monkeypatch.setattr(_alignment, "look", lambda image, *_: face)
    return face


def run_of(cfg, steps=1):
    """A new run of a Config, with the net as it is at the start."""
    return train.new_run(cfg, steps, _stats.load_stats(cfg.stats), mmlfer.RAFCE)[0]


def load(path):
    """The content of a checkpoint file."""
    return torch.load(path, weights_only=True)


def assert_same_run(one, other):
    """Check that two folders of finished runs hold the same, except times."""
    for name in ("last.pt", "best.pt"):
        assert same(load(one / name), load(other / name), TIMES), name
    assert (one / "test.json").read_text() == (other / "test.json").read_text()


def same(a, b, but=()):
    """Whether two checkpoints' contents are equal bit for bit, except entries named in `but`."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], but) for k in a if k not in but)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*pair, but) for pair in zip(a, b))
    return a == b


def assert_same_pretraining(one, other):
    """Check that two runs' checkpoints and weights are equal bit for bit, except times."""
    for name in ("net", "sgd", "schedule", "log", "totals", "state_dict"):
        for path in (".pth", ".last.pt"):
            a, b = (load(out.with_suffix(path)).get(name) for out in (one, other))
            assert same(a, b, TIMES), (name, path)


def random_batch(n, size=32, seed=0, dtype=None):
    """x (n, 3, size, size) uint8, y_emo (n,), y_au (n, 32) of a type, float64 if none is given."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), np.uint8))
    y_emo = torch.from_numpy(rng.integers(0, 14, n))
    return x, y_emo, torch.from_numpy(rng.random((n, 32)) < 0.2).to(dtype or torch.float64)


def exported(folder):
    """The runs of an export, {name: (row of runs.csv, rows of logs.csv, predictions)}, and the truth. Cells are text."""
    rows, logs = (list(csv.DictReader((folder / f"{name}.csv").open(newline=""))) for name in ("runs", "logs"))
    with np.load(folder / "predictions.npz") as labels:
        truth, preds = labels["truth"].tolist(), labels["pred"].tolist()
    names = [row["run"] for row in rows]
    assert len(names) == len({*names}) == len(preds) and {log["run"] for log in logs} <= {*names}
    return {name: (row, [log for log in logs if log["run"] == name], pred) for name, row, pred in zip(names, rows, preds)}, truth


def resident_mb():
    """The memory of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def write_lfw(root):
    """Write LFW's layout: two images of each of four people, and pairs.txt with two folds. -> its path"""
    rows = ["2\t2"]
    for fold in ("ab", "cd"):
        for name in fold:
            (root / name).mkdir(parents=True)
            for i in (1, 2):
                Image.new("RGB", (32, 32), (ord(name), 40 * i, 0)).save(root / name / f"{name}_000{i}.{'png' if i == 1 else 'jpg'}")
            rows.append(f"{name}\t1\t2")
        rows += [f"{fold[0]}\t{i}\t{fold[1]}\t{i}" for i in (1, 2)]
    (root / "pairs.txt").write_text("\n".join(rows) + "\n")
    return root / "pairs.txt"


def write_labels_as(folder, emo, partition, au):
    """Write the three label files with exactly this content, text or bytes."""
    for name, content in zip(mmlfer.LABEL_FILES, (emo, partition, au)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory):
    """22 images of noise, 32x32, and their label files, each in another order: 11 to train, 7 to
    validate, 4 to test."""
    folder, rng = tmp_path_factory.mktemp("reference") / "faces", np.random.default_rng(5)
    (folder / "aligned").mkdir(parents=True)
    names = [f"{i:04d}.jpg" for i in rng.permutation(22) + 1]
    split = rng.permutation([0] * 11 + [2] * 7 + [1] * 4)
    rows = {"emolabel": [], "partition": [], "AUlabel": []}
    for i, name in enumerate(names):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "aligned" / name.replace(".jpg", "_aligned.png"))
        aus = rng.choice(mmlfer.AUS, rng.integers(0, 6), replace=False)
        text = "+".join(rng.choice(["", "L", "R", "t"]) + str(au) for au in aus) or "null"
        for key, value in zip(rows, (rng.integers(14), split[i], text)):
            rows[key].append(f"{name} {value}\n")
    for key, lines in rows.items():
        rng.shuffle(lines)
        (folder / f"RAFCE_{key}.txt").write_text("".join(lines))
    return folder
