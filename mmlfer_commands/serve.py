"""mmlfer serve: a page, and an interface for programs, on your own machine."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import ipaddress
import json
import os
import re
import signal
import socket
import threading
import webbrowser
from http import HTTPStatus
from pathlib import Path

import click
import numpy as np
from PIL import Image

from mmlfer import AU_NAMES, InputError, __version__, brief, device_option, read_image
from mmlfer_commands._rafce import parse_aus
from mmlfer_commands._alignment import choose_template, find_again, find_faces, three_of
from mmlfer_commands._drawing import draw_face, strengths
from mmlfer_commands._models import load_model, model_options, tested
from mmlfer_commands._nets import folded
from mmlfer_commands._outputs import csv_text, encoded
from mmlfer_commands._runs import check_installed
from mmlfer_commands.crop import like_option
from mmlfer_commands.gradcam import explain
from mmlfer_commands.predict import csv_row, items_of_photo, predict_images, table_columns

MAX_BYTES, MAX_PIXELS = 20_000_000, 50_000_000  # of a picture
KINDS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # Pillow reads these without other programs
NEAR = 20  # most faces whose points a request may give
PLACES = 32  # most pictures that are received or wait at a time
WAIT, RECEIVE = 30, 60  # most seconds that a picture waits for its turn, and takes to arrive
GRACE = 0.3  # seconds for answers that are being sent when the server ends
SAMPLES = (("1+2+5+12+25+26", 16), ("1+4+15+17", 9), ("4+9+10+17", 5))  # AUs and seed of each
PAGE = Path(__file__).parent / "page.html"


def http_error(status, sentence):
    """The error with which a request is answered: its status, and a sentence that says why."""
    from starlette.exceptions import HTTPException

    return HTTPException(status, sentence)


def read_picture(content, name, size=None):
    """`read_image` of a picture's bytes, or an error in the words of the command line."""
    file = io.BytesIO(content)
    try:
        with Image.open(file, formats=KINDS) as image:
            n = image.width * image.height
        if n <= MAX_PIXELS:
            return read_image(file, size)
    except Exception as error:  # Pillow's plugins raise every kind
        bomb = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        reason = brief(error).replace(repr(file), repr(name))
        raise http_error(413 if bomb else 415,
                         f"{name}: not an image that can be read ({reason})") from None
    raise http_error(413, f"{name}: {n / 1e6:.0f} megapixels, and at most {MAX_PIXELS / 1e6:.0f} "
                     "are read; make it smaller")


# ---------------------------------------------------------------- what a checkpoint answers


def draw_sample(aus, seed):
    """A drawn face, as JPEG, to try the page without a picture."""
    rng = np.random.default_rng([22, seed])
    return encoded(draw_face(strengths(parse_aus(aus), rng), rng, 256), "JPEG")


class Model:
    """A checkpoint and what it answers; for one thread at a time."""

    def __init__(self, ckpt, like, device, tau=0.0, compounds=None):
        self.net, self.state = load_model(ckpt, device, tau=tau, compounds=compounds)
        self.fast = folded(self.net)  # Grad-CAM is of the net itself
        self.size, self.table = self.state["config"]["size"], self.state["table"].tolist()
        self.template = choose_template(like, self.state)
        self.accuracy = (tested(ckpt, self.state) or {}).get("accuracy")

    def predict(self, content, name, top, crops, near):
        """What `predict --photos --json` prints of a picture; with `crops` also each face's row of
        --csv and its crop, a PNG in a data address. If faces are still near these points (n, 5,
        2), as in a camera's next frame, the picture is not searched for others."""
        image = read_picture(content, name)
        faces = find_again(image, map(three_of, near))
        if not faces or None in faces:
            faces = find_faces(image, [face for face in faces if face])
        items = list(items_of_photo(0, image, faces, self.template, self.size))
        results = dict(predict_images(self.fast, self.state, items, [name], top)).get(0, [])
        for item, result in zip(items if crops else (), results):
            coded = base64.b64encode(encoded(Image.fromarray(item.crop), "PNG")).decode()
            result["csv"] = as_csv([result], self.state, top)
            result["crop"] = f"data:image/png;base64,{coded}"
        return results

    def gradcam(self, content, name):
        """The Grad-CAM of an aligned face over it, for the predicted expression, as PNG."""
        image = read_picture(content, name, self.size)
        maps, *_ = explain(self.net, [image], "the net")
        colour = 1.5 - abs(4 * maps[0][..., None] - (3, 2, 1))  # (S, S, 3), from blue to red
        shown = (0.55 * image + 0.45 * 255 * colour.clip(0, 1)).round().astype(np.uint8)
        return encoded(Image.fromarray(shown), "PNG")

    def facts(self):
        """What the page says of the checkpoint; it holds no path of this machine."""
        config = self.state["config"]
        return {
            "status": "ok", "version": __version__, "method": config["method"], "size": self.size,
            "arch": config["arch"], "data": Path(config["data"]).name, "epoch": self.state["epoch"],
            "stats": Path(config["stats"]).name, "test_accuracy": self.accuracy,
            "expressions": self.state["emotions"], "compounds": self.state.get("compounds"),
            "aus": [{"au": au, "name": AU_NAMES[au]} for au in self.state["aus"]],
            "aus_trained": self.state["trained_aus"], "table": self.table,
            "max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS, "samples": len(SAMPLES)}


def as_csv(results, state, top):
    """What `predict --photos --csv` writes of these faces."""
    return csv_text(map(csv_row, results), table_columns(state, top, photos=True))


# ---------------------------------------------------------------- requests


class Service:
    """The answers to requests, each (content, media type). Pictures are predicted one at a time, in
    a thread; up to PLACES others wait, each up to WAIT seconds."""

    def __init__(self, model):
        self.model, self.facts = model, model.facts()
        self.fixed = {"/": (PAGE.read_bytes(), "text/html"),
                      "/health": (json.dumps(self.facts) + "\n", "application/json"),
                      **{f"/sample/{i}.jpg": (draw_sample(*sample), "image/jpeg")
                         for i, sample in enumerate(SAMPLES)}}
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.turn, self.places = asyncio.Lock(), asyncio.Semaphore(PLACES)

    async def look_up(self, request):
        return self.fixed[request.url.path]

    async def predict(self, request):
        name, top, kind, *how = read_parameters(request.query_params, self.facts["expressions"])
        results = await self.of_picture(request, self.model.predict, name, top, *how)
        if kind == "csv":
            return as_csv(results, self.model.state, top), "text/csv"
        return json.dumps(results) + "\n", "application/json"

    async def gradcam(self, request):
        return await self.of_picture(request, self.model.gradcam, "face"), "image/png"

    async def of_picture(self, request, function, *args):
        """function(bytes of the request's body, *args), called when it is this request's turn."""
        if self.places.locked():
            raise http_error(503, f"{PLACES} pictures are waiting; try again in a few seconds")
        async with self.places:
            content = await before(RECEIVE, receive(request), 408, "the picture did not arrive "
                                   f"within {RECEIVE} seconds; send it again")
            await before(WAIT, self.turn.acquire(), 503, f"other pictures took {WAIT} seconds; "
                         "try again in a few seconds")
            try:
                return await asyncio.wrap_future(self.pool.submit(function, content, *args))
            finally:
                self.turn.release()


async def before(seconds, awaited, status, sentence):
    """The result of `awaited`, or an error after so many seconds."""
    try:
        return await asyncio.wait_for(awaited, seconds)
    except asyncio.TimeoutError:
        raise http_error(status, sentence) from None


async def receive(request):
    """A request's body, or an error. If it is too large, up to five times as much is read and
    dropped, because a browser reads the answer only after it has sent everything."""
    content, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        content += part
        if size > MAX_BYTES:
            content.clear()
        if size > 5 * MAX_BYTES:
            break
    if size > MAX_BYTES:
        raise http_error(413, f"more than {MAX_BYTES / 1e6:.0f} MB; make the picture smaller")
    if not content:
        raise http_error(400, "no picture; send an image's bytes as the request's body")
    return content


def read_parameters(given, expressions):
    """The parameters name, top, format, crops and near of an address (?name=value&...), checked."""
    known = {"name": "image", "top": "3", "format": "json", "crops": "0", "near": "[]"}
    for key in given:
        if key not in known:
            raise http_error(400, f"unknown parameter {key!r:.40}; known: {', '.join(known)}")
    name, top, kind, crops, near = (given.get(key, default) for key, default in known.items())
    if not re.fullmatch("0*[1-9][0-9]{0,8}", top):
        raise http_error(400, f"top: expected a whole number from 1 on, got {top!r:.20}")
    if kind not in ("json", "csv") or crops not in ("0", "1"):
        raise http_error(400, "format is json or csv, crops is 0 or 1")
    return name, min(int(top), len(expressions)), kind, crops == "1", parse_points(near)


def parse_points(text):
    """The five points of faces, as the answers have them: [[[x, y], ...], ...] -> (n, 5, 2)"""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        points = np.array(json.loads(text), float).reshape(-1, 5, 2)
        if (len(points) <= NEAR and (abs(points) < 1e5).all()
                and (np.linalg.norm(points[:, 0] - points[:, 1], axis=1) > 1).all()):  # the eyes
            return points
    raise http_error(400, f"near: expected the five points of at most {NEAR} faces, as an answer "
                     "has them")


# ---------------------------------------------------------------- the server


def policy(page):
    """A page's Content-Security-Policy: nothing from elsewhere, and only its own inline parts."""
    allowed = {}
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()) for part in parts]
        allowed[tag] = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    return (f"default-src 'self'; script-src {allowed['script']}; style-src {allowed['style']}; "
            "img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the server listens."""

    host: str  # as the user gave it
    bound: object  # its IP address
    port: int

    @property
    def url(self):
        host = "localhost" if self.bound.is_unspecified else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def is_called(self, name):
        """Whether the name in a Host header (without port) is this machine's. A page elsewhere may
        let its own name resolve to this address: its requests are refused."""
        if self.bound.is_loopback and name in ("localhost", "127.0.0.1", "[::1]"):
            return True
        if self.bound.is_unspecified:
            with contextlib.suppress(ValueError):
                return bool(ipaddress.ip_address(name.strip("[]")))
            return name in ("localhost", socket.gethostname().lower())
        return name.strip("[]") in (self.host.lower(), str(self.bound))

    def refusal(self, headers):
        """Why a request with these headers is refused, or None."""
        target, origin = headers.get("host", "").lower(), headers.get("origin")
        name, _, number = target.rpartition(":")
        if self.port == 80 and not number.isdigit():
            name, number = target, "80"
        if number != str(self.port) or not self.is_called(name):
            return f"Host {target!r:.80} is not this server's; open {self.url}"
        if origin is not None and origin.lower() != f"http://{target}":
            return f"Origin {origin!r:.80}: pages elsewhere get no answers from this server"


def build_app(service, place):
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

    headers = {"Content-Security-Policy": policy(PAGE.read_text("utf-8")),
               "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
               "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store"}

    def respond(content, kind, status=200):
        return Response(content, status, headers, media_type=kind)

    def fail(status, sentence):
        return respond(json.dumps({"error": sentence}) + "\n", "application/json", status)

    def answering(function):
        async def answer(request):
            return respond(*await function(request))
        return answer

    async def refuse(request, error):
        if error.detail == HTTPStatus(error.status_code).phrase:  # starlette's own
            return fail(error.status_code, f"{request.method} {request.url.path:.80}: "
                        f"{error.detail.lower()}; see {place.url}")
        return fail(error.status_code, error.detail)

    async def broken(request, error):
        sentence = str(error)
        if not isinstance(error, InputError):
            sentence = f"{type(error).__name__}: {brief(error)}"
            click.echo(f"Warning: a request failed: {sentence}", err=True)
        return fail(500, sentence)

    routes = [*((path, "GET", service.look_up) for path in service.fixed),
              ("/predict", "POST", service.predict), ("/gradcam", "POST", service.gradcam)]
    handlers = {HTTPException: refuse, InputError: broken, Exception: broken,
                ClientDisconnect: lambda *_: fail(400, "the connection was closed")}
    app = Starlette(routes=[Route(path, answering(function), methods=[method])
                            for path, method, function in routes], exception_handlers=handlers)

    async def guarded(scope, receive, send):
        reason = place.refusal(Request(scope).headers)
        await (fail(403, reason) if reason else app)(scope, receive, send)

    return guarded


def listen(host, port):
    """A listening socket; InputError if the port is in use or the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is in use; name another, such as --port "
                             f"{port % 65535 + 1}, or --port 0 for any that is free") from None
        raise InputError(f"cannot listen at {host}, port {port} ({error.strerror}); name another "
                         "--host or --port") from None


def run_server(service, listener, place):
    """Answer until Ctrl-C, which ends the process at once: nothing is left to be written."""
    import uvicorn

    config = uvicorn.Config(build_app(service, place), http="h11", ws="none", lifespan="off",
                            log_level="critical", access_log=False, server_header=False,
                            timeout_graceful_shutdown=GRACE)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        os._exit(128 + signal.SIGINT)


@click.command("serve")
@model_options
@click.option("--port", default=8000, type=click.IntRange(0, 65535), metavar="N",
              help="Port to listen at; 0: any that is free.")
@click.option("--host", default="127.0.0.1", help="Address to listen at: this machine's own. "
              "Another opens the page to the network.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@like_option
@device_option
def command(ckpt, tau, compounds, port, host, open_page, like, device):
    """Open a page on this machine to try a checkpoint: photographs and the camera.

    It does what `predict --photos` and `gradcam` do, and has drawn faces of `synth` as samples.
    Pictures are neither stored nor sent anywhere else. Needs the extras `web` and `photos`:
    pip install -e '.[web,photos]'

    Programs use the same: POST an image's bytes to /predict for what `predict --photos --json`
    prints; GET /health tells of the checkpoint. Ctrl-C ends it.
    """
    check_installed("serve", ("starlette", "uvicorn"), "web,photos")
    with listen(host, port) as listener:
        bound, port = listener.getsockname()[:2]
        place = Place(host, ipaddress.ip_address(bound), port)
        service = Service(Model(ckpt, like, device, tau, compounds))
        if not place.bound.is_loopback:
            click.echo(f"Warning: --host {host} opens this to the network: whoever reaches this "
                       "machine can send pictures and read the answers, without a password and "
                       "unencrypted; browsers elsewhere give such a page no camera", err=True)
        click.echo(f"{place.url}  (Ctrl-C ends it)")
        if open_page:
            threading.Thread(target=webbrowser.open, args=[place.url], daemon=True).start()
        run_server(service, listener, place)
