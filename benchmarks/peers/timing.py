"""What every benchmarked system shares: the median of timings, and one JSON line of results."""

import json
import statistics
import time


def median_ms(function, repetitions, warm_ups=3):
    for _ in range(warm_ups):
        function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def once_ms(function):
    """For what takes seconds: one call, without a warm-up."""
    return median_ms(function, 1, warm_ups=0)


def report(system, **numbers):
    print(json.dumps({"system": system, **numbers}), flush=True)
