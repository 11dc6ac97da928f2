"""Folders of slides and volumes: every result that can be had, and a list of what failed and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsiseg.batch.discovery import Found, find_cases, part_of
from wsiseg.batch.page import write_page
from wsiseg.batch.run import Batch, run_batch
from wsiseg.batch.summary import Overview, Summary, write_summary
from wsiseg.config import make_config, read_mapping
from wsiseg.errors import StoreError
from wsiseg.exports import check_folder
from wsiseg.models.zoo import load_card
from wsiseg.objects import to_path
from wsiseg.progress import Progress, no_progress

logger = logging.getLogger(__name__)

SUMMARY_S = 10.0
"""Between two summaries of a batch in work."""


def segment_folder(
    inputs: Sequence[str | Path], out: str | Path, *, progress: Progress = no_progress, **given: Any
) -> Summary:
    """Segment the cases of folders, patterns and manifests into `out`; safe to interrupt and to call again.

    Several processes or machines may work on one `out` at the same time: no case is done twice. What else
    can be `given` is what `open_folder` takes. What became of every case stands in summary.json,
    summary.csv and index.html, also while the batch is in work. Raises UsageError for a wrong command,
    NoRoom where nothing more can be written.
    """
    opened = open_folder(inputs, out, **given)
    try:
        run_batch(opened.batch, told=opened.told, progress=progress)
    finally:
        summary = opened.written()
    return summary


def open_folder(
    inputs: Sequence[str | Path],
    out: str | Path,
    model: str | Path | None = None,
    *,
    annotations: str | Path | None = None,
    overwrite: bool = False,
    config: str | Path | None = None,
    jobs: int = 1,
    part: str | None = None,
    **options: Any,
) -> Folder:
    """What `segment_folder` works on, also for whoever gives the cases out in another way.

    `jobs` cases are worked on at once, each in a process of its own; `part` "i/n" takes every n-th case.
    `annotations` is a folder of files with the cases' names. `options` are the fields of SegmentConfig; no
    image is stored unless they, or the file `config`, ask for one. Raises UsageError, ModelError,
    ManifestError for a command that cannot be carried out.
    """
    out = to_path(out)
    file = Path(config) if config else None
    if options.get("image") is None and not (file and "image" in read_mapping(file)):
        options["image"] = "none"
    settings = make_config(options, file=file)
    if model is not None:
        load_card(model)
    check_folder(out)
    found = find_cases(inputs, out=out, annotations=to_path(annotations) if annotations else None)
    batch = Batch(
        cases=part_of(found.cases, part) if part else found.cases,
        out=out,
        options=settings.model_dump(mode="json") | {"model": None if model is None else str(model)},
        jobs=jobs,
        limit_s=settings.limit_s,
        lease_s=settings.lease_s,
        overwrite=overwrite,
    )
    return Folder(batch, found, title=f"wsiseg: {', '.join(map(str, inputs))}")


class Folder:
    """A batch with its summary and its page, which it keeps up to date."""

    def __init__(self, batch: Batch, found: Found, *, title: str) -> None:
        self.batch = batch
        self._overview = Overview(found.cases, batch.out, others=found.others)
        self._out, self._title = batch.out, title
        self._last = time.monotonic()

    def told(self) -> None:
        """After a case: what is old enough is written anew."""
        if time.monotonic() - self._last > SUMMARY_S:
            self.written()

    def written(self) -> Summary:
        """The summary of what is on disk, written; others that work there write it too, whole and alike."""
        summary = self._overview.summary()
        while True:
            try:
                write_summary(summary, self._out)
                write_page(summary, self._out, title=self._title)
            except StoreError as err:
                logger.warning("the summary could not be written: %s", err)
                break
            # Another may have finished a case, and written, while this one was on its way.
            again = self._overview.summary()
            if again == summary:
                break
            summary = again
        self._last = time.monotonic()
        return summary
