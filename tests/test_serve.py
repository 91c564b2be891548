"""The server of the page, by plain HTTP."""

import asyncio
import base64
import concurrent.futures
import contextlib
import errno
import hashlib
import http.client
import io
import ipaddress
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import tracemalloc
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import torch
from conftest import ROOT, invoke
from PIL import Image
from scenes import two_face_scene
from serving import serving, with_template

import mmlfer
from mmlfer_commands import gradcam, serve

HTTPException = pytest.importorskip("starlette.exceptions", reason="the server needs the extra `web`").HTTPException
EXIF_TURNED = 6  # the picture is shown turned by 90 degrees, clockwise


@pytest.fixture(scope="module")
def ckpt(sketch_34, tmp_path_factory):
    """A ResNet-34 with an alignment of its own, so that none is measured, and with a Grad-CAM that is not empty."""
    return with_template(sketch_34, tmp_path_factory.mktemp("ckpt") / "best.pt")


@pytest.fixture(scope="module")
def server(ckpt, tmp_path_factory):
    with serving(ckpt, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def photos(faces_folder, tmp_path_factory):
    """Scenes of two faces, one of them turned by its EXIF data; faces that fill the picture; a picture without a face; a
    file that is no image."""
    out, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = sorted((faces_folder / "aligned").iterdir())
    for i in (0, 1):
        scene, _ = two_face_scene([np.asarray(Image.open(path)) for path in paths[2 * i : 2 * i + 2]], rng, 20, 30)
        Image.fromarray(scene).save(out / f"two{i}.png")
    exif = Image.Exif()
    exif[0x0112] = EXIF_TURNED
    Image.open(out / "two0.png").rotate(90, expand=True).save(out / "turned.jpg", exif=exif, quality=95)
    for i in (4, 5):
        Image.open(paths[i]).resize((48, 48)).save(out / f"face {i} %.png")
    Image.new("RGB", (60, 40), "gray").save(out / "nobody.png")
    (out / "text.jpg").write_text("no photograph")
    (out / "cut.png").write_bytes((out / "two1.png").read_bytes()[:2000])
    return out


def ask(server, path="/health", body=None, method=None, **headers):
    """One request by its own connection. -> status, headers and content"""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def fails(server, *args, **options):
    """The status and the sentence of a request that fails."""
    status, headers, content = ask(server, *args, **options)
    told = json.loads(content)
    assert status >= 400 and headers["Content-Type"] == "application/json" and list(told) == ["error"]
    return status, told["error"]


def lives(server):
    return ask(server)[0] == 200


# ---------------------------------------------------------------- answers


def test_answers_are_those_of_predict_byte_by_byte(server, ckpt, photos, tmp_path):
    faces = 0
    for path in (photos / name for name in ("two0.png", "turned.jpg", "face 4 %.png", "nobody.png")):
        options = ("--photos", path, "--top", 2, "--csv", tmp_path / "p.csv")
        result = invoke("predict", "--ckpt", ckpt, *options, "--json")
        assert result.exit_code == 0, result.output
        where = f"/predict?top=2&name={quote(str(path))}"
        status, headers, content = ask(server, where, path.read_bytes())
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert content.decode() == result.stdout
        status, headers, table = ask(server, f"{where}&format=csv", path.read_bytes())
        assert (status, headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
        assert table == (tmp_path / "p.csv").read_bytes()
        faces += len(json.loads(content))
    assert faces == 5
    every = json.loads(ask(server, "/predict?top=99", (photos / "face 4 %.png").read_bytes())[2])
    assert len(every[0]["expressions"]) == 14
    without = json.loads(ask(server, "/predict", (photos / "two0.png").read_bytes())[2])
    assert [len(face["expressions"]) for face in without] == [3, 3] and {face["image"] for face in without} == {"image"}


def test_crops_are_what_the_net_saw_and_gradcam_shows_where_it_looked(server, ckpt, photos, tmp_path):
    net, state = mmlfer.load_net(ckpt, "cpu")
    picture = (photos / "two1.png").read_bytes()
    faces = json.loads(ask(server, "/predict?crops=1&name=a,%0Ab", picture)[2])
    header, *rows = ask(server, "/predict?format=csv&name=a,%0Ab", picture)[2].decode().split("\n", 1)
    assert [face["csv"].split("\n", 1)[0] for face in faces] == [header] * 2
    assert "".join(face["csv"].split("\n", 1)[1] for face in faces) == rows[0]
    for face in faces:
        content = base64.b64decode(face["crop"].removeprefix("data:image/png;base64,"))
        crop = np.asarray(Image.open(io.BytesIO(content)))
        assert crop.shape == (32, 32, 3)
        with torch.no_grad():
            _, z_emo, z_au = net(torch.tensor(crop.copy()).permute(2, 0, 1)[None])
        assert z_emo[0].softmax(0).tolist() == pytest.approx(list(face["p_expressions"].values()), abs=1e-5)
        assert z_au[0].sigmoid().tolist() == pytest.approx(list(face["p_aus"].values()), abs=1e-5)
        status, headers, content = ask(server, "/gradcam", content)
        assert (status, headers["Content-Type"]) == (200, "image/png")
        heat = np.asarray(Image.open(io.BytesIO(content)), float)
        maps, _, _ = gradcam.explain(net, [crop], "")
        jet = pytest.importorskip("matplotlib").colormaps["jet"](maps[0])[..., :3]
        assert abs(heat - 0.55 * crop - 0.45 * 255 * jet).mean() < 4 and maps[0].max() == 1
    larger = ask(server, "/gradcam", (photos / "face 4 %.png").read_bytes())[2]  # of 48x48 is read as the net reads it
    assert Image.open(io.BytesIO(larger)).size == (32, 32)


def test_health_describes_the_checkpoint(server, ckpt):
    state = torch.load(ckpt, weights_only=True)
    told = json.loads(ask(server)[2])
    assert (told["status"], told["method"], told["data"], told["test_accuracy"]) == ("ok", "mtl", "faces", None)
    assert told["expressions"] == state["emotions"] and [au["au"] for au in told["aus"]] == state["aus"]
    assert np.array(told["table"]) == pytest.approx(state["table"].numpy()) and told["aus"][0]["name"] == "inner brow raiser"
    assert [told[name] for name in ("version", "arch", "size", "stats", "epoch", "aus_trained", "max_bytes", "max_pixels")] == [
        mmlfer.__version__, "resnet34", 32, "wild", 0, state["aus"], 20_000_000, 50_000_000]
    model = serve.Model.__new__(serve.Model)
    model.size, model.table, model.accuracy = 48, [[0.5]], 0.25
    model.state = {"emotions": ["awe"], "aus": [12, 4], "trained_aus": [4], "epoch": 7, "config": {
        "method": "stl", "arch": "resnet18", "data": "/home/me/faces", "stats": "/home/me/mine.yaml", "rho": 0.1, "rho_am": 0.1}}
    own = model.facts()
    assert [own[name] for name in ("size", "arch", "stats", "epoch", "aus_trained", "test_accuracy", "table", "data")] == [
        48, "resnet18", "mine.yaml", 7, [4], 0.25, [[0.5]], "faces"]
    assert str(ckpt.parent) not in json.dumps(told) and state["config"]["data"] not in json.dumps(told)


def test_the_drawn_samples_have_a_face_each(server):
    answers = [ask(server, f"/sample/{i}.jpg") for i in range(json.loads(ask(server)[2])["samples"])]
    pictures = [content for *_, content in answers]
    assert len(set(pictures)) == 3 and {headers["Content-Type"] for _, headers, _ in answers} == {"image/jpeg"}
    assert [len(json.loads(ask(server, "/predict", picture)[2])) for picture in pictures] == [1, 1, 1]


def test_the_page_allows_its_own_parts_and_nothing_from_elsewhere(server):
    status, headers, content = ask(server, "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert content == (ROOT / "mmlfer_commands/page.html").read_bytes()
    rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    for tag in ("script", "style"):
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", content.decode(), re.S)
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'self'" and rules["frame-ancestors"] == "'none'"
    for path in ("/", "/health", "/sample/0.jpg", "/nowhere"):
        _, headers, _ = ask(server, path)
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        assert (headers["Referrer-Policy"], headers["Cross-Origin-Resource-Policy"]) == ("no-referrer", "same-origin")
        assert "Content-Security-Policy" in headers and "Set-Cookie" not in headers and "Server" not in headers


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_lines_of_the_page_of_commands_work_as_they_stand(server, photos, tmp_path):
    lines = re.findall(r"^curl .*$", (ROOT / "mmlfer_commands/README.md").read_text(), re.M)
    shutil.copy(photos / "two0.png", tmp_path / "photo.jpg")
    shutil.copy(photos / "face 4 %.png", tmp_path / "face.png")
    said = []
    for line in lines:
        line = line.replace("http://127.0.0.1:8000/", server.url)
        said.append(subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    plain, table, crops, _, health = said
    assert [face["image"] for face in json.loads(plain)] == ["image", "image"] and json.loads(health)["status"] == "ok"
    assert "expression_5" in table and [row.split(",")[:2] for row in table.splitlines()[1:]] == [["photo.jpg", "0"], ["photo.jpg", "1"]]
    assert all(face["crop"].startswith("data:image/png;base64,") for face in json.loads(crops))
    assert Image.open(tmp_path / "gradcam.png").size == (32, 32)


def test_faces_are_looked_for_where_they_were_and_searched_where_one_is_lost(ckpt, photos, monkeypatch):
    model, searched = serve.Model(ckpt, None, "cpu"), []
    search = serve.find_faces
    monkeypatch.setattr(serve, "find_faces", lambda *args: searched.append(1) or search(*args))
    content = (photos / "two0.png").read_bytes()

    def points(near):
        searched.clear()
        results = model.predict(content, "image", 1, False, serve.parse_points(json.dumps(near)))
        return np.array([face["points"] for face in results]), len(searched)

    whole, n = points([])
    assert whole.shape == (2, 5, 2) and n == 1
    for near in (whole, whole[::-1]):
        again, n = points((near + 1).tolist())
        assert n == 0 and np.abs(again - near).max() < 3  # of eyes 23 pixels apart
    gone = whole[0] + (0, 500)
    for near in ([*whole.tolist(), gone.tolist()], [whole[1].tolist(), (whole[1] + 1).tolist()], [gone.tolist()]):
        again, n = points(near)
        assert n == 1 and np.abs(again - whole).max() < 3


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_read_is_reported_in_the_words_of_the_command_line(server, ckpt, photos):
    for name in ("text.jpg", "cut.png"):
        result = invoke("predict", "--ckpt", ckpt, "--photos", photos / name)
        sentence = re.search(r"Warning: skipped (.*)\n", result.stderr)[1]
        assert sentence.startswith(f"{photos / name}: not an image that can be read (")
        assert fails(server, f"/predict?name={quote(str(photos / name))}", (photos / name).read_bytes()) == (415, sentence)
    assert fails(server, "/gradcam", b"nothing")[0] == 415


NEAR = "near: expected the five points of at most 20 faces, as an answer has them"


@pytest.mark.parametrize("path, body, method, status, sentence", [
    ("/predict", b"", "POST", 400, "no picture; send an image's bytes as the request's body"),
    ("/predict?top=0", b"x", "POST", 400, "top: expected a whole number from 1 on, got '0'"),
    ("/predict?top=%C2%B2", b"x", "POST", 400, "top: expected a whole number from 1 on, got '²'"),
    ("/predict?top=99999999999999999999999", b"x", "POST", 400, "top: expected a whole number from 1 on, got '9999999999999999999"),
    ("/predict?topp=1", b"x", "POST", 400, "unknown parameter 'topp'; known: name, top, format, crops, near"),
    ("/predict?format=xml", b"x", "POST", 400, "format is json or csv, crops is 0 or 1"),
    ("/predict?crops=yes", b"x", "POST", 400, "format is json or csv, crops is 0 or 1"),
    ("/predict?near=x", b"x", "POST", 400, NEAR), ("/predict?near=[[[1,2]]]", b"x", "POST", 400, NEAR),
    ("/predict?near=" + str([[[1, 1]] * 5]).replace(" ", ""), b"x", "POST", 400, NEAR),
    ("/predict?near=" + str([[[1, 1], [9, 1], [5, 5], [1, 9], [9, "NaN"]]]).replace(" ", "").replace("'", ""), b"x", "POST", 400, NEAR),
    ("/predict?near=" + str([[[5, 5], [5, 5], [7, 7], [0, 0], [10, 10]]]).replace(" ", ""), b"x", "POST", 400, NEAR),
    ("/predict", None, "GET", 405, "GET /predict: method not allowed; see "),
    ("/", b"x", "POST", 405, "POST /: method not allowed; see "),
    ("/../etc/passwd", None, "GET", 404, "GET /../etc/passwd: not found; see "),
    ("/sample/3.jpg", None, "GET", 404, "GET /sample/3.jpg: not found; see "),
    (f"/sample/{'9' * 5000}.jpg", None, "GET", 404, f"GET /sample/{'9' * 72}: not found; see "),
    ("/sample/%C2%B2.jpg", None, "GET", 404, "GET /sample/\u00b2.jpg: not found; see "),
])
def test_requests_that_make_no_sense(server, path, body, method, status, sentence):
    got, told = fails(server, path, body, method)
    assert got == status and told == sentence + (server.url if sentence.endswith("see ") else "")


def test_the_points_of_twenty_faces_are_taken_and_of_no_more():
    """As the page sends those of the first twenty."""
    face = [[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]]
    assert serve.parse_points(json.dumps([face] * 20)).shape == (20, 5, 2)
    with pytest.raises(serve.http_error(400, NEAR).__class__):
        serve.parse_points(json.dumps([face] * 21))


def test_postscript_is_not_read_though_pillow_could_with_another_program(server):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "EPS")
    assert fails(server, "/predict", buffer.getvalue()) == (
        415, "image: not an image that can be read (cannot identify image file 'image')")


def test_top_names_no_more_expressions_than_there_are():
    assert serve.read_parameters({}, ["awe", "contempt"])[:4] == ("image", 2, "json", False)
    assert serve.read_parameters({"top": "01", "crops": "1"}, ["awe", "contempt"])[:4] == ("image", 1, "json", True)


def test_pages_elsewhere_get_nothing(server):
    port = urlsplit(server.url).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "", f"10.0.0.1:{port}"):
        status, told = fails(server, "/", Host=host)
        assert status == 403 and told == f"Host {host!r} is not this server's; open {server.url}"
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}", f"http://localhost:{port}"):
        status, told = fails(server, "/predict", b"x", Origin=origin)
        assert status == 403 and told == f"Origin {origin!r}: pages elsewhere get no answers from this server"
    assert ask(server, Origin=server.url.rstrip("/"))[0] == 200
    assert ask(server, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


@pytest.mark.parametrize("host, bound, right, wrong", [
    ("0.0.0.0", "0.0.0.0", ["10.1.2.3:80", "[::1]:80", "10.1.2.3", socket.gethostname() + ":80"], ["evil.example:80", "10.1.2.3:81"]),
    ("192.168.1.5", "192.168.1.5", ["192.168.1.5", "192.168.1.5:80"], ["localhost:80", "192.168.1.6:80"]),
    ("Mybox.local", "192.168.1.5", ["mybox.local", "192.168.1.5:80"], ["mybox.local.evil.example"]),
    ("::1", "::1", ["[::1]:80", "localhost", "[::1]"], ["[::2]:80", "::1:81"]),
])
def test_which_hosts_are_its_own(host, bound, right, wrong):
    place = serve.Place(host, ipaddress.ip_address(bound), 80)
    assert [place.refusal({"host": name}) for name in right] == [None] * len(right)
    assert all(place.refusal({"host": name}).startswith("Host ") for name in wrong)


def test_addresses_of_both_families(monkeypatch):
    made = []
    monkeypatch.setattr(serve.socket, "create_server", lambda address, family: made.append((*address, family)))
    serve.listen("::1", 80), serve.listen("127.0.0.1", 81)
    assert made == [("::1", 80, socket.AF_INET6), ("127.0.0.1", 81, socket.AF_INET)]
    urls = [serve.Place(host, ipaddress.ip_address(bound), 80).url for host, bound in (("::1", "::1"), ("::", "::"), ("me.local", "10.0.0.1"))]
    assert urls == ["http://[::1]:80/", "http://localhost:80/", "http://me.local:80/"]


@pytest.mark.parametrize("error, sentence, said", [
    (mmlfer.InputError("the net's outputs are not finite"), "the net's outputs are not finite", ""),
    (ZeroDivisionError("by\nnothing"), "ZeroDivisionError: by nothing", "Warning: a request failed: ZeroDivisionError: by nothing\n")])
def test_what_fails_in_the_server_is_its_error_and_never_a_face(capsys, error, sentence, said):
    async def fails(request):
        raise error

    async def asked(app):
        answers = []
        scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b"", "headers": [(b"host", b"127.0.0.1:8000")]}
        with contextlib.suppress(ZeroDivisionError):  # which starlette answers, and then raises
            await app(scope, None, lambda message: answers.append(message) or asyncio.sleep(0))
        return answers

    service = type("Stub", (), {"fixed": {"/health": ()}, **dict.fromkeys(("look_up", "predict", "gradcam"), staticmethod(fails))})
    start, body = asyncio.run(asked(serve.build_app(service, serve.Place("127.0.0.1", ipaddress.ip_address("127.0.0.1"), 8000))))
    assert (start["status"], json.loads(body["body"])) == (500, {"error": sentence}) and capsys.readouterr().err == said


def test_a_gradcam_that_is_not_finite_is_an_error(monkeypatch):
    model, face = serve.Model.__new__(serve.Model), io.BytesIO()
    model.net, model.size = torch.nn.Linear(1, 1), 8
    Image.new("RGB", (8, 8)).save(face, "PNG")
    for bad in range(3):
        arrays = [torch.zeros(1, 8, 8), torch.zeros(1, 2), torch.zeros(1, 3)]
        monkeypatch.setattr(gradcam, "gradcam", lambda net, x, arrays=arrays: arrays)
        assert model.gradcam(face.getvalue(), "face").startswith(b"\x89PNG")
        arrays[bad][0, -1] = np.nan
        with pytest.raises(mmlfer.InputError, match="^the net: outputs that are not finite: its training diverged; take another checkpoint$"):
            model.gradcam(face.getvalue(), "face")


def test_large_bodies_and_large_pictures(server):
    large, said = b"\xff" * 20_000_001, (413, "more than 20 MB; make the picture smaller")
    assert fails(server, "/predict", large) == said
    assert fails(server, "/predict", (large[i : i + 2**20] for i in range(0, len(large), 2**20)), "POST") == said  # sent in chunks, without a length
    for width, status, sentence in ((5100, 413, "image: 51 megapixels, and at most 50 are read; make it smaller"),
                                    (20000, 413, "image: not an image that can be read (Image size ")):
        buffer = io.BytesIO()
        Image.new("1", (width, 10000)).save(buffer, "PNG")
        got, told = fails(server, "/predict", buffer.getvalue())
        assert got == status and told.startswith(sentence)


# ---------------------------------------------------------------- many, slow, broken


def connect(server, head, body=b""):
    """A socket that has sent a request to /predict with these header lines, and this much of its body."""
    place = urlsplit(server.url)
    link = socket.create_connection((place.hostname, place.port), timeout=60)
    lines = ["POST /predict HTTP/1.1", f"Host: {place.netloc}", *head]
    link.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return link


def test_bodies_that_arrive_slowly_broken_or_not_at_all(server, photos):
    picture = (photos / "face 4 %.png").read_bytes()
    alone = ask(server, "/predict", picture)[2]
    connect(server, [f"Content-Length: {len(picture)}"], picture[:100]).close()  # hangs up within the body,
    connect(server, [f"Content-Length: {len(picture)}"], picture).close()  # before the answer
    with connect(server, [f"Content-Length: {len(picture) + 50}"], picture) as link:  # ends too early
        link.shutdown(socket.SHUT_WR)
        assert b"200 OK" not in link.recv(1000)
    with connect(server, [f"Content-Length: {len(picture) - 50}"], picture) as link:  # has more than it says
        assert link.recv(1000).startswith(b"HTTP/1.1 415 ")
    for lines in (["Content-Length: -1"], ["Content-Length: x"], ["Content-Length: 1", "Content-Length: 2"],
                  ["Transfer-Encoding: nonsense"], ["Host: twice"]):
        with connect(server, lines, b"x") as link:
            assert re.match(rb"HTTP/1.1 (400|501) ", link.recv(1000)), lines
    with connect(server, [f"Content-Length: {len(picture)}", "Connection: close"]) as link:  # byte by byte
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in picture:
            link.sendall(bytes([byte]))
        answer = b"".join(iter(lambda: link.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(alone) and lives(server)


def test_too_many_waiting_pictures_are_turned_away(server, photos):
    picture = (photos / "face 4 %.png").read_bytes()
    links = [connect(server, ["Content-Length: 9"], b"x") for _ in range(serve.PLACES)]
    end = time.monotonic() + 10
    while time.monotonic() < end and ask(server, "/predict", picture)[0] != 503:
        time.sleep(0.05)
    assert fails(server, "/predict", picture) == (503, "32 pictures are waiting; try again in a few seconds")
    assert lives(server)  # the page itself is there
    for link in links:
        link.close()
    while time.monotonic() < end and ask(server, "/predict", picture)[0] == 503:
        time.sleep(0.05)
    assert ask(server, "/predict", picture)[0] == 200


class Sent:
    """A request with a body, for Service alone."""

    async def stream(self):
        yield b"picture"


def test_a_picture_waits_for_its_turn_up_to_a_bound(monkeypatch):
    going, order = threading.Event(), []

    def slowly(content, name):
        order.append(name)
        going.wait(10)
        return name

    async def three():
        service = serve.Service(type("Stub", (), {"facts": dict})())
        tasks = [asyncio.create_task(service.of_picture(Sent(), slowly, name)) for name in "ab"]
        await asyncio.sleep(0.05)
        assert order == ["a"]  # one at a time
        monkeypatch.setattr(serve, "WAIT", 0.05)
        with pytest.raises(HTTPException) as refused:
            await service.of_picture(Sent(), slowly, "c")
        assert (refused.value.status_code, refused.value.detail) == (503, "other pictures took 0.05 seconds; try again in a few seconds")
        going.set()
        assert await asyncio.gather(*tasks) == ["a", "b"] and service.places._value == serve.PLACES and order == ["a", "b"]

    asyncio.run(three())


def test_a_body_may_take_a_bounded_time(monkeypatch):
    class Slow:
        async def stream(self):
            yield b"x"
            await asyncio.sleep(10)

    async def one():
        service = serve.Service(type("Stub", (), {"facts": dict})())
        monkeypatch.setattr(serve, "RECEIVE", 0.05)
        with pytest.raises(HTTPException) as refused:
            await service.of_picture(Slow(), print)
        assert refused.value.status_code == 408 and service.places._value == serve.PLACES

    asyncio.run(one())


def test_a_body_that_is_too_large_is_not_kept():
    """No more than five times the allowed size is ever read."""
    sent = []

    class Large:
        async def stream(self):
            while True:
                sent.append(1)
                yield bytes(1_000_000)

    tracemalloc.start()
    with pytest.raises(HTTPException):
        asyncio.run(serve.receive(Large()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6 and len(sent) == 101


def memory_mb(server):
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1]) / 1024


def test_500_requests_of_good_and_bad_pictures_by_16_at_a_time(server, photos):
    faces = [(photos / f"face {i} %.png").read_bytes() for i in (4, 5)]
    nobody = (photos / "nobody.png").read_bytes()
    bad = [(photos / "text.jpg").read_bytes(), (photos / "cut.png").read_bytes(), b"", faces[0][:60], nobody[:-40]]
    alone = {body: ask(server, "/predict", body)[2] for body in (*faces, nobody)}
    assert len(set(alone.values())) == 3
    bodies = [faces[0], nobody, *bad, faces[1], *bad, nobody, *bad]

    def send(i):
        body = bodies[i % len(bodies)]
        status, _, content = ask(server, "/predict", body)
        return (status == 200 and content == alone[body]) if body in alone else 400 <= status < 500

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(send, range(60)))
        before = memory_mb(server)
        assert all(pool.map(send, range(440)))
    assert memory_mb(server) - before < 30 and lives(server)


# ---------------------------------------------------------------- start and end


@pytest.fixture
def started(monkeypatch):
    """The servers that start in this process, and end at once: (address, place) of each."""
    seen = []
    monkeypatch.setattr(serve, "run_server", lambda service, listener, place: seen.append((listener.getsockname(), place)))
    monkeypatch.setattr(serve.webbrowser, "open", lambda url: seen.append(url))
    return seen


def test_it_listens_at_this_machine_alone_by_default(ckpt, started):
    result = invoke("serve", "--ckpt", ckpt, "--port", 0, "--open", "--device", "cpu")
    url, ((bound, port), place) = sorted(started, key=lambda one: not isinstance(one, str))
    assert (bound, url) == ("127.0.0.1", f"http://127.0.0.1:{port}/")
    assert (result.stdout, "network" in result.stderr) == (f"{url}  (Ctrl-C ends it)\n", False)
    result = invoke("serve", "--ckpt", ckpt, "--port", 0, "--host", "0.0.0.0")
    (bound, port), place = started[-1]
    assert bound == "0.0.0.0" and result.stdout == f"http://localhost:{port}/  (Ctrl-C ends it)\n"
    assert "Warning: --host 0.0.0.0 opens this to the network: whoever reaches this machine can send pictures and " \
           "read the answers, without a password and unencrypted" in result.stderr


def test_what_hinders_its_start_is_one_line(server, ckpt, started, monkeypatch):
    port = urlsplit(server.url).port
    result = invoke("serve", "--ckpt", ckpt, "--port", port)
    assert (result.exit_code, result.stderr) == (1, f"Error: port {port} of 127.0.0.1 is in use; name another, such as --port "
                                                 f"{port + 1}, or --port 0 for any that is free\n")
    monkeypatch.setattr(serve.socket, "create_server", lambda *args, **options: (_ for _ in ()).throw(OSError(errno.EACCES, "Permission denied")))
    result = invoke("serve", "--ckpt", ckpt, "--port", 81)
    assert result.stderr == "Error: cannot listen at 127.0.0.1, port 81 (Permission denied); name another --host or --port\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = invoke("serve", "--ckpt", ckpt)
    assert result.stderr == "Error: serve needs starlette: pip install -e '.[web,photos]'\n" and not started


def test_nothing_was_written_and_ctrl_c_ends_it_in_a_second(ckpt, photos, tmp_path):
    with serving(ckpt, tmp_path) as server:
        for name in ("face 4 %.png", "text.jpg"):
            ask(server, f"/predict?name={quote(name)}&crops=1", (photos / name).read_bytes())
        buffer = io.BytesIO()
        Image.effect_noise((4000, 4000), 50).save(buffer, "JPEG", quality=30)
        links = [connect(server, ["Content-Length: 9"], b"x")]  # a body that never ends, and a picture that takes its time
        links.append(connect(server, [f"Content-Length: {len(buffer.getvalue())}"], buffer.getvalue()))
        time.sleep(0.3)
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 128 + signal.SIGINT and time.monotonic() - start < 1
        for link in links:
            link.close()
        assert server.process.stdout.read() == "" and list((tmp_path / "tmp").iterdir()) == list((tmp_path / "cwd").iterdir()) == []
        log = (tmp_path / "log").read_text()
        assert log.endswith("stopped\n") and "png" not in log and "Traceback" not in log and log.count("\n") < 5, log
