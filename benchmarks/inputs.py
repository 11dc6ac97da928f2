"""A folder of 40 inputs from real material: 20 of many formats that can be segmented, 20 that cannot.

    FOLDER/in             what is found by searching, good and bad
    FOLDER/listed         what needs the pixel sizes, patients and truth of FOLDER/listed.csv
    FOLDER/truth          truth that is found by name

Real pixels; what is wrong with the bad ones is made here.
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
import zarr
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from benchmarks.slide import mosaic

nib: Any = nibabel  # it has no types
HALF_UM: dict[str, Any] = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
FIELDS = ("case", "path", "patient", "annotation", "mpp", "licence")


@dataclass
class Inputs:
    """Where the inputs are, and which of their case names must have a result and which a reason."""

    folder: Path
    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def arguments(self) -> list[str]:
        """What `wsiseg segment` is given."""
        return [
            str(self.folder / "in"), str(self.folder / "listed.csv"),
            "--annotations", str(self.folder / "truth"),
        ]  # fmt: skip

    def path(self, name: str, *, good: bool) -> Path:
        """Where a file that is found by searching is to be written."""
        case = name.removesuffix(".gz").removesuffix(".nii") if name.endswith(".gz") else name
        stem = case if "." not in case else case.rpartition(".")[0]
        (self.good if good else self.bad).append(stem)
        return self.folder / "in" / name

    def listed(self, name: str, *, good: bool, **row: Any) -> Path:
        """Where a file of the manifest is to be written."""
        case = f"listed-{Path(name).stem}"
        (self.good if good else self.bad).append(case)
        given = {"case": case, "path": f"listed/{name}", "patient": case, "licence": "see source"}
        self.rows.append(given | row)
        return self.folder / "listed" / name


def make_inputs(folder: Path, *, shared: Path, bad: bool = True) -> Inputs:
    """Write the inputs, anew; without the bad ones if they are not wanted."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("in", "listed", "truth"):
        (folder / name).mkdir(parents=True)
    inputs = Inputs(folder)
    _slides(inputs, shared)
    _pictures(inputs, shared)
    _volumes(inputs, shared)
    if bad:
        _bad_slides(inputs, shared)
        _bad_volumes(inputs, shared)
    with (folder / "listed.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, FIELDS, restval="")
        table.writeheader()
        table.writerows(inputs.rows)
    return inputs


def _slides(inputs: Inputs, shared: Path) -> None:
    """Nine slides: by OpenSlide, as TIFF of five kinds, DICOM, OME-Zarr, and one with a hard name."""
    scene = mosaic(height=1100, width=900, period_px=1100)
    shutil.copy(shared / "wsi-formats" / "cmu-1-small-region.svs", inputs.path("aperio.svs", good=True))
    with tifffile.TiffWriter(inputs.path("pyramid.tif", good=True), bigtiff=True) as writer:
        for level in (0, 1):
            shown = scene[:: 2**level, :: 2**level]
            size = (1e4 / (0.5 * 2**level),) * 2
            writer.write(
                shown, tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None,
                resolution=size, resolutionunit="CENTIMETER", subfiletype=level,
            )  # fmt: skip
    microns = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm",
               "PhysicalSizeYUnit": "µm"}  # fmt: skip
    tifffile.imwrite(
        inputs.path("ome.ome.tif", good=True), scene[:700], ome=True, metadata=microns,
        photometric="rgb", tile=(128, 128), compression="zlib",
    )  # fmt: skip
    tifffile.imwrite(
        inputs.path("tiles.tif", good=True), scene[300:], photometric="rgb", tile=(256, 256),
        compression="lzw", **HALF_UM,
    )  # fmt: skip
    tifffile.imwrite(
        inputs.path("planes.tif", good=True), np.moveaxis(scene[:600], -1, 0).copy(), photometric="rgb",
        planarconfig="separate", **HALF_UM,
    )  # fmt: skip
    tifffile.imwrite(
        inputs.path("strips.tif", good=True), scene[:640], photometric="rgb", rowsperstrip=64, **HALF_UM
    )
    tifffile.imwrite(
        inputs.path("Präparat 7 – 🔬 (kopie).tif", good=True), scene[100:800, :500], photometric="rgb",
        tile=(64, 64), compression="zlib", **HALF_UM,
    )  # fmt: skip
    slide = pydicom.dcmread(shared / "wsi-formats" / "multiframe_camelyon_challenge_image.dcm")
    measures = slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [0.0005, 0.0005]  # the lowest level of its slide, which no model here sees
    slide.ImagedVolumeWidth, slide.ImagedVolumeHeight = (
        0.0005 * n for n in (slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows)
    )
    place = inputs.path("dicom-slide", good=True)
    place.mkdir()
    slide.save_as(place / "level.dcm")
    group = zarr.open_group(inputs.path("slide.zarr", good=True), mode="w")
    group.create_array("0", data=np.moveaxis(scene[:512], -1, 0).copy(), chunks=(3, 256, 256))
    group.attrs["ome"] = _multiscale()


def _multiscale() -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    scale = {"type": "scale", "scale": [1.0, 0.5, 0.5]}
    level = {"path": "0", "coordinateTransformations": [scale]}
    return {"version": "0.5", "multiscales": [{"name": "slide", "axes": axes, "datasets": [level]}]}


def _pictures(inputs: Inputs, shared: Path) -> None:
    """Five pictures whose pixel size stands in the manifest, three of them with truth."""
    cohort = shared / "brca-m2c"
    names = sorted(path.stem for path in (cohort / "images").glob("*.png"))
    for number, name in enumerate((names[1], names[2], names[5])):
        truth = f"truth/m2c-{number}.png"
        place = inputs.listed(f"m2c-{number}.png", good=True, patient=name[:12], mpp=0.5, annotation=truth)
        shutil.copy(cohort / "images" / f"{name}.png", place)
        shutil.copy(cohort / "masks_near20" / f"{name}.png", inputs.folder / truth)
    region = Image.open(shared / "bcss-breast-tumor" / "images" / "1008.jpg").crop((0, 0, 1800, 1400))
    region.save(inputs.listed("bcss.jpg", good=True, mpp=0.25), quality=90)
    Image.open(shared / "artefact-tiles" / "tcga-green-pen.png").convert("RGB").save(
        inputs.listed("pen.bmp", good=True, mpp=0.5)
    )


def _volumes(inputs: Inputs, shared: Path) -> None:
    """Six volumes: NIfTI of three kinds, NRRD, MHA, a DICOM series; three with truth."""
    cohort = shared / "msd-hippocampus"
    names = [p.name for p in sorted((cohort / "images").glob("*.nii.gz"))[:6]]
    images: list[Any] = [nib.load(cohort / "images" / name) for name in names]
    labels: list[Any] = [nib.load(cohort / "labels" / name) for name in names]
    shutil.copy(cohort / "images" / names[0], inputs.path("volume.nii.gz", good=True))
    nib.save(images[1], inputs.path("plain.nii", good=True))
    turned = nib.as_closest_canonical(images[2]).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(turned, inputs.path("turned.nii.gz", good=True))
    nib.save(
        nib.as_closest_canonical(labels[2]).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])),
        inputs.folder / "truth" / "turned.nii.gz",
    )
    for number, name in ((0, "volume"), (1, "plain")):
        shutil.copy(cohort / "labels" / names[number], inputs.folder / "truth" / f"{name}.nii.gz")
    for number, name in ((3, "volume.nrrd"), (4, "head.mha")):
        read = sitk.ReadImage(str(cohort / "images" / names[number]))
        sitk.WriteImage(read, str(inputs.path("nrrd.nrrd" if number == 3 else name, good=True)))
    _series(inputs.path("series", good=True), images[5])


def _series(folder: Path, image: Any, *, without: int = -1) -> None:
    """A volume as DICOM files, one a slice."""
    voxels = np.asarray(image.dataobj)
    stored = (voxels / max(1.0, float(np.percentile(voxels, 99.9))) * 1000).clip(0, 4000).astype(np.uint16)
    folder.mkdir()
    for k in range(stored.shape[2]):
        if k == without:
            continue
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(f"1.2.3.{k + 1}")
        ds.SeriesInstanceUID, ds.Modality, ds.InstanceNumber = "1.2.3", "MR", str(k + 1)
        ds.Columns, ds.Rows = stored.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        ds.ImagePositionPatient = [0, 0, k]
        ds.PixelSpacing = [1.0, 1.0]
        ds.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        ds.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)


def _bad_slides(inputs: Inputs, shared: Path) -> None:
    """Fourteen slides that cannot be segmented."""
    scene = mosaic(height=300, width=400, period_px=300)
    whole = (shared / "wsi-formats" / "cmu-1-small-region.svs").read_bytes()
    inputs.path("cut.svs", good=False).write_bytes(whole[: len(whole) // 2])
    shutil.copy(shared / "wsi-formats" / "broken.svs", inputs.path("broken.svs", good=False))
    inputs.path("empty.svs", good=False).write_bytes(b"")
    tifffile.imwrite(
        inputs.path("deep.tif", good=False), scene.astype(np.uint16) * 257, photometric="rgb", **HALF_UM
    )
    inputs.listed("vast.tif", good=False, mpp=0.5).write_bytes(vast_tiff(10**9))
    inputs.listed("bomb.png", good=False, mpp=0.5).write_bytes(png_bomb(200_000))
    picture = inputs.listed("cut.jpg", good=False, mpp=0.5)
    Image.fromarray(scene).save(picture, quality=90)
    picture.write_bytes(picture.read_bytes()[:9000])
    inputs.path("lonely.mrxs", good=False).write_bytes(b"MIRAX")
    inputs.path("hollow.mrxs", good=False).write_bytes(b"MIRAX")
    (inputs.folder / "in" / "hollow").mkdir()
    (inputs.folder / "in" / "hollow" / "Data0000.dat").write_bytes(bytes(100))
    tifffile.imwrite(inputs.path("sizeless.tif", good=False), scene, photometric="rgb", tile=(64, 64))
    tifffile.imwrite(inputs.path("grey.tif", good=False), scene[..., 0], tile=(64, 64), **HALF_UM)
    zarr.open_group(inputs.path("hollow.zarr", good=False), mode="w").attrs["ome"] = _multiscale()
    inputs.bad[-1] = "hollow.zarr"  # two are called so
    inputs.bad[inputs.bad.index("hollow")] = "hollow.mrxs"
    link = inputs.path("itself.svs", good=False)
    link.symlink_to(link.name)
    tifffile.imwrite(
        inputs.path("mistruth.tif", good=False), scene, photometric="rgb", tile=(64, 64), **HALF_UM
    )
    (inputs.folder / "truth" / "mistruth.geojson").write_text('{"type": "FeatureCollection", "features": [')
    inputs.bad.append(r"caf\xe9")  # as results show the byte
    place = os.fsencode(inputs.folder / "in") + b"/caf\xe9.svs"
    with open(place, "wb") as stream:  # noqa: PTH123 - the name is no text
        stream.write(whole)


def _bad_volumes(inputs: Inputs, shared: Path) -> None:
    """Five volumes that cannot be segmented."""
    source = sorted((shared / "msd-hippocampus" / "images").glob("*.nii.gz"))[10]
    image: Any = nib.load(source)
    voxels = np.asarray(image.dataobj, np.float32)
    _series(inputs.path("gap", good=False), image, without=7)
    holes = voxels.copy()
    holes[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(holes, image.affine), inputs.path("nan.nii.gz", good=False))
    packed = source.read_bytes()
    inputs.path("cut.nii.gz", good=False).write_bytes(packed[: len(packed) // 2])
    inputs.bad[-1] = "cut.nii.gz"
    inputs.bad[inputs.bad.index("cut")] = "cut.svs"
    inputs.path("bomb.nii.gz", good=False).write_bytes(nifti_bomb())
    nowhere = nib.Nifti1Image(voxels, np.eye(4))
    nowhere.header["sform_code"], nowhere.header["qform_code"] = 1, 0
    for name in ("srow_x", "srow_y", "srow_z"):
        nowhere.header[name] = 0
    path = inputs.path("nowhere.nii", good=False)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    path.write_bytes(nowhere.header.binaryblock + path.read_bytes()[348:])


def vast_tiff(side: int) -> bytes:
    """A BigTIFF of a kilobyte that claims to have so many rows and columns."""
    entries = [
        (256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 2), (277, 3, 3),
        (322, 4, 256), (323, 4, 256), (324, 16, 600), (325, 16, 100), (296, 3, 3),
    ]  # fmt: skip
    entries.sort()
    directory = struct.pack("<Q", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHQQ", tag, kind, 1, value)
    return (struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + directory + bytes(8)).ljust(1024, b"\0")


def png_bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims to have so many rows and columns."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    lines = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def nifti_bomb() -> bytes:
    """Some megabytes of gzip that become 32 GB of zeros, with a header that asks for them."""
    shape = (4000, 4000, 1000)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    zeros = gzip.compress(bytes(64 << 20), mtime=0)
    return gzip.compress(header.binaryblock + bytes(4), mtime=0) + zeros * (2 * int(np.prod(shape)) >> 26)
