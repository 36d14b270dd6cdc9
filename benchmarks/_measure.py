"""Run an operation in several processes or threads for a while, and time every single call."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

#: A call of this does one operation.
Operation = Callable[[], object]

#: Operations of each worker before the clock starts.
WARM_UP = 30


@dataclass(frozen=True)
class Result:
    """One run of one peer; times in milliseconds."""

    rate: float
    p50: float
    p99: float
    max: float
    retries: int


def median(results: Sequence[Result]) -> Result:
    """Take the median of each figure over several runs."""
    values = [dataclasses.astuple(result) for result in results]
    return Result(*(statistics.median(column) for column in zip(*values, strict=True)))


def run(
    prepare: Callable[[int], tuple[Operation, Callable[[], int]]],
    *,
    processes: int = 1,
    threads: int = 1,
    seconds: float,
) -> Result:
    """Measure an operation.

    :param prepare: called with the worker's number in each worker *process*; returns the operation
        and a function that counts the retries so far.
    """
    # A fork of this process starts in milliseconds, and this process opens no database.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    pipes, workers = [], []
    for number in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(
            target=_worker, args=(theirs, barrier, prepare, number, threads, seconds)
        )
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    answers = [_answer(pipe) for pipe in pipes]
    for worker in workers:
        worker.join()
    times = [value for answer in answers for value in answer["times"]]
    elapsed = max(a["end"] for a in answers) - min(a["start"] for a in answers)
    return summary(times, elapsed, sum(answer["retries"] for answer in answers))


def summary(times: list[float], elapsed: float, retries: int = 0) -> Result:
    """Sum up the seconds that each call of a run took."""
    times.sort()
    return Result(
        rate=len(times) / elapsed,
        p50=_percentile(times, 0.5) * 1e3,
        p99=_percentile(times, 0.99) * 1e3,
        max=times[-1] * 1e3,
        retries=retries,
    )


def print_rows(cell: str, row: dict[str, Result]) -> None:
    """Print the results of one workload, a line for each peer."""
    print(f"\n{cell:<44}{'ops/s':>9}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'retries':>9}")
    for name, r in row.items():
        print(
            f"  {name:<42}{r.rate:>9,.0f}{r.p50:>10.3f}{r.p99:>10.3f}{r.max:>10.1f}"
            f"{r.retries:>9,.0f}"
        )


def _answer(pipe: Connection) -> dict[str, Any]:
    answer: dict[str, Any] = pipe.recv()
    if "error" in answer:
        raise RuntimeError(f"a worker failed:\n{answer['error']}")
    return answer


def _worker(
    pipe: Connection,
    barrier: Any,
    prepare: Callable[[int], tuple[Operation, Callable[[], int]]],
    number: int,
    threads: int,
    seconds: float,
) -> None:
    try:
        operation, retries = prepare(number)
        for _ in range(WARM_UP):
            operation()
        gc.collect()
        before = retries()
        barrier.wait()
        start = time.monotonic()
        times: list[float] = []
        if threads == 1:
            _loop(operation, start + seconds, times)
        else:
            _in_threads(operation, start + seconds, times, threads)
        answer = {"start": start, "end": time.monotonic(), "times": times}
        pipe.send(answer | {"retries": retries() - before})
    except BaseException:
        barrier.abort()
        pipe.send({"error": traceback.format_exc()})


def _in_threads(operation: Operation, end: float, times: list[float], count: int) -> None:
    own: list[list[float]] = [[] for _ in range(count)]
    threads = [threading.Thread(target=_loop, args=(operation, end, own[i])) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(own):
        raise RuntimeError("a thread did not finish a single operation; see its traceback above")
    for part in own:
        times.extend(part)


def _loop(operation: Operation, end: float, times: list[float]) -> None:
    clock = time.perf_counter
    while time.monotonic() < end:
        start = clock()
        operation()
        times.append(clock() - start)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
