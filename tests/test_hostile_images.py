"""Images that claim, or unpack to, more than any real one has: refused or void, in little time and memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.conftest import random_image
from tests.images import rgb_last
from tests.slide_files import JPEG, write_dicom_slide
from tests.volume_files import change
from wsiseg.errors import SourceError
from wsiseg.ngff import image_metadata
from wsiseg.sources import open_source

LOOK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
sys.argv[0] = "wsiseg"
from wsiseg.cli import main
main()
"""
MOST_SECONDS = 60


def deflated(*, mib: int, start: bytes = b"", wbits: int = 15) -> bytes:
    """Zeros, packed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    pieces = [packer.compress(start), *(packer.compress(bytes(1 << 20)) for _ in range(mib))]
    return b"".join((*pieces, packer.flush()))


def info(path: Path, *options: str) -> tuple[int, str]:
    """Exit status and stderr of `wsiseg info` in 6 GB of address space."""
    command = [sys.executable, "-c", LOOK, "info", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    return done.returncode, done.stderr


def refused(path: Path, *options: str) -> str:
    """The only line that `wsiseg info` says of a file."""
    status, said = info(path, *options)
    assert (status, said.count("\n")) == (1, 1), said
    assert said.startswith("error: ")
    return said


def png(path: Path, width: int, height: int, *chunks: tuple[bytes, bytes]) -> Path:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(31 * 10))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
            file.write(
                struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            )
    return path


def claim(path: Path, *, bigtiff: bool = False, **tags: int) -> Path:
    """A tiled TIFF some of whose tags say something else."""
    image = rgb_last(random_image((40, 50)))
    tifffile.imwrite(path, image, tile=(32, 32), photometric="rgb", metadata=None, bigtiff=bigtiff)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value, dtype=tifffile.DATATYPE.LONG)  # type: ignore[union-attr]
    return path


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"ImageWidth": 10**9, "ImageLength": 10**9}, r"claims 1000000000 x 1000000000 pixels; images of"),
        ({"ImageWidth": 10**5, "ImageLength": 10**5}, r"lists 4 of the 9765625 tiles or strips"),
        ({"ImageWidth": 60_000, "ImageLength": 60_000, "TileWidth": 65_536, "TileLength": 65_536},
         r"claims tiles of 65536 x 65536 pixels"),
        ({"ImageWidth": 10**6, "ImageLength": 10**6, "TileWidth": 16, "TileLength": 16}, "in more than"),
    ],
)  # fmt: skip
def test_sizes_that_no_tiff_has_are_refused(
    tmp_path: Path, tags: dict[str, int], says: str, bigtiff: bool
) -> None:
    path = claim(tmp_path / "slide.tif", bigtiff=bigtiff, **tags)
    with pytest.raises(SourceError, match=says):
        open_source(path, mpp=0.5)


def tiled(path: Path, tiles: Iterator[Any], *, side: int, tile: int, **options: Any) -> Path:
    """A TIFF of given tiles."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            tiles, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", tile=(tile, tile),
            metadata=None, **options,
        )  # fmt: skip
    return path


def test_a_slide_of_a_hundred_thousand_pixels_a_side_is_opened(tmp_path: Path) -> None:
    first = np.zeros((2048, 2048, 3), np.uint8)
    tiles = (first if n == 0 else None for n in range((-(-100_000 // 2048)) ** 2))
    source = open_source(tiled(tmp_path / "slide.tif", tiles, side=100_000, tile=2048), mpp=0.25)
    assert source.geometry.shape == (100_000, 100_000)
    assert (source.read((slice(99_000, 99_010), slice(99_000, 99_010))).values == 255).all()
    assert (source.read((slice(0, 10), slice(0, 10))).values == 0).all()


def test_a_tile_that_unpacks_to_more_than_it_has_pixels_takes_no_more_memory(tmp_path: Path) -> None:
    good = zlib.compress(bytes([7]) * (32 * 32 * 3))
    tiles = iter([good, deflated(mib=60), good, good])
    source = open_source(tiled(tmp_path / "slide.tif", tiles, side=64, tile=32, compression="zlib"), mpp=0.5)
    tracemalloc.start()
    pixels = source.read((slice(0, 64), slice(0, 64)))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6
    assert not pixels.valid[:32, 32:].any()
    assert (pixels.values[:, :, :32] == 7).all()
    assert (pixels.values[:, 32:] == 7).all()


@pytest.mark.parametrize("spoil", ["cut", "zeroed", "larger"])
def test_a_jpeg_tile_that_is_cut_or_lies_is_void_and_not_grey(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "slide.tif"
    image = rgb_last(random_image((128, 128)))
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        start, count = page.dataoffsets[1], page.databytecounts[1]
    content = bytearray(path.read_bytes())
    if spoil == "larger":
        at = content.index(b"\xff\xc0", start)
        content[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    else:
        content[start + count // 2 : start + count] = (b"\0" if spoil == "zeroed" else b"\x55") * (
            count - count // 2
        )
    whole = open_source(path, mpp=0.5).read((slice(0, 128), slice(0, 128)))
    assert whole.all_valid
    path.write_bytes(bytes(content))
    pixels = open_source(path, mpp=0.5).read((slice(0, 128), slice(0, 128)))
    expected = np.ones((128, 128), bool)
    expected[:64, 64:] = False
    np.testing.assert_array_equal(pixels.valid, expected)
    np.testing.assert_array_equal(pixels.values, np.where(expected, whole.values, 255))


BOMB = b"a\0\0" + deflated(mib=300)


@pytest.mark.parametrize("chunk", [(b"zTXt", BOMB), (b"iCCP", BOMB), (b"iTXt", b"a\0\x01\0\0\0" + BOMB[3:])])
def test_a_png_with_a_text_that_unpacks_without_end_is_refused(
    tmp_path: Path, chunk: tuple[bytes, bytes]
) -> None:
    with pytest.raises(SourceError, match="cannot be read as an image: Decompressed data too large"):
        open_source(png(tmp_path / "a.png", 10, 10, chunk), mpp=0.5)


@pytest.mark.parametrize("side", [14_000, 10**9])
def test_pictures_that_are_read_whole_are_of_a_size_that_can_be(tmp_path: Path, side: int) -> None:
    with pytest.raises(SourceError, match="is too large: Image size"):
        open_source(png(tmp_path / "a.png", side, side), mpp=0.5)
    jpeg = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8)))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "a.jpg").write_bytes(bytes(jpeg))
    with pytest.raises(SourceError, match="is too large: Image size"):
        open_source(tmp_path / "a.jpg", mpp=0.5)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_picture_is_refused_like_a_grey_slide(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (20, 10)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"a\.png is grey; pictures of 3 colours \(brightfield\)"):
        open_source(tmp_path / "a.png", mpp=0.5)


def test_a_picture_is_what_its_name_says_and_starts_no_program(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(SourceError, match="cannot be read as an image"):
        open_source(tmp_path / "a.png", mpp=0.5)


def nifti_header(shape: tuple[int, ...], **fields: Any) -> bytes:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    header: Any = image.header
    header["dim"][1:4], header["vox_offset"], header["magic"] = shape, 352, b"n+1"
    for name, value in fields.items():
        header[name] = value
    return bytes(header.binaryblock) + bytes(4)


def test_a_nifti_that_goes_on_for_ever_after_its_voxels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    path.write_bytes(deflated(mib=200, start=nifti_header((4, 4, 4)), wbits=31))
    with pytest.raises(SourceError, match="it goes on for more than 67108864 bytes after its last voxel"):
        open_source(path)


@pytest.mark.parametrize("offset", [3e38, 1e12, -1e6])
def test_voxels_that_begin_nowhere_are_refused(tmp_path: Path, offset: float) -> None:
    path = tmp_path / "v.nii"
    path.write_bytes(nifti_header((4, 4, 4), vox_offset=offset) + bytes(64))
    with pytest.raises(SourceError, match="cannot be read as NIfTI"):
        open_source(path)


ITK = {
    "v.nrrd": b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: %d %d %d\nencoding: raw\n\n",
    "v.mha": b"ObjectType = Image\nNDims = 3\nDimSize = %d %d %d\nElementType = MET_UCHAR\n"
    b"ElementDataFile = LOCAL\n",
}


@pytest.mark.parametrize("name", ITK)
@pytest.mark.parametrize(
    ("side", "says"), [(1200, "its header promises 1728000000 voxels"), (10**5, "claims 100000 x")]
)
def test_voxels_that_a_file_has_no_room_for_are_not_allocated(
    tmp_path: Path, name: str, side: int, says: str
) -> None:
    (tmp_path / name).write_bytes(ITK[name] % (side, side, side) + bytes(100))
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path / name)


def ome_zarr(
    path: Path, *, shape: tuple[int, ...] = (3, 64, 64), chunks: Any = (3, 64, 64), paths: Any = ("0",)
) -> Path:
    group = zarr.open_group(path, mode="w")
    group.create_array("0", shape=shape, chunks=chunks, dtype="uint8")
    said = image_metadata(
        name="a", paths=["0"], axes="yx", spacing=(0.5, 0.5), unit="micrometer", channels=True
    )
    levels = said["multiscales"][0]["datasets"]
    said["multiscales"][0]["datasets"] = [{**levels[0], "path": p} for p in paths]
    group.attrs["ome"] = said
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shape": (3, 10**9, 10**9), "chunks": (3, 256, 256)}, "claims 3 x 1000000000 x 1000000000 pixels"),
        ({"shape": (3, 10**5, 10**5), "chunks": (3, 10**5, 10**5)}, "claims tiles of 3 x 100000 x 100000"),
        ({"shape": (3, 10**5, 10**5), "chunks": (1, 2, 2)}, "in more than 134217728 tiles"),
        ({"paths": ("0",) * 1000}, "claims 1000 levels; at most 64 are read"),
        ({"paths": ("../b.zarr/0",)}, "names a level outside itself: '../b.zarr/0'"),
    ],
)
def test_an_ome_zarr_that_claims_too_much_is_refused(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    ome_zarr(tmp_path / "b.zarr")
    with pytest.raises(SourceError, match=says):
        open_source(ome_zarr(tmp_path / "a.zarr", **options))


def test_a_level_that_is_a_link_out_of_its_store_is_refused(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "b.zarr")
    (ome_zarr(tmp_path / "a.zarr", paths=("1",)) / "1").symlink_to(tmp_path / "b.zarr" / "0")
    with pytest.raises(SourceError, match="names a level outside itself: '1'"):
        open_source(tmp_path / "a.zarr")


@pytest.mark.parametrize(("size", "says"), [(0, "nested too deep"), (1 << 31, "which no description needs")])
def test_metadata_of_a_zarr_that_are_deep_or_huge_are_refused(tmp_path: Path, size: int, says: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    with (tmp_path / "a.zarr" / "zarr.json").open("wb") as stream:
        stream.write(b"[" * 200_000)
        stream.truncate(size or 200_000)
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("side", "tile", "says"),
    [(2**32 - 1, 32, "claims 4294967295 x 4294967295"), (70_000, 65_535, "claims tiles of 65535 x 65535")],
)  # fmt: skip
def test_a_dicom_slide_of_a_size_that_none_has_is_refused(
    tmp_path: Path, side: int, tile: int, says: str
) -> None:
    path = write_dicom_slide(tmp_path / "s" / "0.dcm", random_image((40, 50)), stored=JPEG)
    change(path, Rows=tile, Columns=tile, TotalPixelMatrixRows=side, TotalPixelMatrixColumns=side)
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path / "s")


MADE: dict[str, Callable[[Path], Any]] = {
    "slide.tif": lambda path: claim(path, ImageWidth=10**9, ImageLength=10**9),
    "v.nii.gz": lambda path: path.write_bytes(deflated(mib=1000, start=nifti_header((4, 4, 4)), wbits=31)),
    "a.png": lambda path: png(path, 10, 10, (b"zTXt", BOMB)),
    "v.nrrd": lambda path: path.write_bytes(ITK["v.nrrd"] % (4000, 4000, 1000) + bytes(100)),
    "a.zarr": lambda path: ome_zarr(path, shape=(3, 10**9, 10**9), chunks=(3, 256, 256)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_the_command_says_one_sentence_within_a_minute_and_6_gb(tmp_path: Path, name: str) -> None:
    MADE[name](tmp_path / name)
    volume = name.startswith("v.")
    assert name in refused(tmp_path / name, *([] if volume else ["--mpp", "0.5"]))
