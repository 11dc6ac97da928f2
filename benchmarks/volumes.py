"""CPU seconds, memory and agreement on volumes, beside MONAI's sliding window.

    python -m benchmarks.volumes FOLDER [--case FOLDER_OF_MODALITIES] [--big]

A case of 240 x 240 x 155 voxels and four modalities (the one given, or noise in a box) through 3D-ESPNet
with random weights, in one run, each in a process of its own:

  segment   `wsiseg segment`, from start to end; the fully convolutional variant streams, the original
            runs in windows with a cross-fade
  monai     MONAI's sliding_window_inference over the array in memory: windows of 128, overlap 0.5, gaussian
            weights; reading, argmax and writing are not counted
  whole     one pass over the whole volume, which says how many voxels of each mask agree with it

`--big` makes a volume of 1024 x 1024 x 1024 int16 (noise in a box, synthetic) and segments it with a narrow
network, with `--memory 2000`: windows, as one pass keeps more rows than that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

import wsiseg
from benchmarks.speed import Measured, measure
from wsiseg.memory import keep_memory
from wsiseg.models.importing import import_checkpoint

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
SHAPE = (240, 240, 155)
MAX_OF_MONAI = 0.5
BIG, BIG_PEAK_MB, BIG_MINUTES = 1024, 2000.0, 20.0


def make_case(folder: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    """Four modalities of noise inside a box; synthetic."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    inner = tuple(slice(n // 6, n - n // 6) for n in shape)
    for name in MODALITIES:
        values = np.zeros(shape, np.int16)
        values[inner] = rng.integers(1, 1000, [s.stop - s.start for s in inner])
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"case-{name}.nii.gz")
    return folder


def make_card(folder: Path, name: str, **arguments: Any) -> Path:
    """A card of 3D-ESPNet with seeded random weights; foreground z-scores."""
    torch.manual_seed(0)
    network = wsiseg.build_network("espnet3d", **arguments)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    path = folder / f"{name}.json"
    import_checkpoint(folder / f"{name}.pth", path, network="espnet3d", arguments=arguments, overwrite=True)
    card = json.loads(path.read_text())
    card["preprocessing"] |= {"statistics": "case", "foreground": "nonzero"}
    card |= {"spacing": {"value": [1, 1, 1], "unit": "millimeter"}, "background": 0}
    if arguments["channels"] == len(MODALITIES):
        card["modalities"] = list(MODALITIES)
    path.write_text(json.dumps(card))
    return path


def inputs_of(case: Path, card: Path) -> tuple[torch.Tensor, Any]:
    """What the network sees of the whole case (1, C, z, y, x), and the predictor."""
    from wsiseg.preprocess import fit

    predictor = wsiseg.load_predictor(card)
    source = wsiseg.open_source(case, modalities=predictor.card.modalities)
    predictor = predictor.for_case(fit(source, predictor.card.preprocessing))
    values = source.read(source.geometry.whole).values
    padding = [n for size in reversed(values.shape[1:]) for n in (0, -size % 8)]
    pixels = torch.nn.functional.pad(torch.from_numpy(values)[None], padding)
    return predictor.inputs(pixels), predictor


def run_part(part: str, case: Path, card: Path, mask: Path, threads: int) -> None:
    """A yardstick in this process: says its CPU seconds and keeps its mask."""
    keep_memory()
    torch.set_num_threads(threads)
    inputs, predictor = inputs_of(case, card)
    start = time.process_time()
    with torch.inference_mode():
        if part == "monai":
            from monai.inferers.utils import sliding_window_inference

            made = sliding_window_inference(
                inputs, (128, 128, 128), 1, predictor.network, overlap=0.5, mode="gaussian"
            )
        else:
            made = predictor.network(inputs)
    spent = time.process_time() - start
    assert isinstance(made, torch.Tensor)
    np.save(mask, made[0].argmax(0).to(torch.uint8).numpy())
    print(json.dumps({"cpu_s": spent}))


def part(name: str, case: Path, card: Path, mask: Path, threads: int) -> Measured:
    """`run_part` in a process of its own."""
    where = (str(case), str(card), str(mask), str(threads))
    return measure(sys.executable, "-m", "benchmarks.volumes", "--part", name, *where)


def segment(case: Path, out: Path, card: Path, threads: int, *options: str) -> Measured:
    """The command that a user types."""
    config = card.with_name("config.toml")
    config.write_text(f"threads = {threads}\n")
    return measure(
        sys.executable, "-m", "wsiseg", "segment", str(case), "--out", str(out), "--model", str(card),
        "--image", "none", "--no-tissue-filter", "--overwrite", "--config", str(config), *options,
    )  # fmt: skip


def agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Share of the voxels on which two masks agree, over the extent of the smaller."""
    inside = tuple(slice(0, min(a, b)) for a, b in zip(one.shape, other.shape, strict=True))
    return float((one[inside] == other[inside]).mean())


def compare(folder: Path, case: Path, card: Path, title: str, threads: int) -> bool:
    """One network: prints its rows, says whether the bars hold."""
    masks = {name: folder / f"{name}.npy" for name in ("monai", "whole")}
    ours = segment(case, folder / "out", card, threads)
    peers = {name: part(name, case, card, mask, threads) for name, mask in masks.items()}
    store = next((folder / "out").glob("*.ome.zarr"))
    whole = np.load(masks["whole"])
    same = agreement(np.asarray(wsiseg.open_store(store).mask()[:]), whole)
    rows = [("wsiseg segment", ours.cpu_s, ours.peak_mb, same)]
    for name, mask in masks.items():
        rows.append((name, peers[name].said["cpu_s"], peers[name].peak_mb, agreement(np.load(mask), whole)))
    print(f"\n{title}\n{'':18} {'CPU s':>8} {'peak MB':>8}   as one pass")
    for name, seconds, peak, share in rows:
        print(f"{name:18} {seconds:8.1f} {peak:8.0f}   {100 * share:.4f} %")
    monai = peers["monai"]
    checks = {
        f"{ours.cpu_s / monai.said['cpu_s']:.2f} x MONAI's CPU seconds, at most {MAX_OF_MONAI}": ours.cpu_s
        <= MAX_OF_MONAI * monai.said["cpu_s"],
        f"peak {ours.peak_mb:.0f} MB, at most MONAI's {monai.peak_mb:.0f}": ours.peak_mb <= monai.peak_mb,
        "agrees with one pass at least as well as MONAI": same >= rows[1][3],
    }
    for sentence, held in checks.items():
        print(f"{'held' if held else 'MISSED':7} {sentence}")
    return all(checks.values())


def make_big(path: Path, side: int = BIG) -> Path:
    """An uncompressed int16 volume of noise in a box, written a slice at a time; synthetic."""
    if path.is_file():
        return path
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((side, side, side))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    rng = np.random.default_rng(1)
    noise = rng.integers(1, 800, (side, side)).astype("<i2")
    noise[: side // 8] = 0
    with path.open("wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        for z in range(side):
            stream.write(np.roll(noise, 7 * z, axis=1).tobytes())
    return path


def big(folder: Path, threads: int) -> bool:
    """A volume of a thousand voxels a side through a narrow network."""
    card = make_card(folder, "narrow", classes=2, channels=1, width=0.25, refinement=False)
    volume = make_big(folder / "big.nii")
    start = time.monotonic()
    ran = segment(volume, folder / "big", card, threads, "--memory", str(int(BIG_PEAK_MB)))
    minutes = (time.monotonic() - start) / 60
    print(f"\n{BIG}^3 int16: {ran.cpu_s:.0f} CPU s, {minutes:.1f} minutes, peak {ran.peak_mb:.0f} MB")
    held = ran.peak_mb < BIG_PEAK_MB and minutes <= BIG_MINUTES
    print(f"{'held' if held else 'MISSED':7} less than {BIG_PEAK_MB:.0f} MB and {BIG_MINUTES:.0f} minutes")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--case", type=Path)
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, case, card, mask, threads = arguments.part
        run_part(name, Path(case), Path(card), Path(mask), int(threads))
        return
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    held = True
    if arguments.big:
        held = big(folder, arguments.threads)
    else:
        case = (arguments.case or make_case(folder / "case")).absolute()
        for title, refinement in (("fully convolutional", False), ("with pyramidal refinement", True)):
            card = make_card(folder, "model", classes=4, channels=4, refinement=refinement)
            held &= compare(folder, case, card, f"3D-ESPNet, {title}", arguments.threads)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
