"""Cross-validation: the fold of each image, and the partition of a run that tests one fold."""

import contextlib
import dataclasses

import numpy as np

from mmlfer import TEST, TRAIN, VAL, InputError, plural, tell_once
from mmlfer_commands._inputs import by_numbers
from mmlfer_commands._labels import count_images, load_faces, place_people

ALWAYS = "train"  # in the column fold: an image that every fold trains on
SEED = 0  # of the folds: runs of any seed have the same


def load_fold(folder, options, keep=()):
    """load_faces. Where a run's options have a fold I, part I is to test, the next to validate and
    the rest to train on, whatever else labels.csv says; Faces.fold has each image's part."""
    folds, fold = options["folds"], options["fold"]
    if folds is fold is None:
        return load_faces(folder, keep)
    faces = load_faces(folder, (*keep, "person", "fold"), parts=False)
    where = f"{folder}/{faces.files[1]}"
    parts = find_folds(faces, folds, where)
    k = max(parts)
    if k < 3 or not fold or fold > k:
        raise InputError(f"{where}: {plural(k, 'fold')}; it takes three or more, and --fold I, "
                         f"1 to {k}, says which to test")
    split = np.where(parts == fold, TEST, np.where(parts == fold % k + 1, VAL, TRAIN))
    return dataclasses.replace(faces, split=split, fold=parts)


def load_fold_of(state, folder, keep=()):
    """load_faces; in the fold of a checkpoint's dict, if these are the data that it is of."""
    options = state["config"]
    if options["folds"] or options["fold"]:
        with contextlib.suppress(InputError):  # other data may have no such folds
            faces = load_fold(folder, options, keep)
            if {*faces.of("train").names}.issuperset(state["train_names"] or [""]):
                return faces
        tell_once(f"{folder}: not what the folds of {state['source']} are of; its own parts count")
    return load_faces(folder, keep)


def find_folds(faces, folds, where):
    """The number of each image's fold, (N,) 1..K, or 0 if every fold trains on it. InputError for
    `folds` that cannot be made."""
    people = faces.columns.get("person")
    if "fold" in faces.columns:
        return given_folds(faces, folds, where)
    if folds == "persons" and people is not None:
        return fold_numbers(people)
    units, people = ("images", faces.names) if people is None else ("persons", people)
    most = len({*people})
    if not str(folds).isdecimal() or not 3 <= int(folds) <= most:
        raise InputError(f"{where}: --folds takes 3 to {most}, the number of its {units}, or "
                         "persons, by its column person; with a column fold, it may be left out")
    return drawn_folds(faces.y_emo, people, int(folds))


def drawn_folds(y_emo, people, k):
    """Folds 1..k with like shares of each expression, each person in one; of folds that lack the
    same, the smallest grows. y_emo (N,), people: N names -> (N,)"""
    images, person = count_images(y_emo, people)
    images = np.column_stack([images, images.sum(1) / 1000])
    return place_people(images, [1 / k] * k, SEED)[person] + 1


def fold_numbers(texts, none=()):
    """The numbers 1, 2 ... of texts in their order, 2 before 10; 0 of those in `none`. (N,)"""
    order = sorted({*texts}.difference(none), key=by_numbers)
    numbers = {text: i for i, text in enumerate(order, 1)}
    return np.array([numbers.get(text, 0) for text in texts])


def given_folds(faces, folds, where):
    """The folds of a column, (N,); InputError if a row has none, or a person is in two."""
    texts, people, first = faces.columns["fold"], faces.columns.get("person", ()), {}
    if "" in texts:
        raise InputError(f"{where}: {faces.names[[*texts].index('')]} has no fold; name it, or "
                         f"write {ALWAYS} for an image that every fold is to train on")
    for name, person, text in zip(faces.names, people, texts):
        other, its_text = first.setdefault(person, (name, text))
        if text != its_text:
            raise InputError(f"{where}: person {person} is in two folds, with {other} and {name}; "
                             "keep each in one, or remove the column person")
    parts = fold_numbers(texts, (ALWAYS,))
    if folds not in (None, str(max(parts))):
        raise InputError(f"{where}: its column fold has {max(parts)}, not --folds {folds}; leave "
                         "--folds out, or remove the column")
    return parts
