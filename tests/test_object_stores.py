"""Object stores, against a real S3 server: the same results, claims that hold, errors that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

import wsiseg
from tests.cases import SMALL
from tests.conftest import REPOSITORY, random_image
from tests.slide_files import write_dicom_slide
from wsiseg import copies
from wsiseg.batch.discovery import find_cases
from wsiseg.batch.segment import segment_folder
from wsiseg.claims import Claim, last_claim, take
from wsiseg.config import SegmentConfig
from wsiseg.copies import Cache
from wsiseg.display import verify
from wsiseg.errors import (
    CaseHeld,
    ClaimLost,
    ManifestError,
    ObjectStoreError,
    SourceError,
    UnreadableSource,
    UsageError,
)
from wsiseg.objects import ObjectPath, to_path
from wsiseg.report import Report
from wsiseg.s3 import Objects

VOLUME = next((REPOSITORY / "wsiseg" / "samples" / "msd-hippocampus").rglob("*.nii.gz"))
# Sessions of s3fs end with their thread or their process, and say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-but-kept",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server on this machine; as in S3 a condition and the write it is for are one step."""
    with pytest.MonkeyPatch.context() as patch:
        one, put = threading.Lock(), S3Response.put_object

        def put_alone(self: S3Response) -> object:
            with one:
                return put(self)

        patch.setattr(S3Response, "put_object", put_alone)
        running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
        running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    """An empty bucket, and a cache of this test's own."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Objects.clear_instance_cache()
    name = f"bucket-{time.time_ns()}"
    Objects.shared().mkdir(name)
    found = to_path(f"s3://{name}")
    assert isinstance(found, ObjectPath)
    yield found
    Objects.clear_instance_cache()


def put(file: Path, target: ObjectPath) -> ObjectPath:
    target.upload(file)
    return target


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in (store / "labels").rglob("*") if p.is_file()}


def test_a_slide_in_and_out_gives_the_bytes_of_a_local_run(
    bucket: ObjectPath, slide: Path, segmented: Report
) -> None:
    put(slide, bucket / "slides" / slide.name)
    text = f"{bucket}/slides/{slide.name}"
    report = wsiseg.segment(text, f"{bucket}/results", "breast-tissue3", **SMALL)
    assert str(report.store) == f"{bucket}/results/scene.ome.zarr"
    assert contents(report.store) == contents(segmented.store)
    assert report.input == segmented.input
    left = {p.name for p in (bucket / "results").iterdir()}
    assert left == {"scene.ome.zarr", "scene.report.json", "scene.overlay.png"}  # claims are given back
    assert report.overlay.read_bytes().startswith(b"\x89PNG")
    written = report.report.read_text()
    assert Report.model_validate_json(written) == report
    assert "not-a-secret-but-kept" not in written
    assert verify(str(report.store)) == []
    np.testing.assert_array_equal(
        np.asarray(wsiseg.open_store(str(report.store)).mask()[:]),
        np.asarray(wsiseg.open_store(segmented.store).mask()[:]),
    )
    again = wsiseg.segment(text, f"{bucket}/results", "breast-tissue3", **SMALL)
    assert again.status == "already complete"
    scores = wsiseg.evaluate(str(report.store), f"{report.store}/labels/tissue", out=f"{bucket}/scores.json")
    assert scores.mean_iou == 1.0
    assert json.loads((bucket / "scores.json").read_bytes())["mean_iou"] == 1.0


def test_a_shard_is_written_once_as_one_object(
    bucket: ObjectPath, slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    call = Objects._call_s3

    async def counted(self: Objects, method: str, *args: object, **more: object) -> object:
        if method in ("put_object", "create_multipart_upload"):
            written.append(str(more["Key"]))
        return await call(self, method, *args, **more)

    monkeypatch.setattr(Objects, "_call_s3", counted)
    wsiseg.segment(slide, str(bucket / "out"), "breast-tissue3", **SMALL)
    shards = [key for key in written if "/labels/tissue/0/c/" in key]
    assert len(shards) > 1
    assert sorted(shards) == sorted(set(shards))


def test_what_object_stores_need_is_loaded_only_for_them() -> None:
    code = (
        "import sys, wsiseg.cli, wsiseg.pipeline, wsiseg.batch.segment\n"
        "print({'s3fs', 'aiohttp', 'botocore', 'fsspec'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "s3fs" not in run.stdout
    assert "botocore" not in run.stdout


def test_of_many_that_take_a_case_at_once_one_gets_it(bucket: ObjectPath) -> None:
    start = threading.Barrier(6)
    got: list[Claim | None] = []

    def one() -> None:
        start.wait()
        try:
            got.append(take(bucket, "a", after=0))
        except CaseHeld:
            got.append(None)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6
    assert sum(claim is not None for claim in got) == 1


def test_one_that_wakes_after_another_took_over_is_refused_and_does_not_come_back(bucket: ObjectPath) -> None:
    late = take(bucket, "a [1]", after=0)
    late._renew(late.content(1))
    assert last_claim(bucket, "a [1]").holder["beat"] == 1  # type: ignore[union-attr]
    with take(bucket, "a [1]", after=1) as claim:
        with pytest.raises(ClaimLost):
            late.check()
        with pytest.raises(ClaimLost):
            late._renew(late.content(2))
        claim.check()
    with pytest.raises((ClaimLost, FileNotFoundError)):
        late._renew(late.content(3))
    assert last_claim(bucket, "a [1]") is None


def test_a_beat_does_not_overwrite_what_came_between(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = take(bucket, "a", after=0)

    def slow(self: Claim) -> None:
        self.path.write_bytes(b"{}")

    monkeypatch.setattr(Claim, "check", slow)
    with pytest.raises(OSError, match="pre-conditions"):
        late._renew(late.content(1))
    assert late.path.read_bytes() == b"{}"


def test_a_folder_a_pattern_and_a_manifest_are_found(bucket: ObjectPath, slide: Path) -> None:
    for name in ("in/a.tif", "in/deep/b [1].tif", "in/notes.txt"):
        put(slide, bucket / name)
    found = find_cases([f"{bucket}/in"], out=bucket / "out")
    assert [(c.name, str(c.path)) for c in found.cases] == [
        ("a", f"{bucket}/in/a.tif"),
        ("deep/b [1]", f"{bucket}/in/deep/b [1].tif"),
    ]
    assert found.others == 1
    assert [c.name for c in find_cases([f"{bucket}/in/*.tif"], out=bucket / "out").cases] == ["a"]
    header = "case,path,patient,licence\n"
    (bucket / "in" / "m.csv").write_bytes(f"{header}one,deep/b [1].tif,p,CC0-1.0\n".encode())
    (case,) = find_cases([f"{bucket}/in/m.csv"], out=bucket / "out").cases
    assert (case.name, str(case.path), case.path.is_file()) == ("one", f"{bucket}/in/deep/b [1].tif", True)
    (bucket / "in" / "m.csv").write_bytes(f"{header}one,../x.tif,p,CC0-1.0\n".encode())
    with pytest.raises(ManifestError, match="leaves the manifest's root folder s3://"):
        find_cases([f"{bucket}/in/m.csv"], out=bucket / "out")


def test_the_files_of_a_dicom_slide_among_others_are_one_case(bucket: ObjectPath, tmp_path: Path) -> None:
    image = random_image((80, 96))
    write_dicom_slide(tmp_path / "2.dcm", image)
    write_dicom_slide(tmp_path / "3.dcm", image[:, ::2, ::2], downsample=2.0)
    for name in ("2.dcm", "3.dcm"):
        put(tmp_path / name, bucket / "in" / name)
    (bucket / "in" / "notes.txt").write_bytes(b"no slide")
    found = find_cases([f"{bucket}/in"], out=bucket / "out")
    assert [str(case.path) for case in found.cases] == [f"{bucket}/in/2.dcm"]
    assert wsiseg.open_source(f"{bucket}/in/2.dcm").geometry.shape == (80, 96)


@pytest.mark.slow
def test_a_volume_in_and_out_gives_the_bytes_of_a_local_run(bucket: ObjectPath, tmp_path: Path) -> None:
    put(VOLUME, bucket / VOLUME.name)
    there = wsiseg.segment(f"{bucket}/{VOLUME.name}", f"{bucket}/out", threads=1)
    here = wsiseg.segment(VOLUME, tmp_path / "out", threads=1)
    assert contents(there.store) == contents(here.store)
    assert there.nifti is not None
    assert here.nifti is not None
    assert there.nifti.read_bytes() == here.nifti.read_bytes()


@pytest.mark.slow
def test_a_batch_leaves_summary_and_failures_in_the_store(bucket: ObjectPath, slide: Path) -> None:
    put(slide, bucket / "in" / "a.tif")
    (bucket / "in" / "broken.tif").write_bytes(b"no picture")
    summary = segment_folder([f"{bucket}/in"], f"{bucket}/out", model="breast-tissue3", **SMALL)
    assert (summary.finished, summary.failed) == (1, 1)
    left = {p.name for p in (bucket / "out").iterdir()}
    assert {"summary.json", "summary.csv", "index.html", "broken.failure.json", "a.report.json"} <= left
    (failed,) = (row for row in summary.cases if row.status == "failed")
    assert failed.error.startswith(f"{bucket}/in/broken.tif ")


@pytest.mark.slow
def test_killed_and_resumed_gives_the_bytes_of_a_local_run(
    bucket: ObjectPath, slide: Path, tmp_path: Path
) -> None:
    put(slide, bucket / slide.name)
    config = tmp_path / "config.toml"
    config.write_text('image = "none"\nslab = 32\nchunk = 32\nthreads = 1\n')

    def command(out: object) -> list[str]:
        options = ["--out", str(out), "--config", str(config)]
        return [sys.executable, "-m", "wsiseg", "segment", f"{bucket}/{slide.name}", *options]

    assert subprocess.run(command(tmp_path / "whole"), check=False, capture_output=True).returncode == 0
    process = subprocess.Popen(command(f"{bucket}/out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = bucket / "out" / "scene.ome.zarr" / "ledger"
    while process.poll() is None and not list(ledger.glob("slab-*.json")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not (ledger / "complete.json").exists()
    assert subprocess.run(command(f"{bucket}/out"), check=False, capture_output=True).returncode == 0
    assert contents(bucket / "out" / "scene.ome.zarr") == contents(tmp_path / "whole" / "scene.ome.zarr")


def test_what_is_not_there_or_not_allowed_is_said_in_one_sentence(
    bucket: ObjectPath, slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreadableSource, match="no such file: s3://"):
        wsiseg.open_source(f"{bucket}/nothing.svs")
    with pytest.raises(ObjectStoreError, match="there is no bucket 'nowhere-at-all'"):
        wsiseg.open_source("s3://nowhere-at-all/a.svs")
    with pytest.raises(UsageError, match="there is no bucket 'nowhere-at-all'"):
        wsiseg.segment(slide, "s3://nowhere-at-all/out")
    for secret in ("s3://key:word@bucket/a.svs", "s3://bucket/a.svs?X-Amz-Signature=word"):
        with pytest.raises(UsageError, match="no credentials and no query") as err:
            to_path(secret)
        assert "word" not in str(err.value)
    with pytest.raises(UsageError, match="paths of gs:// are not known"):
        to_path("gs://bucket/a.svs")
    with pytest.raises(UsageError, match="names no bucket"):
        to_path("s3://")
    with pytest.raises(OSError, match="no local file"):
        os.fspath(bucket / "a")
    with pytest.raises(OSError, match="nothing is written in pieces"):
        (bucket / "a").open("wb")
    monkeypatch.setattr("wsiseg.objects.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'wsiseg\[s3\]'"):
        to_path("s3://bucket/a.svs")


def test_without_credentials_or_network_the_wait_is_short(
    bucket: ObjectPath, slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nothing")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nothing")
    Objects.clear_instance_cache()
    with pytest.raises(UsageError, match="needs credentials and none were found"):
        wsiseg.segment(slide, f"{bucket}/out")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    Objects.clear_instance_cache()
    begun = time.monotonic()
    with pytest.raises(ObjectStoreError, match="cannot be reached"):
        wsiseg.segment(slide, f"{bucket}/out")
    assert time.monotonic() - begun < 20


def test_the_oldest_copy_goes_first_and_none_that_is_in_use(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        (bucket / f"{name}.bin").write_bytes(name.encode() * 40)
    cache = Cache(tmp_path / "copies", limit=100)

    def there() -> set[str]:
        return {p.name for p in cache.folder.rglob("*.bin")}

    with cache.copy(bucket / "a.bin") as first:
        assert first.read_bytes() == b"a" * 40
        with cache.copy(bucket / "b.bin"):
            pass
        with cache.copy(bucket / "c.bin"):
            assert there() == {"a.bin", "c.bin"}  # b was used last, but a is in use
            monkeypatch.setattr(copies, "ROOM_WAIT_S", 0.0)
            with pytest.raises(SourceError, match="are in use"), cache.copy(bucket / "d.bin"):
                pass
    with cache.copy(bucket / "d.bin"):
        assert there() == {"c.bin", "d.bin"}
    (bucket / "e.bin").write_bytes(b"e" * 101)
    with pytest.raises(SourceError, match="set cache_gb"), cache.copy(bucket / "e.bin"):
        pass


def test_a_partial_copy_is_never_taken_for_a_whole_one(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "a.mrxs").write_bytes(b"index")
    (bucket / "a" / "Slidedat.ini").write_bytes(b"data")
    cache = Cache.of(SegmentConfig(cache=tmp_path / "copies", cache_gb=1))
    download = ObjectPath.download

    def cut(self: ObjectPath, file: Path) -> None:
        if self.name == "Slidedat.ini":
            raise ObjectStoreError(101, "cut off")
        download(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "download", cut)
        with pytest.raises(ObjectStoreError, match="cut off"), cache.copy(bucket / "a.mrxs"):
            pass
    assert list(cache.folder.rglob("*.mrxs")) == []
    with cache.copy(bucket / "a.mrxs") as local:
        assert (local.parent / "a" / "Slidedat.ini").read_bytes() == b"data"


def test_several_that_want_one_copy_at_once_make_it_once(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "a.bin").write_bytes(b"a" * 1000)
    cache, made, got = Cache(tmp_path / "copies", limit=1500), [], []
    download = ObjectPath.download

    def counted(self: ObjectPath, file: Path) -> None:
        made.append(file)
        download(self, file)

    monkeypatch.setattr(ObjectPath, "download", counted)

    def one() -> None:
        with cache.copy(bucket / "a.bin") as local:
            got.append(local.read_bytes())

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"a" * 1000] * 4
    assert len(made) == 1
