"""Work in parts, of which one runs while the next compiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from metaopt.inner.devices import matmul_precision

Progress = Callable[[int, int, str], None]  # (parts done, parts in all, what comes next)


class Part(NamedTuple):
    """A part of the work: `prepare` compiles and returns what runs; `done` takes the outcome."""

    what: str
    prepare: Callable[[], Callable[[], Any]]
    done: Callable[[Any], None]


def work_off(parts: Sequence[Part], precision: str, progress: Progress | None) -> None:
    """Runs one part after another, while a second thread compiles those to come: most of the time is compilation."""

    def prepare(part: Part) -> Callable[[], Any]:
        with matmul_precision(precision):  # which holds for a thread
            return part.prepare()

    compiler = ThreadPoolExecutor(max_workers=1)
    prepared = [compiler.submit(prepare, part) for part in parts]
    try:
        for number, (part, run) in enumerate(zip(parts, prepared, strict=True)):
            if progress is not None:
                progress(number, len(parts), part.what)
            part.done(run.result()())
    finally:  # who stops the work is told so at once, not after the compilation under way
        compiler.shutdown(wait=False, cancel_futures=True)
