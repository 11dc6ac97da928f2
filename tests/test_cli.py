"""The command line: one clear sentence and the right exit status for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.test_volumes import write_volume
from wsiseg.cli import main
from wsiseg.config import SegmentConfig
from wsiseg.errors import UsageError
from wsiseg.exports import check_out
from wsiseg.models.zoo import ZOO
from wsiseg.prepare import Request

CROPS = REPOSITORY / "wsiseg" / "samples" / "ynet-breast8"
NAME = "1222_1_7200_3600_2"
EIGHT = ("--model", "demo-breast8")
CROP, TRUTH = CROPS / "images" / f"{NAME}.png", CROPS / "masks" / f"{NAME}.png"


class Ran:
    """Status and output of a command."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        sys.argv = ["wsiseg", *map(str, arguments)]
        self.status = 0
        try:
            main()
        except SystemExit as end:
            self.status = end.code if isinstance(end.code, int) else 1
        self.out, self.err = capfd.readouterr()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text("core = 128\nhalo = 16\n")
    return path


def assert_one_sentence(ran: Ran, status: int, *words: str) -> None:
    assert ran.status == status, ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.err
    assert "Traceback" not in ran.err + ran.out
    for word in words:
        assert word in errors[0]


def test_one_command_gives_mask_report_and_picture(
    tmp_path: Path, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(
        capfd,
        "segment",
        CROP,
        "--out",
        tmp_path,
        "--mpp",
        "0.5",
        *EIGHT,
        "--annotations",
        TRUTH,
        "--config",
        config,
    )
    assert ran.status == 0, ran.err
    assert "mask of 384 x 384 pixels" in ran.out
    assert "malignant epithelium" in ran.out
    assert "mean IoU over classes present" in ran.out
    for suffix in (".ome.zarr", ".report.json", ".overlay.png"):
        assert (tmp_path / f"{NAME}{suffix}").exists()
    again = Ran(
        capfd, "segment", CROP, "--out", tmp_path, "--mpp", "0.5", *EIGHT, "--config", config, "--json"
    )
    data = json.loads(again.out)
    assert data["failures"] == []
    assert data["cases"][0]["status"] == "already complete"
    assert Ran(capfd, "verify", tmp_path / f"{NAME}.ome.zarr").status == 0
    scores = Ran(capfd, "evaluate", "--prediction", tmp_path / f"{NAME}.ome.zarr", "--truth", TRUTH, "--json")
    assert json.loads(scores.out) == data["cases"][0]["scores"] or data["cases"][0]["scores"] is not None
    shown = Ran(capfd, "evaluate", "--prediction", tmp_path / f"{NAME}.ome.zarr", "--truth", TRUTH)
    assert "absent" in shown.out
    slab = next((tmp_path / f"{NAME}.ome.zarr" / "labels" / "tissue" / "0" / "c").rglob("*/*"))
    slab.write_bytes(slab.read_bytes()[:-30])
    damaged = Ran(capfd, "verify", tmp_path / f"{NAME}.ome.zarr")
    assert damaged.status == 1
    assert "mask rows 0 to 384 are not what was written" in damaged.err
    assert json.loads(Ran(capfd, "verify", tmp_path / f"{NAME}.ome.zarr", "--json").out)["problems"]


def test_one_bad_slide_does_not_stop_the_others(
    tmp_path: Path, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_text("text")
    ran = Ran(capfd, "segment", bad, CROP, "--out", tmp_path, "--mpp", "0.5", "--config", config, "--json")
    assert_one_sentence(ran, 1, "bad.svs is not an image that can be read")
    data = json.loads(ran.out)
    assert [case["case"] for case in data["cases"]] == [NAME]
    assert data["failures"][0]["kind"] == "UnreadableSource"


def test_inputs_that_cannot_be_used_fail_with_status_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(
        Ran(capfd, "segment", tmp_path / "no.svs", "--out", tmp_path), 1, "no such file", "no.svs"
    )
    assert_one_sentence(Ran(capfd, "segment", CROP, "--out", tmp_path), 1, NAME, "pixel size", "--mpp")
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(small)
    assert_one_sentence(
        Ran(capfd, "evaluate", "--prediction", TRUTH, "--truth", small), 1, "5 x 6", "384 x 384", "same grid"
    )
    assert_one_sentence(Ran(capfd, "verify", tmp_path), 1, "is not a wsiseg result")
    assert_one_sentence(Ran(capfd, "info", tmp_path / "no.svs"), 1, "no such file")


def test_commands_that_are_wrong_fail_with_status_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base: tuple[Any, ...] = ("segment", CROP, "--out", tmp_path, "--mpp", "0.5")
    assert_one_sentence(Ran(capfd, *base, "--model", "nothing"), 2, "unknown model 'nothing'", "demo-breast8")
    assert_one_sentence(Ran(capfd, *base, "--device", "tpu"), 2, "unknown device 'tpu'")
    assert_one_sentence(Ran(capfd, *base, "--config", tmp_path / "no.toml"), 2, "cannot read", "no.toml")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("colour = 1")
    assert_one_sentence(Ran(capfd, *base, "--config", wrong), 2, "unknown setting 'colour'", "tissue_grid_um")
    wrong.write_text("core = = 1")
    assert_one_sentence(Ran(capfd, *base, "--config", wrong), 2, "is not valid TOML or YAML")
    assert_one_sentence(
        Ran(capfd, "segment", CROP, CROP, "--out", tmp_path), 2, "two inputs have the case name"
    )
    assert_one_sentence(
        Ran(capfd, "segment", CROP, TRUTH.parent / "other.png", "--out", tmp_path, "--annotations", TRUTH),
        2,
        "one by one",
    )
    assert not list(tmp_path.glob("*.ome.zarr"))


def test_weights_of_another_sha256_are_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    card = json.loads((ZOO / "demo-breast8.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / card["weights"]).write_bytes((ZOO / card["weights"]).read_bytes()[:-1] + b"x")
    ran = Ran(capfd, "segment", CROP, "--out", tmp_path, "--mpp", "0.5", "--model", tmp_path / "card.json")
    assert_one_sentence(ran, 2, "sha256", "not the file that the card describes")


def test_an_output_folder_that_cannot_be_made_is_one_sentence_with_status_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    ran = Ran(capfd, "segment", CROP, "--out", tmp_path / "file" / "below", "--mpp", "0.5")
    assert_one_sentence(ran, 2, f"--out {tmp_path / 'file' / 'below'} cannot be made", "file is a file")
    ran = Ran(capfd, "segment", CROP, "--out", tmp_path / "file", "--mpp", "0.5", "--json")
    assert_one_sentence(ran, 2, f"{tmp_path / 'file'} is a file; choose another folder")
    assert ran.out == ""
    ran = Ran(capfd, "segment", CROP, "--out", tmp_path / ("x" * 300), "--mpp", "0.5")
    assert_one_sentence(ran, 2, "cannot be made: File name too long; choose another folder")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed")
    ran = Ran(capfd, "segment", CROP, "--out", tmp_path / "closed" / "below", "--mpp", "0.5")
    assert_one_sentence(ran, 2, "closed may not be written to; choose another folder")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "closed"}
    assert not any((tmp_path / "closed").iterdir())


def test_a_result_that_is_there_is_read_from_a_folder_that_nothing_may_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(input=CROP, out=tmp_path, config=SegmentConfig())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="may not be written to"):
        check_out(request)
    request.store.mkdir()
    check_out(request)


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ("segment", CROP, "--out", "o", "--nope"),
            ("option: --nope", "; see wsiseg segment --help"),
        ),
        (("segment", CROP), ("Missing option '--out'; see",)),
        (("segment", CROP, "--out", "o", "--executor", "magic"), ("'--executor'", "'streaming'")),
        (("segment", CROP, "--out", "o", "--memory", "much"), ("'--memory'", "integer")),
        (("info",), ("Missing argument", "; see wsiseg info --help")),
        (("info", CROP, "--mpp", "wide"), ("'--mpp'", "number")),
        (("evaluate", "--truth", TRUTH), ("Missing option '--prediction'",)),
        (("verify",), ("Missing argument", "wsiseg verify --help")),
        (("train", "a.yaml", "b.yaml"), ("unexpected extra argument", "b.yaml")),
        (("demo", "--twice"), ("No such option: --twice",)),
        (("models", "list", "--all"), ("No such option: --all",)),
        (("models", "show"), ("Missing argument", "wsiseg models show --help")),
        (("models", "import", "a.pth"), ("Missing option '--out'", "wsiseg models import --help")),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_sentence_with_status_2(
    command: tuple[Any, ...], words: tuple[str, ...], json_flag: tuple[str], capfd: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(capfd, *command, *json_flag)
    assert_one_sentence(ran, 2, *words)
    assert len(ran.err.splitlines()) == 1
    assert ran.out == ""


def test_commands_that_do_not_exist_are_one_sentence_and_none_at_all_is_help(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert_one_sentence(Ran(capfd, "segmnet"), 2, "No such command 'segmnet'", "; see wsiseg --help")
    assert_one_sentence(Ran(capfd, "models", "lst"), 2, "No such command 'lst'", "wsiseg models --help")
    assert_one_sentence(
        Ran(capfd, "info", CROP, "--mpp"), 2, "'--mpp' requires an argument; see wsiseg --help"
    )
    for command in ((), ("models",)):
        ran = Ran(capfd, *command)
        assert ran.status == 2
        assert "Usage: wsiseg" in ran.out + ran.err
        assert "error:" not in ran.out + ran.err


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/shm").is_dir(), reason="needs to mount a small tmpfs")
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(
    tmp_path: Path, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        hog = disk / "hog"
        hog.write_bytes(bytes(1_700_000))
        command = ("segment", CROP, "--out", disk, "--mpp", "0.5", "--config", config)
        assert_one_sentence(Ran(capfd, *command), 1, "GB are free", "--image none")
        hog.write_bytes(bytes(2_200_000))
        again = "make room and run the same command again"
        assert_one_sentence(Ran(capfd, *command, "--image", "none"), 1, "0.01 GB are free", again)
        assert sorted(p.name for p in disk.iterdir()) == ["hog"]  # nothing is begun that has no room
        hog.unlink()
        assert Ran(capfd, *command, "--image", "none").status == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_info_shows_what_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capfd, "info", CROP)
    assert ran.status == 0
    assert "not known" in ran.out
    assert "does not state its pixel size" in ran.out
    slide = json.loads(Ran(capfd, "info", CROPS.parent / "CMU-1-Small-Region.svs", "--json").out)
    assert slide["format"] == "OpenSlide aperio, tiles by tifffile"
    assert slide["levels"] == [{"shape": [2967, 2220], "spacing": [0.499, 0.499]}]


def test_info_names_the_modalities_of_a_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("t1n", "t1c", "t2w", "t2f"):
        write_volume(tmp_path / f"case-{name}.nii.gz", np.ones((4, 5, 6), np.int16))
    assert "4 channels (t1n, t1c, t2w, t2f)" in Ran(capfd, "info", tmp_path).out
    found = json.loads(Ran(capfd, "info", tmp_path, "--json").out)
    assert found["channel_names"] == [
        "t1n",
        "t1c",
        "t2w",
        "t2f",
    ]


def test_an_ensemble_is_made_and_used_by_its_card(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "both.json"
    members = ("demo-breast8", "demo-breast8-without-2204")
    made = json.loads(Ran(capfd, "models", "ensemble", *members, "--out", card, "--json").out)
    assert made["network"]["name"] == "ensemble"
    ran = Ran(capfd, "segment", CROP, "--out", tmp_path / "o", "--model", card, "--mpp", "0.5", "--json")
    report = json.loads(ran.out)["cases"][0]
    assert (report["model"]["name"], report["execution"]["executor"]) == ("both", "streaming")
    assert_one_sentence(Ran(capfd, "models", "ensemble", *members, "--out", card), 2, "is there already")


def test_models_are_listed_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "demo-breast8" in Ran(capfd, "models", "list").out
    assert [m["name"] for m in json.loads(Ran(capfd, "models", "list", "--json").out)] == sorted(
        p.stem for p in ZOO.glob("*.json")
    )
    shown = Ran(capfd, "models", "show", "demo-breast8").out
    assert "research use only, not for diagnosis" in shown
    assert "demonstration" in shown
    assert "assumed" in shown
    assert json.loads(Ran(capfd, "models", "show", "demo-breast8", "--json").out)["name"] == "demo-breast8"
    assert_one_sentence(
        Ran(capfd, "models", "import", TRUTH, "--out", tmp_path / "card.json"),
        2,
        "not a checkpoint that loads",
    )


def test_a_keyboard_interrupt_says_that_the_command_continues(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsiseg.display.describe", interrupt)
    ran = Ran(capfd, "info", CROP)
    assert ran.status == 130
    assert ran.err == "interrupted: what is written stays; the same command continues\n"
    assert "Traceback" not in ran.err
