"""What may go wrong with a Prefect server and its workers, and stops no mask: on a real server of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.server_away import Job, wait_for_state
from tests.conftest import REPOSITORY
from tests.servers import Server, kill

pytestmark = [pytest.mark.server, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    work = tmp_path_factory.mktemp("away")
    server = Server(work)
    try:
        server.begin()
        found = Job(server, work, cases=6)
        found.prepare()
        yield found
    finally:
        server.stop()


def test_a_run_whose_worker_and_process_were_killed_becomes_crashed_and_goes_on_from_the_ledger(
    job: Job,
) -> None:
    text = (REPOSITORY / "automations.yaml").read_text()
    assert "within: 90" in text
    (job.work / "automations.yaml").write_text(text.replace("within: 90", "within: 45"))
    made = job.server.run(
        "prefect", "automation", "create", "--from-file", str(job.work / "automations.yaml")
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (worker,) = job.server.deploy()
    job.begin("dead")
    job.wait_for("dead", 1, limit_s=120)
    kill(worker)
    before = {path: path.stat().st_mtime_ns for path in (job.work / "dead").glob("*.report.json")}
    assert 1 <= len(before) < job.cases
    assert wait_for_state(job.server, "dead", "Crashed", limit_s=150) == "Crashed"
    removed = job.server.run("prefect", "--no-prompt", "automation", "delete", "dead runs")
    assert removed.returncode == 0, removed.stdout + removed.stderr
    job.server.add_worker("again")
    job.begin("again", out=job.work / "dead")
    assert wait_for_state(job.server, "again", "Completed", "Failed", limit_s=120) == "Completed"
    assert job.is_as_undisturbed("dead")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_gpu_has_one_case_at_a_time_also_after_the_server_was_started_again(job: Job) -> None:
    server = job.server

    def hold(device: str, seconds: float) -> subprocess.Popen[str]:
        command = (sys.executable, "-m", "tests.slots", device, str(seconds))
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=server.environment, stdout=subprocess.PIPE, text=True
        )

    holders = [hold("cuda:1", 3), hold("cuda:1", 3), hold("cuda:0", 3)]
    first, second, _ = (list(map(float, one.communicate(timeout=120)[0].split())) for one in holders)
    assert len(first) == len(second) == 2
    assert first[1] <= second[0] or second[1] <= first[0]
    holder = hold("cuda:1", 15)
    assert holder.stdout is not None
    assert holder.stdout.readline()
    server.go_away()
    server.begin()
    assert len(holder.communicate(timeout=120)[0].split()) == 1
    # The slot was given back to a server that had to remember it.
    assert len(hold("cuda:1", 0).communicate(timeout=60)[0].split()) == 2


def test_every_mask_is_finished_while_the_server_is_away_and_the_run_completes_once_it_is_back(
    job: Job,
) -> None:
    found = job.measure("away", away_s=5, limit_s=120)
    assert found["finished when the server went"] < job.cases
    assert found["equal to an undisturbed run"]
    assert found["state of the run"] == "Completed"


def test_every_mask_is_finished_where_the_server_stays_away(job: Job) -> None:
    found = job.measure("never", away_s=None, limit_s=120)
    assert found["finished when the server went"] < job.cases
    assert found["finished"] == job.cases
    assert found["equal to an undisturbed run"]
