"""Stanford Dogs, as its archives unpack.

Source: A. Khosla, N. Jayadevaprakash, B. Yao, L. Fei-Fei, "Novel dataset for fine-grained image categorization", CVPR
Workshop on Fine-Grained Visual Categorization, 2011.
"""

from pathlib import Path
from typing import Any

import torch

from aimgraph.errors import ConfigError
from aimgraph.experiment.extras import import_extra
from aimgraph.experiment.images import Split
from aimgraph.experiment.pictures import Pictures

PAGE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"


def dogs(folder: Path, side: int) -> Split:
    """Dogs of 120 breeds, 12,000 to train on and 8,580 to test with, or what the lists hold.

    Args:
        folder: It holds ``Images/`` with a folder for each breed, and ``lists/`` (or the folder itself) holds
            ``train_list.mat`` and ``test_list.mat``.
        side: Pictures are given this many pixels a side, see `aimgraph.experiment.pictures.decode`.

    Raises:
        ConfigError: Files are missing, or a list is none of Stanford Dogs.
    """
    if not (folder / "Images").is_dir():
        raise ConfigError(_missing(folder, "Images/"))
    train, test = (_listed(folder, f"{part}_list.mat", side) for part in ("train", "test"))
    apart = set(train.labels.tolist()) ^ set(test.labels.tolist())
    if apart:
        breeds = sorted({one.paths[place].parent.name for one in (train, test) for place in _places(one, apart)})
        raise ConfigError(f"data.folder: {folder}: only one of the two lists has {', '.join(breeds[:5])}")
    return Split(train, test)


def _missing(folder: Path, name: str) -> str:
    return (
        f"data.folder: {folder} does not hold {name} of Stanford Dogs. Download images.tar and lists.tar from {PAGE}, "
        f"then: mkdir -p {folder}/lists; tar -xf images.tar -C {folder}; tar -xf lists.tar -C {folder}/lists"
    )


def _places(pictures: Pictures, labels: set[int]) -> list[int]:
    return [place for place, label in enumerate(pictures.labels.tolist()) if label in labels]


def _listed(folder: Path, name: str, side: int) -> Pictures:
    """The pictures in a list."""
    places = [path for path in (folder / "lists" / name, folder / name) if path.is_file()]
    if not places:
        raise ConfigError(_missing(folder, f"lists/{name}"))
    names, labels = _read(places[0])
    paths = [folder / "Images" / one for one in names]
    if lost := [path for path in paths if not path.is_file()]:
        raise ConfigError(
            f"{_missing(folder, str(lost[0].relative_to(folder)))} ({len(lost)} of {len(paths)} pictures are not there)"
        )
    return Pictures(paths, torch.tensor(labels) - 1, side)


def _read(path: Path) -> tuple[list[str], list[int]]:
    """Paths of the pictures relative to ``Images/``, and labels from 1."""
    scipy = import_extra("scipy.io", "scipy", "data.name = 'dogs'")
    try:
        found: dict[str, Any] = scipy.loadmat(path)
        # A cell array of MATLAB is an array of arrays with one text each.
        names = [str(cell.item()) for cell in found["file_list"].ravel()]
        labels = [int(label) for label in found["labels"].ravel()]
    except Exception as error:  # a file that is none raises whatever its bytes lead scipy to
        raise ConfigError(f"data.folder: {path} is no list of Stanford Dogs ({error!r}): fetch it again") from error
    if not names or len(names) != len(labels) or min(labels) < 1:
        raise ConfigError(
            f"data.folder: {path} is no list of Stanford Dogs: it has {len(names)} pictures and {len(labels)} labels "
            f"from {min(labels, default=None)}, which have to be as many, from 1"
        )
    return names, labels
