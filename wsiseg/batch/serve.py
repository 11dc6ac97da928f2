"""The process of a worker: `python -m wsiseg.batch.serve`, see `workers`."""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import sys
import threading
from dataclasses import asdict
from typing import BinaryIO

from wsiseg.batch.workers import Answer, Job
from wsiseg.errors import WsisegError


def serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Work on jobs, one a line, until there are no more; the end of the input ends all at once."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in jobs:
            waiting.put(line)
        os._exit(0)  # whoever wanted the results is gone; the ledger has what is done

    threading.Thread(target=listen, daemon=True).start()
    while True:
        answer = work_on(Job(**json.loads(waiting.get())))
        answers.write(json.dumps(asdict(answer)).encode() + b"\n")
        answers.flush()


def work_on(job: Job) -> Answer:
    """Segment a case in this process."""
    from wsiseg.config import make_config
    from wsiseg.memory import ran_out
    from wsiseg.models.foreign import in_short
    from wsiseg.objects import to_path
    from wsiseg.pipeline import segment_case
    from wsiseg.prepare import Request

    options = dict(job.options)
    model = options.pop("model", None)
    try:
        request = Request(
            input=to_path(job.input).absolute(),
            out=to_path(job.out),
            config=make_config(options),
            model=model,
            annotations=to_path(job.annotations) if job.annotations else None,
            overwrite=job.overwrite,
            name=job.case,
        )
        report = segment_case(request, free_after=job.free_after, left=job.left, again=False)
    except WsisegError as err:
        return Answer("failed", str(err), type(err).__name__, may_pass=may_pass(err))
    except (MemoryError, RuntimeError) as err:
        if not ran_out(err):
            raise
        return Answer("failed", in_short(err), "MemoryRanOut")
    return Answer(report.status)


PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EAGAIN, errno.ENETDOWN,
           errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOTCONN}  # fmt: skip


def may_pass(err: BaseException | None) -> bool:
    """True of an error that came of what a disk or a network says for a while."""
    while err is not None:
        if isinstance(err, OSError) and err.errno in PASSING:
            return True
        err = err.__cause__ or err.__context__
    return False


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, answers)
    except BaseException:
        logging.exception("a mistake of the program")
        os._exit(1)  # not the usual way, on which Python aborts because of the thread that listens
