"""Trained models: of a checkpoint, of a folder that `export` writes, or of the Hugging Face Hub.

A folder holds model.safetensors (the net alone), config.json (all else that prediction needs) and
README.md (a model card). Of these and of the Hub only tensors and JSON are read: no code is run.
"""

import json
import string
import sys
from pathlib import Path

import click
import yaml

from mmlfer import (
    AU_NAMES, FORMAT, PATH, SHARE, InputError, Run, Vocabulary, base_net_of, brief, check_state,
    make_base_net, percent, plural, read_checkpoint, refused, torch, write_whole)
from mmlfer_commands._compounds import compounds_option, with_compounds
from mmlfer_commands._outputs import markdown
from mmlfer_commands._runs import tell_if_slower
from mmlfer_commands._stats import log_prior

MODEL_FORMAT = "mmlfer model 1"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
KEPT = ("emotions", "aus", "trained_aus", "prior", "epoch", "template")  # of a checkpoint
HUB = "hf:"
CONFIG_BYTES = 2**20  # most of a config.json, and of the header of a model.safetensors
ckpt_option = click.option("--ckpt", required=True, type=PATH, metavar="MODEL", help="best.pt of a "
                           "run, a folder of `export`, or hf:USER/NAME[@REVISION] on the Hugging "
                           "Face Hub.")

adjust_option = click.option("--logit-adjust", "tau", default=0.0, type=SHARE, help="tau: lower "
                             "each expression's z by tau log p(expression), p of the training "
                             "rows; 1 aims at Diag.")


def model_options(command):
    """--ckpt, --logit-adjust and --compounds, as load_model takes them."""
    return ckpt_option(adjust_option(compounds_option(command)))


def load_model(source, device="auto", precision="float32", tau=0.0, compounds=None):
    """The net of a checkpoint, a folder or a name hf:USER/NAME[@REVISION], in test mode, and its
    checkpoint's dict, adjusted by --logit-adjust, then with the expressions of --compounds. The
    dict's "source" names it for people, with the revision that was fetched."""
    name, folder = str(source), Path(source)
    if name.startswith(HUB):
        folder, name = fetch(name)
        click.echo(f"model: {name}", err=True)
    state = read_folder(folder) if folder.is_dir() else read_checkpoint(folder)
    state = adjusted(state, tau, name) if tau else state
    state = with_compounds(state, compounds, name) if compounds else state
    net = base_net_of(state, name, device, precision)
    tell_if_slower(precision, net.mean.device)
    return net, {**state, "source": name}


def adjusted(state, tau, name):
    """A checkpoint's dict whose z_emo is lower by tau log p(expression). Its figures on the test
    set are no longer known."""
    if state["prior"] is None:
        raise InputError(f"{name}: does not hold p(expression), which --logit-adjust needs; train "
                         "it again")
    if own := state["config"]["logit_adjust"]:
        raise InputError(f"{name}: was made with --logit-adjust {own:g} already; leave it out here")
    bias = state["net"]["fe.bias"] - tau * log_prior(state["prior"])
    return {**state, "net": {**state["net"], "fe.bias": bias}, "test": None,
            "config": {**state["config"], "logit_adjust": tau}}


def size_of_net(state):
    """The number of bytes of a checkpoint's net."""
    with torch.device("meta"):
        config = state["config"]
        net = make_base_net(config["arch"], vocabulary=Vocabulary.of(state), size=config["size"])
    return sum(t.numel() * t.element_size() for t in net.state_dict().values())


def check_bytes(count, most, where):
    """InputError if a file is larger than what it should hold."""
    if count > most:
        raise InputError(f"{where}: {count / 2**20:.0f} MB, expected {most / 2**20:.0f} at most: "
                         "not a model that `mmlfer export` wrote")


def read_config(path):
    """A config.json as a checkpoint's dict without its net."""
    with refused(path, "not the description of a model that `mmlfer export` wrote ({})", OSError,
                 ValueError, KeyError, TypeError, RecursionError):
        check_bytes(path.stat().st_size, CONFIG_BYTES, path)
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != MODEL_FORMAT:
            raise ValueError(f"format {facts['format']!r:.40}")
        state = {**dict.fromkeys(Run.ORIGIN, ""), **{name: facts[name] for name in KEPT}}
        state |= {"format": FORMAT, "config": facts["options"], "net": {}, "meta": {},
                  "table": torch.tensor(facts["statistics"]["table"], dtype=torch.float32),
                  "backbone": facts["backbone"], "test": facts["test"], "train_names": [],
                  "images": facts["trained_on"]["images"]}
    return check_state(state, path)


def read_folder(folder):
    """The checkpoint's dict of a folder that `export` wrote."""
    state, path = read_config(folder / CONFIG), folder / WEIGHTS
    with refused(path, "reading it takes: pip install -e '.[hub]'", ImportError):
        from safetensors.torch import load
    with refused(path, "cut off or damaged ({}); fetch or export it again", Exception):
        check_bytes(path.stat().st_size, size_of_net(state) + CONFIG_BYTES, path)
        state["net"] = load(path.read_bytes())  # its errors differ by the kind of damage
    return state


def fetch(name):
    """Fetch hf:USER/NAME[@REVISION] into the Hub's own cache. -> folder, name with revision"""
    with refused(name, "fetching it takes: pip install -e '.[hub]'", ImportError):
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bars()
    try:
        config = Path(fetch_file(hub, repository, CONFIG, revision or None, CONFIG_BYTES))
        most = size_of_net(read_config(config)) + CONFIG_BYTES
        fetch_file(hub, repository, WEIGHTS, config.parent.name, most)
    except (errors.HFValidationError, errors.HfHubHTTPError, errors.EntryNotFoundError,
            OSError) as error:
        raise InputError(f"{name}: {why_not(errors, error)}") from None
    return config.parent, f"{HUB}{repository}@{config.parent.name}"


def fetch_file(hub, repository, file, revision, most):
    """The path of a repository's file in the cache; one that is too large is not fetched."""
    about = hub.hf_hub_download(repository, file, revision=revision, dry_run=True)
    check_bytes(about.file_size, most, f"{HUB}{repository}: {file}")
    return hub.hf_hub_download(repository, file, revision=revision)


def why_not(errors, error):
    """What is wrong with a repository on the Hub, and what to do, by the kind of error."""
    reasons = {  # the kind of one before is a kind of the next
        errors.HFValidationError: "not a name on the Hub; write hf:USER/NAME[@REVISION]",
        errors.RepositoryNotFoundError: "no such repository on the Hub, or a private one; check "
        "the name, or log in with: hf auth login",
        errors.RevisionNotFoundError: "no such revision; leave out @REVISION for the newest",
        errors.LocalEntryNotFoundError: "not in the cache, and the Hub cannot be reached; try "
        "again with a connection, or give a folder of `mmlfer export`",
        errors.EntryNotFoundError: f"no {CONFIG} and {WEIGHTS}: not a model of `mmlfer export`"}
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)),
                f"cannot be fetched ({brief(error)}); try again")


def shared_config(state, test, versions):
    """The content of config.json for a checkpoint's dict and the numbers of its test, or None.
    Options have no paths: nothing in them names a person or a machine."""
    cfg, net = state["config"], state["net"]
    options = {**cfg, "data": "", "device": "auto",
               **{name: Path(cfg[name]).name for name in ("stats", "weights")}}
    return {"format": MODEL_FORMAT, "architecture": cfg["arch"], "size": cfg["size"],
            "colour_order": "RGB", "mean": net["mean"].flatten().tolist(),
            "std": net["std"].flatten().tolist(), **{name: state[name] for name in KEPT},
            "statistics": {"name": options["stats"], "table": state["table"].tolist()},
            "trained_on": {"images": state["images"]}, "backbone": state["backbone"],
            "options": options, "test": test, "versions": versions}


def write_folder(folder, state, test, versions):
    """Write a checkpoint's dict as a folder: the net, its description and its card."""
    from safetensors.torch import save

    state = {"images": len(state["train_names"]), **state}
    net = {name: tensor.contiguous() for name, tensor in state["net"].items()}
    config = shared_config(state, test, versions)
    write_whole(folder / WEIGHTS, save(net, {"format": "pt"}))
    write_whole(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    write_whole(folder / CARD, card(state, test).encode())


def tested(source, state):
    """A model's figures on its test set, as its folder has them, or the test.json beside the file;
    None if it was not tested."""
    if "test" in state:
        return state["test"]
    names = ("n", "accuracy", "diag", "macro_f1", "per_class", "au_f1", "au_f1_macro")
    try:
        run = json.loads((Path(source).parent / "test.json").read_text(encoding="utf-8"))
        result = run[Path(source).stem]
        images = dict(zip(state["emotions"], map(sum, result["confusion"])))
        figures = {"images": images, "rafce": run.get("rafce"),
                   **{name: result[name] for name in names}}
        return figures if result["epoch"] == state["epoch"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def front_matter(state, test):
    """What the Hub reads at the top of a card, as YAML."""
    facts = {"library_name": "mmlfer", "pipeline_tag": "image-classification",
             "tags": ["facial-expression-recognition", "compound-expressions", "action-units"]}
    if test:
        kinds = {"accuracy": ("accuracy", "Acc."), "diag": ("accuracy", "Diag. (mean of classes)"),
                 "macro_f1": ("f1", "macro F1"), "au_f1_macro": ("f1", "AU F1, mean")}
        metrics = [{"type": kind, "name": name, "value": round(100 * test[key], 2)}
                   for key, (kind, name) in kinds.items() if test[key] is not None]
        dataset = {"type": "rafce" if test["rafce"] else "own",
                   "name": "RAF-CE" if test["rafce"] else "a data set of its author's"}
        result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
        facts["model-index"] = [{"name": state["config"]["method"], "results": [result]}]
    return yaml.safe_dump(facts, sort_keys=False)


def tables_of(test):
    """The test's figures by expression and by AU, as Markdown, in percent."""
    if not test:
        return "Not tested."
    means = ", ".join(f"{name} {percent(test[key]).strip()} %" for key, name in (
        ("accuracy", "Acc."), ("diag", "Diag."), ("macro_f1", "macro F1")))
    tables = [markdown(["expression", "test images", "right, %"], [
        [name, n, percent(test["per_class"][name]).strip()] for name, n in test["images"].items()])]
    if aus := [[au, AU_NAMES[int(au)], percent(f1).strip()] for au, f1 in test["au_f1"].items()
               if f1 is not None]:
        tables.append(markdown(["AU", "", "F1, %"], aus))
    return "\n\n".join([f"{test['n']} images: {means}.", *tables])


def card(state, test):
    """A model card, as the Hugging Face Hub reads it."""
    cfg, template = state["config"], Path(__file__).with_name("card.md").read_text("utf-8")
    return string.Template(template).substitute(
        front=front_matter(state, test), test=tables_of(test), aus=len(state["aus"]),
        emotions=", ".join(state["emotions"]), images=plural(state["images"], "image"),
        epoch=state["epoch"], **{name: cfg[name] for name in ("method", "arch", "size")})
