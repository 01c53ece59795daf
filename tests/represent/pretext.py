"""What the tests of rotation, jigsaw and CPC share: tiny runs, a killed run, and torchvision's network in functions."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from odonata.app.api import recipe
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.represent.build import build
from odonata.weights.read import read_state

WORLD = World(0, 1, torch.device("cpu"))


def tiny(name, **fields):
    """The method's recipe on a small tower and a few embedded digits, with nothing measured unless asked."""
    given = {
        "backbone": "resnet8", "data__path": "scenes-digits:n=24,size=32", "data__batch_size": 6, "steps": 4, "seed": 3,
        "save_every": 2, "log_every": 1, "evaluation__pictures": 0, "device": "cpu",
    }  # fmt: skip
    return recipe(name, **(given | fields))


def started(chosen):
    torch.manual_seed(chosen.seed)
    return build(chosen)


def run(chosen, folder):
    task = started(chosen)
    figures = train(task.recipe or chosen, task, folder, WORLD)
    return task, figures


def digest(module):
    h = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        h.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return h.hexdigest()


def assert_resumes(chosen, folder):
    """A run that stops between two checkpoints and goes on ends with the bits of one that did not stop."""
    whole, _ = run(chosen, folder / "whole")
    task = started(chosen)
    start = task.batches.start

    class Killed(Exception):
        pass

    def stopping(step=0, rank=0, world=1):
        for number, batch in enumerate(start(step, rank, world), step):
            if number == 3:
                raise Killed
            yield batch

    object.__setattr__(task.batches, "start", stopping)
    with pytest.raises(Killed):
        train(task.recipe, task, folder / "killed", WORLD)
    resumed = started(chosen)
    torch.manual_seed(99)  # whatever the process did in between must not matter
    train(resumed.recipe, resumed, folder / "killed", WORLD, resume=True)
    assert digest(resumed.method) == digest(whole.method)


def views(count=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ViewBatch([pictures], torch.full((count,), -1), torch.arange(count))


def pixels64(pictures):
    """Bytes as ImageNet's towers expect them, in float64."""
    mean = torch.tensor(IMAGENET.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(IMAGENET.std, dtype=torch.float64)[:, None, None]
    return (pictures.double() / 255 - mean) / std


def relative(ours, theirs):
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def assert_torchvision_file(file, encoder):
    """What was written has torchvision's names, and torchvision's arithmetic on it gives the tower's features."""
    state = read_state(file).state
    names = {"conv1.weight"}
    blocks = [(stage, block) for stage in range(1, 5) for block in range(2)]
    convs = {"conv1": "bn1"} | {f"layer{s}.{b}.conv{i}": f"layer{s}.{b}.bn{i}" for s, b in blocks for i in (1, 2)}
    convs |= {f"layer{s}.0.downsample.0": f"layer{s}.0.downsample.1" for s in (2, 3, 4)}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {f"{conv}.weight" for conv in convs} | {f"{bn}.{part}" for bn in convs.values() for part in norm}
    assert state.keys() == names
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative(encoder.eval()(images), torchvision_resnet(state, images)) < 1e-6


def torchvision_resnet(state, images):
    """Basic blocks on CIFAR's stem, from a state dict with torchvision's names, in evaluation mode."""

    def norm(x, name):
        part = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *part)

    x = F.relu(norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1"))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(F.relu(norm(out, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
            if f"{name}.downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = F.relu(norm(out, f"{name}.bn2") + x)
    return x.mean((2, 3))
