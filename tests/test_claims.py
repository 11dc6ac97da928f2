"""Claims: one process a case, and none that wakes up late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cases import SMALL
from tests.fuzz import PLAN
from wsiseg import claims, segment
from wsiseg.claims import Watch, last_claim, take, wait_for
from wsiseg.config import SegmentConfig
from wsiseg.errors import CaseHeld, ClaimLost, StoreError
from wsiseg.exports import remove_partial
from wsiseg.files import write_whole
from wsiseg.ledger import Ledger
from wsiseg.prepare import Request

LEASE_S = 0.6


def change(path: Path, **values: object) -> None:
    """A claim as another process would have written it."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_case_is_held_until_it_is_given_back(tmp_path: Path) -> None:
    with take(tmp_path, "a", after=0) as claim:
        claim.check()
        assert last_claim(tmp_path, "a").epoch == 1  # type: ignore[union-attr]
        with pytest.raises(CaseHeld, match="a was taken by another"):
            take(tmp_path, "a", after=0)
        assert Watch().free_after(tmp_path, "a") is None
        with take(tmp_path, "b", after=0):  # another case
            pass
        assert claim.path.exists()
    assert list(tmp_path.iterdir()) == []  # nothing is left
    assert Watch().free_after(tmp_path, "a") == 0
    with take(tmp_path, "a", after=0):
        pass


def test_of_many_that_take_a_case_at_once_one_gets_it(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    got: list[claims.Claim | None] = []

    def one() -> None:
        start.wait()
        try:
            got.append(take(tmp_path, "a", after=0))
        except CaseHeld:
            got.append(None)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in got) == 1


def test_a_process_that_is_gone_from_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wsiseg.claims import take\n"
        "take(Path(sys.argv[1]), 'a', after=0).__enter__(); print('taken', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"taken\n"
        assert Watch(lease_s=60).free_after(tmp_path, "a") is None
        other.kill()
        other.wait()
    assert Watch(lease_s=60).free_after(tmp_path, "a") == 1
    with take(tmp_path, "a", after=1) as claim:
        assert claim.epoch == 2
        claim.check()
    assert last_claim(tmp_path, "a") is None


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path) -> None:
    claim = take(tmp_path, "a", after=0)
    change(claim.path, started="1")
    assert Watch().free_after(tmp_path, "a") == 1
    change(claim.path, process="../../etc")
    assert Watch().free_after(tmp_path, "a") is None
    claim.path.write_text("{")  # being written
    assert Watch().free_after(tmp_path, "a") is None


def test_a_holder_elsewhere_is_dead_when_it_has_not_beaten_for_the_lease(tmp_path: Path) -> None:
    claim = take(tmp_path, "a", after=0, lease_s=LEASE_S)
    change(claim.path, machine="another", host="far")
    watch = Watch(lease_s=LEASE_S)
    assert watch.free_after(tmp_path, "a") is None
    time.sleep(0.7 * LEASE_S)
    change(claim.path, beat=1)
    assert watch.free_after(tmp_path, "a") is None
    time.sleep(0.7 * LEASE_S)
    assert watch.free_after(tmp_path, "a") is None  # the lease began again with the beat
    time.sleep(0.4 * LEASE_S)
    assert watch.free_after(tmp_path, "a") == 1


def test_who_waits_for_one_case_is_told_as_soon_as_the_holder_beats(tmp_path: Path) -> None:
    with (
        take(tmp_path, "a", after=0, lease_s=LEASE_S),
        pytest.raises(CaseHeld, match=f"a is in work by process {os.getpid()} on "),
    ):
        wait_for(tmp_path, "a", lease_s=60 * LEASE_S)
    assert wait_for(tmp_path, "a") == 0
    dead = take(tmp_path, "a", after=0)
    change(dead.path, machine="another")
    begin = time.monotonic()
    assert wait_for(tmp_path, "a", lease_s=LEASE_S) == 1
    assert time.monotonic() - begin > LEASE_S


def test_one_that_was_overtaken_may_write_no_more_and_does_not_come_back(tmp_path: Path) -> None:
    stopped = take(tmp_path, "a", after=0, lease_s=LEASE_S)
    with take(tmp_path, "a", after=1) as new:
        with pytest.raises(ClaimLost, match="a was taken over by process"):
            stopped.check()
        stopped.release()  # does not take the new one's away
        new.check()
        stopped._beat()  # ends at once: it has nothing to say any more
        new.check()
    with pytest.raises(ClaimLost, match="taken over by another"):
        stopped.check()
    stopped._beat()
    assert last_claim(tmp_path, "a") is None
    # A claim of the same number that somebody else made later is not the old one's.
    with take(tmp_path, "a", after=0), pytest.raises(ClaimLost):
        stopped.check()


def test_a_claim_that_cannot_be_renewed_for_a_while_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with take(tmp_path, "a", after=0, lease_s=LEASE_S) as claim:
        before = claim.path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(claims.Claim, "content", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
            time.sleep(0.5 * LEASE_S)
        assert "the claim cannot be renewed: [Errno 28] full" in caplog.text
        time.sleep(0.5 * LEASE_S)
        assert claim.path.read_bytes() != before
        claim.check()


def test_where_nothing_can_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".claims").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        take(tmp_path, "a", after=0)


def test_the_claim_of_a_holder_that_was_killed_after_it_had_finished_is_removed(
    slide: Path, tmp_path: Path
) -> None:
    segment(slide, tmp_path, image="none", **SMALL)
    claim = take(tmp_path, "scene", after=0)
    assert segment(slide, tmp_path, image="none", **SMALL).status == "already complete"
    assert claim.path.exists()  # its holder lives
    said = json.loads(claim.path.read_bytes())
    claim.path.write_text(json.dumps({**said, "started": "0"}))  # as if another had its number now
    assert segment(slide, tmp_path, image="none", **SMALL).status == "already complete"
    assert not (tmp_path / ".claims").exists()


def test_a_write_that_fails_because_another_has_taken_over_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with take(tmp_path, "a", after=0) as claim:
        ledger = Ledger(tmp_path / "a.ome.zarr" / "ledger", plan=PLAN, guard=claim.check)
        ledger.write("slab.json", b"first")

        def overtaken(path: Path, data: bytes, **_: object) -> None:
            claim.path.with_name("000002.json").write_bytes(claim.path.read_bytes())
            raise FileNotFoundError(2, "No such file or directory", str(path))

        with monkeypatch.context() as patched:
            patched.setattr("wsiseg.ledger.write_whole", overtaken)
            with pytest.raises(ClaimLost, match="a was taken over"):
                ledger.write("slab.json", b"second")
        claim.path.with_name("000002.json").unlink()
        with monkeypatch.context() as patched:
            patched.setattr("wsiseg.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
            with pytest.raises(StoreError, match="cannot write .*a.ome.zarr: I/O error"):
                ledger.write("slab.json", b"second")
    assert ledger.read("slab.json") == b"first"


def test_who_wakes_in_the_middle_of_a_small_file_leaves_the_one_of_another_alone(tmp_path: Path) -> None:
    path = tmp_path / "slab.json"

    def another_writes_it() -> None:
        write_whole(path, b"by another")
        raise ClaimLost("taken over")

    with pytest.raises(ClaimLost):
        write_whole(path, b"late, and longer than the other", guard=another_writes_it)
    assert path.read_bytes() == b"by another"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_beside_a_store_is_removed(tmp_path: Path) -> None:
    request = Request(input=tmp_path / "a.tif", out=tmp_path, config=SegmentConfig(), model=None)
    (tmp_path / "a.report.json.0f3a2b11.partial").write_bytes(b"half")
    others = tmp_path / "a.b.report.json.0f3a2b11.partial"
    others.write_bytes(b"another case's")
    remove_partial(request)
    assert list(tmp_path.iterdir()) == [others]
