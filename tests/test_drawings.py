"""What `predict --draw` draws on photographs."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from mmlfer_commands import _outputs, predict


def test_drawn_pictures_say_the_first_expression_and_the_aus():
    image = np.full((90, 120, 3), 128, np.uint8)
    result = {"box": [30, 30, 40, 50], "expressions": [{"name": "sadly angry", "p": 0.714}],
              "aus": [{"au": 4, "name": "brow lowerer", "p": 0.9}, {"au": 15, "name": "", "p": 0.8}]}
    assert predict.label_of(result, 26) == "sadly angry 71 %\nAUs: 4 15"
    assert predict.label_of(result, 9) == "sadly\nangry 71\n%\nAUs: 4 15"
    drawn = np.asarray(predict.draw_predictions(image, [result]), int)
    assert drawn.shape == (480, 640, 3)  # a small picture is enlarged
    zoom = 640 / 120
    for x, y in ((30, 55), (70, 55), (50, 80)):  # middles of the box's sides
        x, y = round(x * zoom), round(y * zoom)
        assert (drawn[y - 3 : y + 4, x - 3 : x + 4] == (255, 212, 0)).all(2).any()
    assert (image == 128).all()


def test_each_face_has_its_own_box_and_its_label_on_dark_ground(monkeypatch):
    spots, labels, place, label_of = [], [], predict.place_label, predict.label_of
    monkeypatch.setattr(predict, "place_label", lambda *args: spots.append(place(*args)) or spots[-1])
    monkeypatch.setattr(predict, "label_of", lambda *args: labels.append(label_of(*args)) or labels[-1])
    results = [{"box": [left, top, 80, 90], "expressions": [{"name": name, "p": 0.5}], "aus": []}
               for left, top, name in ((40, 150, "awe"), (600, 240, "sadly angry"))]
    drawn = np.asarray(predict.draw_predictions(np.full((480, 760, 3), 128, np.uint8), results), int)
    assert labels == ["awe 50 %\nAUs: none", "sadly angry 50 %\nAUs: none"]
    white, yellow = (drawn > 200).all(2), (drawn == (255, 212, 0)).all(2)
    for x0, y0, x1, y1 in (map(round, spot) for spot in spots):
        assert white[y0:y1, x0:x1].sum() > 100 and not white[y0 : y0 + 3, x0:x1].any()
        white[y0:y1, x0:x1] = False
    assert not white.any()  # no letter lies beside its ground
    for left, top, *_ in (result["box"] for result in results):
        assert yellow[top - 2 : top + 93, left + 40].any() and yellow[top + 45, left - 2 : left + 3].any()


def test_labels_of_neighbours_do_not_cover_each_other(monkeypatch):
    spots, place = [], predict.place_label
    monkeypatch.setattr(predict, "place_label", lambda *args: spots.append(place(*args)) or spots[-1])
    results = [{"box": [200 + 90 * i, 150, 80, 90], "expressions": [{"name": "sadly angry", "p": 0.5}], "aus": []} for i in range(3)]
    predict.draw_predictions(np.full((480, 760, 3), 128, np.uint8), results)
    assert len(spots) == 3 and spots[0][2] - spots[0][0] > 90
    assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a, b in itertools.combinations(spots, 2))


@pytest.mark.parametrize("across, down, size", [(15, 8, 44), (30, 15, 30), (4, 2, 400)])
def test_faces_of_a_crowd_are_seen_and_a_legend_below_names_them(monkeypatch, across, down, size):
    """Each has its number at its box; no face is covered by a fifth; each answer is written within the picture, none twice."""
    texts, draw = [], predict.Label.draw
    monkeypatch.setattr(predict.Label, "draw", lambda self, pen, spot: texts.append((self.text, spot)) or draw(self, pen, spot))
    image = np.full((954, 1920, 3), 128, np.uint8)
    boxes = [[(i + 0.5) * 1920 / across - size / 2, (j + 0.5) * 954 / down - 0.6 * size, size, 1.2 * size] for j in range(down) for i in range(across)]
    results = [{"box": box, "expressions": [{"name": "fearfully disgusted", "p": 0.9}], "aus": [{"au": au} for au in (1, 2, 4, 9, 12, 17, 25, 26)]}
               for box in boxes]
    drawn = np.asarray(predict.draw_predictions(image, results), int)
    n = len(boxes)
    assert drawn.shape[1] == 1920 and drawn.shape[0] > 954 and [text for text, _ in texts[:n]] == [str(i) for i in range(n)]
    assert [text for text, _ in texts[n:]] == [f"{i}  fearfully disgusted 90 %\nAUs: 1 2 4 9 12 17 25 26" for i in range(n)]
    for (_, spot), (left, top, width, height) in zip(texts, boxes):
        seen = drawn[round(top) + 6 : round(top + height) - 6, round(left) + 6 : round(left + width) - 6]
        assert (abs(seen - 128).max(2) > 9).mean() < 0.2
        assert abs((spot[0] + spot[2]) / 2 - left - width / 2) < 1.2 * width and abs((spot[1] + spot[3]) / 2 - top - height / 2) < height
    legend = [spot for _, spot in texts[n:]]
    assert all(954 <= top < low <= len(drawn) + 1 and left >= 0 and right <= 1920 for left, top, right, low in legend)
    assert len({(round(left), round(top)) for left, top, *_ in legend}) == n


def test_labels_lie_in_the_picture_and_on_no_face():
    box, other = (100, 60, 200, 160), (110, 10, 190, 55)
    for picture, taken in (((640, 480), [box]), ((640, 480), [box, other]), ((640, 170), [box, other])):
        spot = predict.place_label(box, (150, 40), picture, taken)
        assert 0 <= spot[0] < spot[2] <= picture[0] and 0 <= spot[1] < spot[3] <= picture[1]
        assert not any(spot[0] < t[2] and t[0] < spot[2] and spot[1] < t[3] and t[1] < spot[3] for t in taken)
    assert predict.place_label(box, (150, 40), (640, 480), [box])[3] == 60  # above is the first choice
    sides = enumerate(((144, 272), (142, 271), (140, 268), (143, 268), (146, 272), (144, 260)))
    row = [(25 + 145 * i, top, 125 + 145 * i, bottom) for i, (top, bottom) in sides]  # people beside each other
    taken = row.copy()
    for box in row:
        taken.append(predict.place_label(box, (162, 36), (900, 400), taken))
    assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a, b in itertools.combinations(taken, 2))
    full = predict.place_label((0, 0, 640, 480), (150, 40), (640, 480), [(0, 0, 640, 480)])
    assert 0 <= full[0] < full[2] <= 640 and 0 <= full[1] < full[3] <= 480  # where there is no room
    assert predict.place_label((5, 60, 35, 90), (96, 40), (40, 640), [])[0] == 0  # wider than the picture: its beginning is seen


@pytest.mark.parametrize("width, height", [(100, 100), (100, 1500), (300, 2400), (6000, 300), (6000, 4000)])
def test_a_label_fits_its_picture_and_can_be_read(width, height, monkeypatch):
    seen, labels, place, label_of = [], [], predict.place_label, predict.label_of
    monkeypatch.setattr(predict, "place_label", lambda *args: seen.append(args) or place(*args))
    monkeypatch.setattr(predict, "label_of", lambda *args: labels.append(label_of(*args)) or labels[-1])
    result = {"box": [10, 10, 60, 60], "expressions": [{"name": "disgustedly surprised", "p": 1.0}],
              "aus": [{"au": au} for au in (1, 2, 4, 17, 23, 25, 26, 43)]}
    predict.draw_predictions(np.zeros((height, width, 3), np.uint8), [result])
    ((_, (w, h), picture, _),), (label,) = seen, labels
    assert w <= picture[0] and h <= picture[1]
    assert h / len(label.splitlines()) > max(14, math.sqrt(width * height) / 60)
    assert width == 100 < height or label.splitlines()[0] == "disgustedly surprised 100 %"


@pytest.mark.parametrize("size, written", [((65600, 8), (65500, 8)), ((8, 65500), (8, 65500)), ((131000, 40), (65500, 20))])
def test_drawings_have_no_longer_sides_than_a_jpeg_can_have(tmp_path, size, written):
    (tmp_path / "drawn.jpg").write_bytes(_outputs.encoded(Image.new("RGB", size), "JPEG"))
    with Image.open(tmp_path / "drawn.jpg") as image:
        assert image.size == written
