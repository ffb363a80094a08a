"""The clock, the memory and the recorder of a device, as benchmarks/kernel.py uses them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]


class Meter:
    """A CPU: work has ended when it returns, its memory shows in a fresh process alone, and there is no recorder."""

    modes: tuple[str, ...] = ("eager",)
    in_fresh_process = True
    # Whether a run ends between two sizes when its time is over: a machine that is lent.
    ends = False
    # Bytes of the array whose copying is timed, and rows and columns of the matrices whose product is.
    copied = 2**27
    square = 1024

    def __init__(self, device: torch.device, flush: bool) -> None:
        self.device = device
        self.cache = "warm"

    def milliseconds(self, work: Work, mode: str) -> float:
        """Time of one call."""
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)

    def record(self, work: Work) -> Work:
        """What repeats the work without the host's part in it; a RuntimeError where that cannot be."""
        raise RuntimeError("a CPU has no graphs")

    def peak(self, work: Work) -> float:
        """MiB that the work needs beyond what is there."""
        raise RuntimeError("only a fresh process shows what memory is used on a CPU")

    def launches(self, work: Work) -> int | str:
        """Kernels that the work starts; empty on a CPU."""
        return ""

    def wait(self) -> None:
        """Return when all work has ended; a RuntimeError if the device is in a state that nothing ends."""

    def release(self) -> None:
        """Give back memory that nothing uses."""

    def facts(self) -> dict[str, str]:
        """The driver and the clocks as they are now, empty where they cannot be read."""
        return {"driver": "", "clocks": ""}


class CudaMeter(Meter):
    """A GPU, timed by its own events.

    eager  from an idle device to the end of the last kernel: what the host takes to launch is in it
    graph  a recorded graph, launched while the device is still busy: the device's time alone

    With `flush` the second-level cache is overwritten before every call; without it the work runs once just before.
    """

    modes = ("eager", "graph")
    in_fresh_process = False
    ends = True
    copied = 2**30
    square = 8192

    def __init__(self, device: torch.device, flush: bool) -> None:
        import torch

        super().__init__(device, flush)
        self.cache = "flushed" if flush else "warm"
        # Four times the cache, which also keeps the device busy while the host launches a graph.
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size if flush else 0
        self.eraser = torch.empty(size, dtype=torch.uint8, device=device)
        # Graphs that are never launched at once, and whose results nobody reads, can share their memory.
        self.pool = torch.cuda.graph_pool_handle()

    def milliseconds(self, work: Work, mode: str) -> float:
        import torch

        if self.eraser.numel():
            self.eraser.zero_()
        else:
            work()
        if mode == "eager":
            torch.cuda.synchronize(self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def record(self, work: Work) -> Work:
        import torch

        stream, graph = torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        with torch.cuda.graph(graph, pool=self.pool, stream=stream):
            work()
        return graph.replay

    def peak(self, work: Work) -> float:
        import torch

        self.release()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def launches(self, work: Work) -> int | str:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            work()
            self.wait()
        # 0 means that the profiler may not look, not that nothing was launched.
        return sum(event.device_type == DeviceType.CUDA for event in recorded.events() or ()) or ""

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        import gc

        import torch

        gc.collect()
        self.wait()
        torch.cuda.empty_cache()
        self.pool = torch.cuda.graph_pool_handle()

    def facts(self) -> dict[str, str]:
        asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem"
        place = str(self.device.index or 0)
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "-i", place]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return super().facts()
        driver, now, most, memory = (word.strip() for word in told.strip().split(","))
        return {"driver": driver, "clocks": f"{now} of {most}; memory {memory}"}


def meter(device: torch.device, flush: bool) -> Meter:
    """The meter of a device."""
    return (CudaMeter if device.type == "cuda" else Meter)(device, flush)
