"""The page of `mmlfer serve` in a browser: Chromium or Chrome of this machine, without a window."""

import base64
import csv
import importlib
import io
import json
import os
import re
import shutil
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from conftest import ROOT, invoke
from PIL import Image
from reference import AUS
from scenes import backdrop, paste, two_face_scene
from serving import serving, with_template

CI = os.environ.get("CI")  # there, what is missing is a failure
playwright = importlib.import_module("playwright.sync_api") if CI else pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright (extra `test`)")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None and not CI, reason="no Chromium or Chrome here: the page is not tested; install chromium")
PAGE = (ROOT / "mmlfer_commands/page.html").read_text(encoding="utf-8")
SOON = 30_000  # milliseconds, on a machine that has other work


@pytest.fixture(scope="module")
def ckpt(sketch_34, tmp_path_factory):
    return with_template(sketch_34, tmp_path_factory.mktemp("ckpt") / "best.pt")


@pytest.fixture(scope="module")
def server(ckpt, tmp_path_factory):
    with serving(ckpt, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def photos(faces_folder, tmp_path_factory):
    """Images with two faces, one face and none, a file that is no image; and a clip of a moving face, for the camera."""
    out, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    faces = [np.asarray(Image.open(path)) for path in sorted((faces_folder / "aligned").iterdir())[:3]]
    scene, _ = two_face_scene(faces[:2], rng, 20, 30)
    Image.fromarray(scene).save(out / "two.png")
    Image.fromarray(faces[2]).resize((64, 64)).save(out / "one.png")
    Image.new("RGB", (60, 40), "gray").save(out / "nobody.png")
    (out / "broken.jpg").write_text("no photograph")
    with (out / "clip.mjpeg").open("wb") as clip:
        for i in range(4):
            frame = backdrop(160, 120, np.random.default_rng(1))
            paste(frame, faces[2], (70 + 4 * i, 60), 28, 0)
            frame.save(clip, "JPEG", quality=90)
    return out


@pytest.fixture(scope="module")
def browser(photos):
    options = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
               f"--use-file-for-fake-video-capture={photos / 'clip.mjpeg'}"]
    assert BROWSER, "no Chromium or Chrome here; install chromium"
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def requests():
    """Every address that the page of a test requests."""
    return []


@pytest.fixture
def page(browser, server, requests):
    """The page, just opened. At the end of the test, no script must have failed, no policy been broken, and no request
    gone elsewhere."""
    context, troubles = browser.new_context(), []
    opened = context.new_page()
    opened.set_default_timeout(SOON)
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda said: troubles.append(said.text) if "status of 4" not in said.text else None)
    opened.goto(server.url)
    opened.wait_for_selector("#samples button >> nth=2")
    yield opened
    context.close()
    assert troubles == [] and {urlsplit(url).netloc for url in requests} - {""} == {urlsplit(server.url).netloc}


@pytest.fixture(scope="module")
def predicted(ckpt, photos):
    """What `predict --photos` writes for each file, named without its folder: (JSON, table, standard error)."""
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos)
        for name in ("two.png", "one.png", "broken.jpg"):
            result = invoke("predict", "--ckpt", ckpt, "--photos", name, "--json", "--csv", "p.csv")
            told[name] = json.loads(result.stdout), (photos / "p.csv").read_text(), result.stderr
    return told


def wait_until(page, expression):
    """Like wait_for_function, which the page's policy forbids: it evaluates text in the page, again and again."""
    for _ in range(SOON // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def wait_for(page, found):
    """Wait until a list is not empty."""
    for _ in range(SOON // 50):
        if found:
            return
        page.wait_for_timeout(50)
    raise AssertionError("nothing came")


def choose(page, photos, *names):
    """Choose files on the page, and wait until the last is answered."""
    page.set_input_files("#files", [photos / name for name in names])
    page.wait_for_selector(f"#name:text-is('{names[-1]}')")


def rows(page, section):
    """The bars in a part of the answer: name, value as shown, and width in percent."""
    found = []
    for row in page.locator(f"section[aria-label='{section}'] .bars li").all():
        name, value = row.locator("> span").first.text_content(), row.locator(".value").text_content()
        found.append((name, value, float(re.search(r"width: ([\d.]+)%", row.locator("i").get_attribute("style"))[1])))
    return found


# ---------------------------------------------------------------- pictures and answers


def test_a_chosen_picture_is_answered_as_predict_answers(page, photos, predicted, ckpt):
    (told,), _, _ = predicted["one.png"]
    choose(page, photos, "one.png")
    expressions = sorted(told["p_expressions"].items(), key=lambda pair: -pair[1])
    found = rows(page, "Expressions")
    assert [(name, value) for name, value, _ in found] == [(name, f"{100 * p:.1f} %") for name, p in expressions]
    assert [width for *_, width in found] == pytest.approx([100 * p for _, p in expressions], abs=0.01)
    assert page.text_content(".first") == expressions[0][0] and page.locator("section[aria-label=Expressions] > ul li").count() == 6
    assert page.get_attribute("#stage img", "alt") == f"one.png: 1 face; face 0: {expressions[0][0]}"
    assert page.text_content("#status") == f"one.png: 1 face; face 0: {expressions[0][0]}"
    assert page.is_hidden("#film") and "A small face" not in page.text_content("#result")
    aus = {int(re.match(r"AU (\d+)", name)[1]): (value, width) for name, value, width in rows(page, "Action units")}
    assert aus == {int(au): (f"{100 * p:.1f} %", pytest.approx(100 * p, abs=0.01)) for au, p in told["p_aus"].items()}


def test_what_speaks_for_and_against_the_first_expression(page, photos, predicted, ckpt):
    """By the checkpoint's own table: AUs that it calls for, present or not, and other AUs that are present."""
    (told,), _, _ = predicted["one.png"]
    state = torch.load(ckpt, weights_only=True)
    shares = dict(zip(state["aus"], state["table"][state["emotions"].index(told["expressions"][0]["name"])].tolist()))
    seen = {au["au"] for au in told["aus"]}
    called = {au for au, share in shares.items() if share}
    choose(page, photos, "one.png")
    for title, expected in (("for", seen & called), ("against", seen ^ called)):
        group = page.locator(f"h3.{title} + ul li")
        values = [float(li.locator(".value").text_content().split()[0]) for li in group.all()]
        assert values == sorted(values, reverse=True)
        assert page.text_content(f"h3.{title}") == f"Speak {title} {told['expressions'][0]['name']}"
        assert {int(li.locator(".au").text_content().removeprefix("AU ")) for li in group.all()} == expected != set()
        for row in group.all():
            au = int(row.locator(".au").text_content().removeprefix("AU "))
            assert set(row.get_attribute("class").split()) == {"seen"} & ({"seen"} if au in seen else set()) | ({"called"} if au in called else set())
            note = f"called for: in {100 * shares[au]:.0f} % of such faces" + ("" if au in seen else "; not seen here")
            assert row.locator(".note").text_content() == (note if au in called else "seen here; not called for")


def test_the_page_for_a_method_without_aus_and_a_small_face(page, photos):
    page.route("**/predict*", lambda route: route.fulfill(json=[
        {**face, "small": True, "aus": None, "p_aus": None} for face in route.fetch().json()]))
    choose(page, photos, "one.png")
    part = page.locator("section[aria-label='Action units']")
    assert part.locator("p").text_content() == "None of this checkpoint’s is trained." and part.locator("li, details").count() == 0
    assert "A small face: less than 10 pixels between the eyes." in page.text_content("#result")


def test_the_page_leaves_out_aus_that_are_not_trained(page, photos):
    page.route("**/predict*", lambda route: route.fulfill(json=[
        {**face, "aus": [au for au in face["aus"] if au["au"] not in (1, 12)], "p_aus": {**face["p_aus"], "1": None, "12": None}}
        for face in route.fetch().json()]))
    choose(page, photos, "one.png")
    part = page.locator("section[aria-label='Action units']")
    shown = sorted(int(text.removeprefix("AU ")) for text in part.locator(".au").all_text_contents())
    assert shown == [au for au in AUS if au not in (1, 12)] and part.locator("p").last.text_content().endswith(" Not trained: AU 1, 12.")


def test_the_page_for_statistics_without_a_row_and_a_known_accuracy(page, photos, predicted, server):
    page.route("**/health", lambda route: route.fulfill(json={**route.fetch().json(), "test_accuracy": 0.25, "table": [[0] * 32] * 14}))
    page.goto(server.url)
    page.wait_for_selector("#samples button >> nth=2")
    assert "accuracy on its test faces 25.0 %, of 14 expressions." in page.text_content("footer")
    choose(page, photos, "one.png")
    (told,), _, _ = predicted["one.png"]
    part, seen = page.locator("section[aria-label='Action units']"), {au["au"] for au in told["aus"]}
    assert part.locator("p").first.text_content() == (
        f"The statistics have no row for {told['expressions'][0]['name']}: nothing speaks for or against it.")
    assert part.locator("h3").all_text_contents() == ["Seen"] and part.locator(".note, .called").count() == 0
    assert {int(text.removeprefix("AU ")) for text in part.locator("h3 + ul .au").all_text_contents()} == seen
    assert part.locator("summary").text_content() == f"{32 - len(seen)} not seen"


def test_two_faces_and_the_second_selected_by_mouse_and_keyboard(page, photos, predicted):
    told, _, _ = predicted["two.png"]
    firsts = [(face["expressions"][0]["name"], f"probability {100 * face['expressions'][0]['p']:.1f} %") for face in told]
    choose(page, photos, "two.png")
    width, height = Image.open(photos / "two.png").size
    stage, boxes = page.locator("#stage img").bounding_box(), page.locator(".box")
    page.wait_for_selector(".box >> nth=1")
    for i, face in enumerate(told):
        left, top, w, h = face["box"]
        seen, zoom = boxes.nth(i).bounding_box(), stage["width"] / width
        expected = {"x": stage["x"] + zoom * left, "y": stage["y"] + stage["height"] / height * top, "width": zoom * w, "height": zoom * h}
        assert seen == {key: pytest.approx(value, abs=1) for key, value in expected.items()}
        assert boxes.nth(i).text_content() == str(face["face"]) == str(i)

    def chosen():
        return page.text_content(".first"), page.text_content(".share"), [b.get_attribute("class") for b in boxes.all()], \
            [c.get_attribute("aria-pressed") for c in page.locator(".chip").all()]

    assert page.text_content("#status") == f"two.png: 2 faces; face 0: {firsts[0][0]}, face 1: {firsts[1][0]}"
    assert chosen() == (*firsts[0], ["box chosen", "box"], ["true", "false"])
    page.click("summary >> nth=0")
    wait_until(page, "opened.size === 1")
    boxes.nth(1).click()
    assert page.text_content("#status") == f"Face 1: {firsts[1][0]}, {firsts[1][1].removeprefix('probability ')}"
    assert page.locator("details").count() == 2 and page.locator("details[open]").count() == 1  # of the other face too
    assert chosen() == (*firsts[1], ["box", "box chosen"], ["false", "true"]) and firsts[0] != firsts[1]
    page.focus(".chip")
    page.keyboard.press("Enter")
    assert chosen()[:2] == firsts[0] and page.evaluate("document.activeElement.textContent") == "Face 0"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert chosen()[:2] == firsts[1]


def test_the_crop_and_gradcam_on_demand(page, photos, requests):
    choose(page, photos, "two.png")
    page.click(".chip >> nth=1")
    crop = page.get_attribute("figure img", "src")
    assert Image.open(io.BytesIO(base64.b64decode(crop.split(",")[1]))).size == (32, 32)
    assert not [url for url in requests if url.endswith("/gradcam")]
    page.focus("text=Where it looked (Grad-CAM)")
    page.keyboard.press("Enter")
    page.wait_for_selector("figure:nth-child(2) img")
    assert page.evaluate("document.activeElement.textContent").startswith("Grad-CAM: ")
    answer = page.request.post(f"{page.url}gradcam", data=base64.b64decode(crop.split(",")[1])).body()
    with page.expect_download() as download:  # the same image that the server sends
        page.evaluate("src => { const a = document.createElement('a'); a.href = src; a.download = 'cam.png'; a.click(); }",
                      page.get_attribute("figure:nth-child(2) img", "src"))
    assert download.value.path().read_bytes() == answer and len([url for url in requests if url.endswith("/gradcam")]) == 1
    assert page.text_content("figure:nth-child(2) figcaption").endswith(f"for {page.text_content('.first')}")
    page.click(".chip >> nth=0")  # for another face it is requested again; that of the first face is kept
    assert page.locator("figure").count() == 1
    page.evaluate("const button = document.querySelector('button[data-key=cam]'); button.click(); button.click()")
    page.wait_for_selector("figure:nth-child(2) img")
    assert len([url for url in requests if url.endswith("/gradcam")]) == 2  # once for each face
    page.click(".chip >> nth=1")
    assert page.locator("figure").count() == 2


def test_the_downloads_are_what_predict_writes(page, photos, predicted):
    choose(page, photos, "two.png", "nobody.png", "one.png")
    assert page.text_content("#count") == "Download all 3 faces of 3 pictures:"
    page.click("text=Where it looked (Grad-CAM)")
    page.wait_for_selector("figure:nth-child(2) img")
    contents = {}
    for kind in ("json", "csv"):
        with page.expect_download() as download:
            page.click(f"#{kind}")
        assert download.value.suggested_filename == f"mmlfer.{kind}"
        contents[kind] = download.value.path().read_text()
    assert json.loads(contents["json"]) == predicted["two.png"][0] + predicted["one.png"][0]
    assert contents["csv"] == predicted["two.png"][1] + predicted["one.png"][1].split("\n", 1)[1]
    assert [row["image"] for row in csv.DictReader(io.StringIO(contents["csv"]))] == ["two.png", "two.png", "one.png"]


@pytest.mark.parametrize("event, where", [("paste", "clipboardData"), ("drop", "dataTransfer")])
def test_pictures_are_pasted_and_dropped(page, photos, event, where):
    content = base64.b64encode((photos / "one.png").read_bytes()).decode()
    page.evaluate("""([type, where, content]) => {
        const data = new DataTransfer(), bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        data.items.add(new File([bytes], type + "ed.png", {type: "image/png"}));
        const kind = type === "paste" ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new kind(type, {[where]: data, bubbles: true, cancelable: true}));
    }""", [event, where, content])
    page.wait_for_selector(f"#name:text-is('{event}ed.png')")
    assert page.locator(".box").count() == 1


def test_what_cannot_be_read_is_reported_and_the_others_are_answered(page, photos, predicted, server, tmp_path, requests):
    sentence = re.search("Warning: skipped (.*)\n", predicted["broken.jpg"][2])[1]
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(20_000_001)
    page.set_input_files("#files", [photos / "broken.jpg", tmp_path / "large.png", photos / "nobody.png"])
    page.wait_for_selector("#name:text-is('nobody.png')")
    assert page.locator("#errors li").all_text_contents() == [sentence, "large.png: more than 20 MB; make the picture smaller"]
    assert not [url for url in requests if "large.png" in url] and page.text_content("#result h2") == "No face found"
    assert page.get_attribute("#errors", "role") == "alert" and page.is_hidden("#save")
    page.click("#close")
    assert page.is_hidden("#errors")


def test_several_pictures_one_after_the_other(page, photos):
    choose(page, photos, "two.png", "one.png")
    film = page.locator("#film button")
    assert [button.get_attribute("aria-pressed") for button in film.all()] == ["false", "true"]
    film.nth(0).click()
    assert page.text_content("#name") == "two.png" and page.locator(".chip:visible").count() == 2


# ---------------------------------------------------------------- the camera


def test_the_camera_starts_and_stops_and_sends_one_frame_at_a_time(page, server):
    under_way, most, sent = set(), [], []

    def begin(request):
        if "/predict" in request.url:
            under_way.add(request)
            most.append(len(under_way))
            sent.append(request.url)

    page.on("request", begin)
    page.on("requestfinished", lambda request: under_way.discard(request))
    page.evaluate("let now = 0; performance.now = () => now += 20")  # a slow machine would search every frame
    page.click("#start")
    page.wait_for_selector("#rate:text-matches('^[0-9.]+ frames a second$')")
    page.wait_for_selector(".box")
    with page.expect_request(lambda request: "near=%5B%5B%5B" in request.url):
        assert "near=%5B%5D" in sent[0]  # that frame is searched, and in this one the face looked for where it was
    assert max(most) == 1 and len(sent) >= 2 and page.is_disabled("#start") and page.text_content(".first")
    assert 0.05 < float(page.text_content("#rate").split()[0]) < 100
    assert page.locator("#save:visible").count() == 0
    page.click("#take")
    page.wait_for_selector("#name:text-is('camera-1.jpg')")
    assert page.locator("video").count() == 0 and page.is_hidden("#controls") and page.locator(".box").count() == 1
    count = len(sent)
    page.wait_for_timeout(300)
    assert len(sent) == count  # the camera is off
    page.click("#start")
    page.wait_for_selector("video")
    tracks = page.evaluate_handle("document.querySelector('video').srcObject.getTracks()")
    page.click("#stop")
    assert tracks.evaluate("tracks => tracks.map(track => track.readyState)") == ["ended"]
    assert page.text_content("#name") == "camera-1.jpg" and page.evaluate("document.activeElement.id") == "start"


def test_an_answer_after_the_camera_is_stopped_replaces_nothing(page, photos):
    """The answer to the camera's last frame comes when a picture is selected again."""
    choose(page, photos, "two.png")
    held = []
    page.route(re.compile("/predict.*name=camera"), lambda route: held.append(route))
    page.click("#start")
    wait_for(page, held)
    assert page.is_visible("#film")  # it leads back to the picture
    page.click("#stop")
    before = page.inner_html("#result"), page.evaluate("shown.name")
    held[0].continue_()
    page.wait_for_event("requestfinished")
    page.wait_for_timeout(200)
    assert (page.inner_html("#result"), page.evaluate("shown.name")) == before == (before[0], "two.png")
    assert len(held) == 1 and page.locator(".box").count() == 2 and page.is_hidden("#errors") and page.is_hidden("#film")
    held.clear()
    page.click("#start")
    wait_for(page, held)
    page.click("#stop")
    held[0].fulfill(body="no JSON")
    page.wait_for_timeout(200)
    assert page.is_hidden("#errors")  # of a frame that nobody asks for any more


def test_where_the_chosen_face_is_gone_the_first_is_chosen(page, photos):
    """As in the camera's next frame."""
    choose(page, photos, "two.png")
    page.click(".chip >> nth=1")
    page.evaluate("shown.results.push({...shown.results[1], face: 2}); choose(2); shown.results.pop(); drawResult()")
    assert [chip.get_attribute("aria-pressed") for chip in page.locator(".chip").all()] == ["true", "false"]


def test_the_same_file_can_be_chosen_twice(page, photos):
    """A browser tells of a choice that differs from the last one, so that nothing must remain chosen."""
    choose(page, photos, "one.png")
    assert page.evaluate("document.getElementById('files').files.length") == 0
    page.set_input_files("#files", [photos / "one.png"])
    page.wait_for_selector("#film button >> nth=1")


# ---------------------------------------------------------------- for everyone


def test_on_a_phones_width_nothing_reaches_beyond_it(page, photos, tmp_path):
    long = tmp_path / f"{'a_long_name_without_a_blank_' * 5}.png"
    shutil.copy(photos / "two.png", long)
    for width in (320, 375):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_input_files("#files", [photos / "broken.jpg", long, photos / "one.png", long])
    page.wait_for_selector("#film button >> nth=2")
    page.click("text=Where it looked (Grad-CAM)")
    page.wait_for_selector("figure:nth-child(2) img")
    for summary in page.locator("summary").all():
        summary.click()
    for width in (320, 375):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_sample_by_the_keyboard_alone(page):
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent || document.activeElement.firstElementChild.alt"))
    assert reached == ["Choose pictures", "Use the camera", "Drawn face 1", "Drawn face 2", "Drawn face 3"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("#name:text-is('drawn-3.jpg')")
    assert page.locator(".box").count() == 1


def test_everything_has_a_name_for_screen_readers(page, photos):
    choose(page, photos, "two.png", "one.png")
    nameless = page.evaluate("""[...document.querySelectorAll("button, input, img, section, [role=group], video")].filter(node =>
        !(node.getAttribute("aria-label") || node.alt || node.textContent.trim() || node.querySelector("img[alt]")
          || node.ariaHidden)).map(node => node.outerHTML)""")
    assert nameless == [] and page.get_attribute("html", "lang") == "en" and page.locator("h1").count() == 1
    assert page.locator("section").count() >= 5 and page.get_attribute("#status", "role") == "status"


def test_the_page_describes_the_model_and_its_limits(page, server):
    facts = page.text_content("footer")
    assert "Method mtl, resnet34, statistics wild; trained on “faces”, epoch 0; accuracy on its test faces not known" in facts
    assert "not what a person feels" in facts and f"curl --data-binary @photo.jpg {server.url}predict" in facts
    assert page.text_content("#place") == "Runs on this machine; pictures never leave it" and not page.get_attribute("#place", "class")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme):
    """WCAG's ratios, 4.5 for text and 3 for marks, in the colours of the light and the dark scheme."""
    block = re.findall(r":root \{(.*?)\}", PAGE, re.S)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for front, back, least in [("ink", "card", 7), *[(text, "card", 4.5) for text in ("soft", "accent", "seen", "against")],
                               ("soft", "ground", 4.5), ("ink", "wash", 4.5), ("on-accent", "accent", 4.5),
                               ("alarm", "alarm-ground", 4.5), ("seen", "track", 3), ("accent", "track", 3), ("ink", "track", 3)]:
        light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (front, back)


def test_not_one_request_went_elsewhere(page, photos, server, requests):
    """Every request of a whole visit; for the pages of the other tests the fixture checks it."""
    choose(page, photos, "one.png")
    page.click("text=Where it looked (Grad-CAM)")
    page.wait_for_selector("figure:nth-child(2) img")
    with page.expect_download():  # of what it has: nothing is asked for again
        page.click("#csv")
    asked = [url.removeprefix(server.url) for url in requests if not url.startswith(("data:", "blob:"))]
    assert sorted(asked) == sorted(["", "health", *(f"sample/{i}.jpg" for i in range(3)), "predict?name=one.png&crops=1", "gradcam"])
    assert set(re.findall(r"https?://[\w.]+", PAGE)) == {"http://www.w3.org"}  # the name of SVG, which is never requested
