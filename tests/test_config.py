"""Settings come from a file and from options; a mistake is named with the known keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wsiseg.config import SegmentConfig, make_config, read_mapping
from wsiseg.errors import UsageError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_options_override_the_file_and_absent_options_do_not(tmp_path: Path) -> None:
    file = write(tmp_path, "run.toml", "batch = 4\ncore = 96\ndevice = 'cpu'\n")
    config = make_config({"batch": 2, "core": None, "halo": 0}, file=file)
    assert config == SegmentConfig(batch=2, core=96, halo=0, device="cpu")


def test_without_a_file_the_defaults_hold() -> None:
    assert make_config({}) == SegmentConfig()
    assert make_config({"exact": False}).exact is False


def test_toml_and_yaml_give_the_same_settings(tmp_path: Path) -> None:
    toml = write(tmp_path, "run.toml", "mpp = 0.25\nexact = true\nimage = 'none'\n")
    yaml = write(tmp_path, "run.yaml", "mpp: 0.25\nexact: true\nimage: none\n")
    assert make_config({}, file=toml) == make_config({}, file=yaml)
    assert make_config({}, file=toml).mpp == 0.25


@pytest.mark.parametrize("name", ["empty.yaml", "empty.toml"])
def test_an_empty_file_has_no_settings(tmp_path: Path, name: str) -> None:
    assert read_mapping(write(tmp_path, name, "")) == {}


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.yaml: No such file"):
        read_mapping(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_mapping(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.toml", "batch = = 3"), ("run.yaml", "batch: [1,\nslab: 3"), ("run.yml", "a: b: c")],
)
def test_a_file_that_is_neither_toml_nor_yaml_is_refused_in_one_line(
    tmp_path: Path, name: str, text: str
) -> None:
    with pytest.raises(UsageError, match=r"is not valid TOML or YAML: ") as caught:
        read_mapping(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"device = '\xff\xfe'")
    with pytest.raises(UsageError, match="is not valid TOML or YAML"):
        read_mapping(path)


@pytest.mark.parametrize(("text", "kind"), [("- 1\n- 2\n", "list"), ("words\n", "str"), ("3\n", "int")])
def test_a_file_without_names_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"must hold settings by name, found {kind}"):
        read_mapping(write(tmp_path, "run.yaml", text))


@pytest.mark.parametrize(("text", "key"), [("?", "None"), ("batch: 2\n3: 4\n", "3")])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"has {key} where a setting's name should stand"):
        read_mapping(write(tmp_path, "run.yaml", text))


def test_an_unknown_setting_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'hallo'; known are: .*halo, .*tissue_margin_um"):
        make_config({"hallo": 3})
    with pytest.raises(UsageError, match="unknown setting 'overlap'"):
        make_config({}, file=write(tmp_path, "run.yaml", "overlap: 3\n"))


@pytest.mark.parametrize(("text", "key"), [("1: 2\n", "1"), ("true: 3\n", "True"), ("null: 3\n", "None")])
def test_a_setting_whose_name_is_no_text_is_refused(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(UsageError, match=key):
        make_config({}, file=write(tmp_path, "run.yaml", text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mpp", 0.0),
        ("mpp", float("inf")),
        ("mpp", float("nan")),
        ("taper", -1),
        ("core", 0),
        ("halo", -1),
        ("batch", 0),
        ("readers", 0),
        ("threads", 0),
        ("slab", 0),
        ("chunk", 8),
        ("tissue_grid_um", 0),
        ("tissue_margin_um", -1.0),
        ("executor", "fast"),
        ("image", "half"),
        ("batch", "many"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"setting '{name}' = ") as caught:
        make_config({name: value})
    assert repr(value) in str(caught.value)


def test_settings_cannot_be_changed_and_each_has_a_description() -> None:
    config = SegmentConfig()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, "batch", 3)  # noqa: B010 - a plain assignment is what types forbid already
    assert all(field.description for field in SegmentConfig.model_fields.values())
