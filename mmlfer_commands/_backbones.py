"""Weights files: what the backbone starts from, and what `pretrain` writes."""

import hashlib
import re
from pathlib import Path

from mmlfer import (
    ARCHS, HERE, NORMS, RAFCE, InputError, make_backbone, make_base_net, refused, torch, torch_load)
from mmlfer_commands._models import CONFIG, read_folder
from mmlfer_commands._nets import in_own_names, is_adaface, make_timm, norm_of


NO_FILES = {"none": "half", "imagenet": "imagenet", "timm": "auto"}  # words of --weights: its norm


def find_weights(weights, arch):
    """--weights as a path or a word; auto is weights/ARCH_casia.pth if it is there, else none."""
    casia = Path("weights") / f"{arch}_casia.pth"
    if weights != "auto":
        return weights
    return next((str(path) for path in (HERE / casia, casia) if path.exists()), "none")


def backbone_name(weights, norm, net=None):
    """The backbone that a run starts from, for its records: a word, with the normalisation if that
    is unusual, or for a file a digest of the tensors and the normalisation that the net took."""
    if weights in NO_FILES:
        usual = norm in ("auto", NO_FILES[weights])
        return weights if usual else f"{weights}, {norm} normalisation"
    digest = hashlib.sha256()
    for name, tensor in {**net.backbone.state_dict(), "mean": net.mean, "std": net.std}.items():
        if not name.endswith("num_batches_tracked"):  # files may lack it, and nothing reads it
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def given_backbone(weights, arch, bgr, norm, size=112):
    """The backbone_name of a run that would start with these options."""
    weights = find_weights(weights, arch)
    return backbone_name(weights, norm, None if weights in NO_FILES else
                         load_backbone(weights, arch, bgr, norm, size=size)[0])


def start_base_net(weights, arch="resnet34", bgr=False, norm="auto", vocabulary=RAFCE, size=112):
    """The base net at the start of a run, and a line that says where its backbone comes from."""
    weights = find_weights(weights, arch)
    if bgr and weights in NO_FILES:
        raise InputError("--weights-bgr: says how a file was trained; name it with --weights")
    if weights not in NO_FILES:
        return load_backbone(weights, arch, bgr, norm, vocabulary, size)
    source = "timm" if arch.startswith("timm:") else "imagenet" if arch.startswith("resnet") else ""
    if weights not in ("none", source):
        raise InputError(f"--weights {weights}: there are none for --arch {arch}; give "
                         f"{source + ', ' * bool(source)}a file or none")
    if weights == "imagenet":
        return load_imagenet(arch, norm, vocabulary)
    net = make_base_net(arch, norm_of(arch, norm), vocabulary, size)
    if weights == "timm":
        net.backbone = make_timm(arch, size, pretrained=True)
        return net, "its own pretrained weights, from timm"
    return net, "from scratch. The paper starts from CASIA-WebFace: see --weights"


WRAPPERS = ("state_dict", "model_state_dict", "net_state_dict", "model_state", "model", "net",
            "backbone", "ema")
PREFIXES = ("module", "model", "net", "backbone", "base", "base_model", "resnet", "encoder",
            "encoder_q", "feature", "features")
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
LAYERS = r"conv1|bn[12]|prelu|layer[1-4]|[014567]|input_layer\.[012]|body\.\d+|output_layer\.0"
TENSOR = re.compile(rf"(?:(?:{'|'.join(PREFIXES)})\.)*({LAYERS})(\..+)")
BACKBONE_FORMAT = "mmlfer backbone 1"  # of the file that `pretrain` writes at its end
PRETRAINING_FORMAT = "mmlfer pretraining 1"  # of a checkpoint of `pretrain`, X.last.pt


def read_tensors(path):
    """The content of a file of torch or safetensors, or of a shared model: no code is run."""
    if Path(path, CONFIG).is_file():
        state = read_folder(Path(path))
        return {"format": state["format"], "state_dict": state["net"]}
    if not path.lower().endswith(".safetensors"):
        return torch_load(path)
    with refused(path, "reading it takes: pip install safetensors", ImportError):
        from safetensors.torch import load
    with (refused(path, "not a checkpoint that can be read safely ({})", Exception),
          refused(path, "no such file", FileNotFoundError)):
        return load(Path(path).read_bytes())  # its errors differ by the kind of damage


def read_backbone(path, own=None):
    """A file's {name in our net: (key in the file, tensor)}, the keys of all else in it, {"mean":
    .., "std": ..} if mmlfer wrote it, and whether it is AdaFace's. own: names of a net of timm."""
    state = content = read_tensors(path)
    for _ in WRAPPERS:  # to the innermost dict; no oftener, because a dict may hold itself
        if isinstance(state, dict):
            state = next((state[w] for w in WRAPPERS if isinstance(state.get(w), dict)), state)
    if not isinstance(state, dict):
        raise InputError(f"{path}: expected a state dict, got {type(state).__name__}")
    if content.get("format") == PRETRAINING_FORMAT:
        raise InputError(f"{path}: what `mmlfer pretrain` resumes from; give "
                         f"{path.removesuffix('.last.pt')}.pth, which it writes at its end")
    found, left = named_tensors(state, path, own)
    ours = str(content.get("format")).startswith("mmlfer")
    norm = {name: {**content, **state}.get(name) for name in ("mean", "std") if ours}
    return in_own_names(found), [key for key in left if key not in norm], norm, is_adaface(found)


def named_tensors(state, path, own=None):
    """{name in its net: (key, tensor)} of a state dict's backbone, and the keys of the rest. Of a
    net of timm `own` are the names; tensors of a part that it has, but of another name, stay in:
    they have no place, and the file is another net's."""
    found, left = {}, []
    for key, value in state.items():
        key = str(key)
        name = name_of_tensor(key, own)
        if name in found:
            raise InputError(f"{path}: two backbones, {found[name][0]} and {key}; keep one of them")
        if name and isinstance(value, torch.Tensor):
            found[name] = key, value
        else:
            left.append(key)
    return found, left


def name_of_tensor(key, own=None):
    """A backbone tensor's name in its net, of timm if its names are `own`; None for other keys."""
    if own is None:
        match = TENSOR.fullmatch(key.replace("_orig_mod.", ""))  # torch.compile's
        return match and SEQUENTIAL.get(match[1], match[1]) + match[2]
    rest, parts = [key], {name.partition(".")[0] for name in own}
    while rest[-1] not in own and rest[-1].partition(".")[0] in PREFIXES:
        rest.append(rest[-1].partition(".")[2])
    return next((r for r in rest if r in own or r.partition(".")[0] in parts), None)


def misfits(found, own):
    """Why a file's tensors, {name: (key, tensor)}, are not a net's own, {name: tensor}: reasons."""
    wrong = [f"{key} has no place" for name, (key, _) in found.items() if name not in own]
    for name, tensor in own.items():
        key, given = found.get(name, (name, None))
        if given is None:
            wrong += [] if name.endswith("num_batches_tracked") else [f"{name} missing"]
        elif why := misfit(name, given, tensor):
            wrong.append(f"{key} {why}")
    return wrong


def misfit(name, given, own):
    """Why a file's tensor cannot become a net's own of this name, or None."""
    if given.shape != own.shape:
        return f"{tuple(given.shape)}, not {tuple(own.shape)}"
    if given.is_meta:
        return "without values: a meta tensor; save the net's own"
    if own.is_floating_point() and not given.is_floating_point():
        return f"of {given.dtype}, not of real floating-point numbers"
    values = given.to_dense().to(own.dtype)
    if not values.isfinite().all():
        return "not finite"
    if name.endswith("running_var") and (values < 0).any():
        return "below 0: no variance"


def load_backbone(path, arch, bgr, norm, vocabulary=RAFCE, size=112):
    """The base net with all of a file's backbone, and a line that says what was taken."""
    net = make_base_net(arch, norm_of(arch, norm), vocabulary, size)
    own, timm = net.backbone.state_dict(), arch.startswith("timm:")
    found, left, own_norm, adaface = read_backbone(path, own if timm else None)
    if own_norm and bgr:
        raise InputError(f"{path}: trained on RGB by mmlfer; leave out --weights-bgr")
    if wrong := misfits(found, own):
        with torch.device("meta"):
            fits = [a for a in ARCHS if not misfits(found, make_backbone(a).state_dict())]
        raise InputError(f"{path}: not a whole {arch}, {len(wrong)} tensors: {'; '.join(wrong[:3])}"
                         f"{'; ...' * bool(wrong[3:])}"
                         + "".join(f"; it fits --arch {a}" for a in fits))
    taken = {name: tensor.to_dense() for name, (_, tensor) in found.items()}
    if bgr or adaface:
        first = next(name for name, t in own.items() if t.ndim == 4 and t.shape[1] == 3)
        taken[first] = taken[first].flip(1)
    net.backbone.load_state_dict(taken, strict=False)
    with refused(path, "of another version, or damaged", TypeError, ValueError, RuntimeError):
        for name, values in own_norm.items() if norm == "auto" else ():
            getattr(net, name).copy_(torch.as_tensor(values).view(3, 1, 1))
    layers = list(dict.fromkeys(key.rpartition(".")[0] or key for key in left))
    shown = left if len(left) <= 4 else layers
    return net, (f"took {len(taken)} tensors from {path}"
                 f"{', as AdaFace trains them: on BGR, turned to RGB' if adaface else ''}"
                 f"{', left out ' * bool(left)}{', '.join(shown[:6])}{', ...' * bool(shown[6:])}")


def load_imagenet(arch, norm, vocabulary):
    """The base net with torchvision's ImageNet backbone, and a line that says so."""
    import torchvision

    source = torchvision.models.get_model_weights(arch).IMAGENET1K_V1
    with refused("--weights imagenet", f"no download of {source.url} ({{}}); give it as a file"):
        state = source.get_state_dict(progress=False, check_hash=True)
    net = make_base_net(arch, NORMS["imagenet" if norm == "auto" else norm], vocabulary)
    net.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    return net, "ImageNet's, from torchvision"
