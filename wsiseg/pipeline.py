"""The main job on one page: a slide in, a full-resolution mask, a report and a picture out."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg import diagnosis
from wsiseg.behind import Behind
from wsiseg.claims import Claim, forget_dead, take, wait_for
from wsiseg.config import make_config
from wsiseg.diagnosis import gather
from wsiseg.execute.base import OnLevel0, rows_for, to_level0
from wsiseg.execute.decision import Confidence
from wsiseg.execution import make_executor, try_execution
from wsiseg.exports import check_out, remove_partial, remove_stale
from wsiseg.finishing import finish_slab
from wsiseg.images import CachedImages
from wsiseg.memory import free_unused, keep_memory, memory_for, ran_out
from wsiseg.models.foreign import in_short
from wsiseg.objects import to_path
from wsiseg.plan import StorePlan, plan_of
from wsiseg.predict import NetworkPredictor, load_predictor, use_threads
from wsiseg.prepare import (
    Job,
    Request,
    check_space,
    detect_tissue,
    open_job,
    plan_with_less,
    store_plan,
    wanted_regions,
    with_copies,
)
from wsiseg.preprocess import CaseStats, fit
from wsiseg.progress import Progress, no_progress
from wsiseg.report import Report, Stopwatch
from wsiseg.results import finished_report, make_report
from wsiseg.smaller import in_words
from wsiseg.store import CaseStore, Image
from wsiseg.tissue import TissueMask
from wsiseg.windows import Slab

logger = logging.getLogger(__name__)

BEHIND_BYTES = 1 << 26
"""Of a slab with its image that is written while the next is computed: it is in memory beside that."""


def segment(
    input: str | Path,
    out: str | Path,
    model: str | Path | None = None,
    *,
    annotations: str | Path | None = None,
    region: str | Path | None = None,
    overwrite: bool = False,
    config: str | Path | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Report:
    """Segment one slide into `out`; safe to interrupt and to call again.

    `options` are the fields of SegmentConfig; they override the file `config`. Raises WsisegError.
    """
    request = Request(
        input=to_path(input).absolute(),
        out=to_path(out),
        config=make_config(options, file=Path(config) if config else None),
        model=model,
        annotations=to_path(annotations) if annotations else None,
        region=to_path(region) if region else None,
        overwrite=overwrite,
    )
    return segment_case(request, progress=progress)


def segment_case(
    request: Request,
    *,
    progress: Progress = no_progress,
    free_after: int | None = None,
    left: Sequence[str] = (),
    again: bool = True,
) -> Report:
    """Segment what a request names; `free_after` is what the caller has seen of the claims of others.

    Where memory runs out the case is begun again under a plan that needs less, unless `again` is False:
    then what the library raised goes to the caller. `left` is why plans were left before this call, in
    order. Raises CaseHeld where another process works on the case, OutOfMemory where nothing smaller is
    left to try, and other WsisegErrors.
    """
    check_out(request)
    keep_memory()
    watch = Stopwatch()
    with ExitStack() as copies:
        with watch.stage("open"):
            request = with_copies(request, copies)
        return _segment_copied(request, watch, progress, free_after, left, again)


def _segment_copied(
    request: Request,
    watch: Stopwatch,
    progress: Progress,
    free_after: int | None,
    left: Sequence[str],
    again: bool,
) -> Report:
    """Segment what lies where it can be read."""
    with watch.stage("open"), memory_for(f"while {request.input} was opened"):
        job = open_job(request)
    while True:
        recorded = None if request.overwrite else plan_of(request.store)
        plan = store_plan(job, recorded)
        if recorded is not None and CaseStore(request.store, recorded).completion() is not None:
            # Nobody writes there any more, and nothing may be to be written.
            forget_dead(request.out, request.case)
            with memory_for(f"while the report of {request.case} was made"):
                return finished_report(job, CaseStore.create_or_resume(request.store, plan), watch)
        for why in left[len(plan.attempts) :]:
            plan = plan_with_less(job, plan, why=why)
        try:
            return _carry_out(job, plan, recorded, free_after, watch, progress)
        except (MemoryError, RuntimeError) as err:
            if not again or not ran_out(err):
                raise
            left = [*(attempt["why"] for attempt in plan.attempts), in_short(err)]
        logger.warning("%s: memory ran out with %s", request.case, in_words(plan.execution))
        free_unused()
        free_after = None


def _carry_out(
    job: Job,
    plan: StorePlan,
    recorded: StorePlan | None,
    free_after: int | None,
    watch: Stopwatch,
    progress: Progress,
) -> Report:
    """Begin or go on with a case under a plan; `recorded` is the one that its store has."""
    request = job.request
    if recorded is None:
        needed = check_space(job)
        logger.info("%s: the result will take about %.2f GB", request.case, needed / 1e9)
    if plan != recorded:
        # Nothing is begun, or overwritten, that could not be carried through.
        try_execution(plan.execution, _predictor(job, plan.execution))
    if free_after is None:
        free_after = wait_for(request.out, request.case, lease_s=request.config.lease_s)
    with take(request.out, request.case, after=free_after, lease_s=request.config.lease_s) as claim:
        store = CaseStore.create_or_resume(
            request.store, plan, overwrite=request.overwrite, guard=claim.check
        )
        if recorded is None and store.completion() is None:
            remove_stale(request)
        return _work_on(job, store, claim, watch, progress)


def _work_on(job: Job, store: CaseStore, claim: Claim, watch: Stopwatch, progress: Progress) -> Report:
    """Compute what is missing of a store that is this process's own, and write the report."""
    if store.completion() is not None:  # another was faster
        return finished_report(job, store, watch)
    with watch.stage("tissue"):
        tissue = _tissue(job, store, progress)
    _segment_rows(job, store, tissue, watch, progress)
    if claim.epoch > 1:
        remove_partial(job.request)
        # Whoever was here before may have been stopped in the middle of a write and woken up since.
        with watch.stage("verify"):
            store.forget_damaged()
        _segment_rows(job, store, tissue, watch, progress)
    with memory_for(f"while the result of {store.plan.case} was finished"):
        with watch.stage("pyramid"):
            said = gather(store, job.card.diagnoses)
            maps = {} if said is None else {diagnosis.NAME: said.probabilities}
            store.complete({"tissue_share": tissue.share if tissue else None}, maps=maps)
        claim.check()
        return make_report(job, store, watch, status="segmented")


def _segment_rows(
    job: Job, store: CaseStore, tissue: TissueMask | None, watch: Stopwatch, progress: Progress
) -> None:
    """Compute and write the slabs that are missing."""
    pending = store.pending()
    if not pending:
        return
    with ExitStack() as stack, watch.stage("segment"):
        images = CachedImages(job, stack)
        writer = stack.enter_context(Behind("wsiseg-write"))
        wanted = wanted_regions(job, tissue)
        execution = store.plan.execution
        predictor = _predictor(job, execution)
        stats = _stats(job, store, images, wanted)
        shape, from_shape = store.plan.shape, job.choice.geometry.shape
        # Where no pixel is resampled, the highest score needs no mixing.
        by_scores = job.card.mask_resampling == "scores" and shape != from_shape
        sure = Confidence.of(predictor.card) if store.plan.confidence else None
        executor = make_executor(
            execution, predictor.for_case(stats), job.config, from_shape,
            scores=by_scores, confidence=None if by_scores else sure,
        )  # fmt: skip

        def first_needed(row: int) -> int:
            part = slice(row, row + 1)
            return int(rows_for(part, size=shape[0], from_size=from_shape[0], scores=by_scores).start)

        rows = executor.run(images.model, first_row=first_needed(pending[0].rows.start), wanted=wanted)
        made = to_level0(rows, pending, shape=shape, from_shape=from_shape, scores=by_scores, confidence=sure)
        for done in progress(made, total=len(pending), what=job.request.case):
            slab, mask, confidence = done
            record = finish_slab(done, job=job, tissue=tissue) | executor.work.take()
            check_space(job, left=1 - slab.rows.start / shape[0])
            pieces = store.image_slabs(slab)
            rows_of = [(piece, images.image_rows(piece)) for piece in pieces]
            writer.do(partial(_write, store, done, record, rows_of, watch))
            if mask.nbytes + sum(rows.nbytes for _, rows in rows_of) > BEHIND_BYTES:
                writer.wait()
            images.forget(
                executor.first_row_read(first_needed(slab.rows.stop)),
                image_row=pieces[-1].rows.stop if pieces else None,
            )
            del done, mask, confidence, rows_of  # a slab of a large volume, before more is computed


def _write(
    store: CaseStore,
    done: OnLevel0,
    record: dict[str, Any],
    image: list[tuple[Slab, Image]],
    watch: Stopwatch,
) -> None:
    """Write a slab, and the rows of the stored image that end in it."""
    with watch.stage("write"):
        written = [store.write_image(piece, rows) for piece, rows in image]
        store.write(
            done.slab, done.mask, confidence=done.confidence, record={**record, "image": written}
        )  # fmt: skip


def _predictor(job: Job, execution: dict[str, Any]) -> NetworkPredictor:
    """The model of a job on the device, by the back end and with the threads of a plan."""
    use_threads(execution["threads"])
    config = job.config
    predictor = load_predictor(
        job.model, execution["device_name"], trust_code=config.trust_code, views=config.views,
        precision=execution["precision"],
    )  # fmt: skip
    return predictor.for_execution(execution)


def _tissue(job: Job, store: CaseStore, progress: Progress) -> TissueMask | None:
    """The tissue mask of the ledger, made and kept there on the first run."""
    if job.background is None:
        return None
    kept = store.ledger.read("tissue.npz")
    if kept is not None:
        with np.load(io.BytesIO(kept)) as arrays:
            return TissueMask(arrays["tissue"])
    tissue = detect_tissue(job, progress=progress)
    written = io.BytesIO()
    np.savez_compressed(written, tissue=tissue.grid)
    store.ledger.write("tissue.npz", written.getvalue())
    return tissue


def _stats(job: Job, store: CaseStore, images: CachedImages, wanted: Any) -> CaseStats | None:
    """The case's statistics of the ledger, fitted and kept there on the first run."""
    kept = store.ledger.read("stats.json")
    if kept is not None:
        return CaseStats.model_validate_json(kept)
    stats = fit(
        images.model,
        job.card.preprocessing,
        wanted=wanted,
        passed=images.drop,
    )
    if stats is not None:
        store.ledger.write("stats.json", stats.model_dump_json().encode())
        images.drop(images.model.geometry.shape[0])
    return stats
