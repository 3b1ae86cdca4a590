"""Labels that cannot be meant are told before training, with what was counted."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspfast.config import Config, DataConfig
from pspfast.data import LABEL_IDS, LabelIds, read_label
from pspfast.labelled_data import choose_label_ids, find_samples


def data_of(root: Path, ids: list[int], **options: object) -> DataConfig:
    """Two samples whose label maps are rows of these ids."""
    labels = np.resize(np.asarray(ids, np.uint8), (len(ids), 6)[::-1])
    for name in ("a", "b"):
        Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(root / f"{name}.png")
        Image.fromarray(labels).save(root / f"{name}_labels.png")
    lines = "".join(f"{name}.png {name}_labels.png\n" for name in ("a", "b"))
    (root / "list.txt").write_text(lines)
    return DataConfig(train_list=str(root / "list.txt"), **options)


def told(data: DataConfig, classes: int) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        find_samples(data, "train", classes)
    return "\n".join(str(warning.message) for warning in caught)


def test_every_class_is_there(tmp_path: Path) -> None:
    assert told(data_of(tmp_path, [0, 1, 2, 255], classes=3), 3) == ""


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    text = told(data_of(tmp_path, [0, 255], classes=2), 2)
    assert "1 of 2 classes occur in no training label: class_1" in text
    assert "0 50.0%, 255 (ignored) 50.0%" in text
    assert "--data.label_map '{255: 1}'" in text


def test_a_class_that_never_occurs(tmp_path: Path) -> None:
    text = told(data_of(tmp_path, [0, 2], classes=4), 4)
    assert "2 of 4 classes occur in no training label: class_1, class_3" in text
    assert "label_map" not in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_everything_ignored(tmp_path: Path, split: str) -> None:
    data = data_of(tmp_path, [255], classes=2)
    data.val_list = data.train_list
    with pytest.warns(UserWarning) as warned:
        find_samples(data, split, 2)
    (text,) = (str(warning.message) for warning in warned)
    assert text.startswith(f"all pixels of the {split} labels are ignored; counted ids: 255 (ign")
    assert "--data.label_map '{255: 1}'" in text


def test_shifted_ids(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds 3; valid ids are 0 to 2 .*data\.label_map '\{1: 0"
    ):
        find_samples(data_of(tmp_path, [1, 2, 3], classes=3), "train", 3)


def test_label_map(tmp_path: Path) -> None:
    data = data_of(tmp_path, [0, 255], classes=2, label_map={255: 1})
    assert told(data, 2) == ""
    label_ids = choose_label_ids(data, 2)
    assert label_ids is not None
    labels = read_label(tmp_path / "a_labels.png", label_ids)
    assert labels.unique().tolist() == [0, 1]
    # Predicted classes get the ids of the files.
    assert label_ids.to_file_ids([[0, 1]]).tolist() == [[0, 255]]


def test_ids_that_are_not_mapped_stay_themselves(tmp_path: Path) -> None:
    label_ids = LabelIds.mapped({7: 255, 9: 2}, 3, 255)
    assert label_ids.to_classes([0, 1, 2, 7, 9, 255]).tolist() == [0, 1, 2, 255, 2, 255]
    data = data_of(tmp_path, [0, 5], classes=3, label_map={7: 1})
    with pytest.raises(ValueError, match="holds 5; valid ids are 0 to 2"):
        find_samples(data, "train", 3)


@pytest.mark.parametrize("label_map", [{256: 0}, {-1: 0}, {3: 2}, {3: -1}])
def test_wrong_maps_are_named(tmp_path: Path, label_map: dict[int, int]) -> None:
    data = data_of(tmp_path, [0, 1], classes=2, label_map=label_map)
    with pytest.raises(
        ValueError, match=r"^data\.label_map: expected ids 0 to 255 and classes 0 to 1"
    ):
        choose_label_ids(data, 2)


def test_map_survives_a_models_file() -> None:
    config = Config(data=DataConfig(label_map={255: 1}))
    sections = config.to_dict()
    sections["data"]["label_map"] = {"255": 1}  # As JSON gives it back.
    assert Config.from_dict(sections) == config
    with pytest.raises(
        ValueError, match=r'data\.label_map: expected none with data\.labels "ade20k"'
    ):
        DataConfig(labels="ade20k", label_map={255: 1})
    assert LABEL_IDS["ade20k"].file_ids is None
