"""RAF-CE's names, a reader of its folder and the base net, written again without using mmlfer."""

import numpy as np
import torch
import torchvision
from PIL import Image

AUS = [1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 32,
       33, 34, 35, 39, 43]
EMOTIONS = ["happily surprised", "happily disgusted", "sadly fearful", "sadly angry", "sadly surprised",
            "sadly disgusted", "fearfully angry", "fearfully surprised", "fearfully disgusted",
            "angrily surprised", "angrily disgusted", "disgustedly surprised", "happily fearful",
            "happily sad"]


class Net(torch.nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone = torchvision.models.get_model(arch)
        self.backbone.fc = torch.nn.Identity()
        self.fe, self.au = torch.nn.Linear(512, 14), torch.nn.Linear(512, 32)

    def forward(self, x):
        f = self.backbone((x.double() / 255 - 0.5) / 0.5)
        return f, self.fe(f), self.au(f)


def read_folder(folder):
    """(x, y_emo, y_au, split) in the order of RAFCE_emolabel.txt."""
    emo, split, aus = (dict(line.split() for line in (folder / f"RAFCE_{key}.txt").read_text().splitlines())
                       for key in ("emolabel", "partition", "AUlabel"))
    x, y_au = [], torch.zeros(len(emo), 32, dtype=torch.float64)
    for i, name in enumerate(emo):
        x.append(np.array(Image.open(folder / "aligned" / name.replace(".jpg", "_aligned.png")).convert("RGB")))
        for token in aus[name].split("+") if aus[name] != "null" else ():
            y_au[i, AUS.index(int(token.strip("LRt")))] = 1
    x = torch.tensor(np.array(x)).permute(0, 3, 1, 2)
    return x, torch.tensor([int(v) for v in emo.values()]), y_au, np.array([int(split[n]) for n in emo])
