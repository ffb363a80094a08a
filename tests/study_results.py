"""Made-up results of the studies, in their columns: formulas in place of measurements."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

MACHINE = {
    "device": "Made-up(R) CPU @ 2.00GHz", "threads": 2, "driver": "", "clocks": "", "isa": "avx2", "python": "3.12.1",
    "torch": "2.13.0+cpu", "source": "0123456789ab", "commit": "c0ffee", "date": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
# By variant: the budget, its smallest value, logits per query of a value, the time and the error relative to others.
VARIANTS: dict[str, tuple[str, int, float, float, float]] = {
    "mra2": ("blocks_per_row", 1, 32, 0.9, 0.8),
    "mra2_s": ("blocks_per_row", 1, 32, 0.7, 0.95),
    "mra": ("blocks_per_row", 4, 8, 1.8, 0.85),
    "longformer": ("window", 16, 1, 1.3, 1.0),
    "bigbird": ("block_size", 8, 8, 1.6, 0.97),
    "nystromformer": ("landmarks", 16, 1, 0.8, 1.2),
    "scatterbrain": ("window", 16, 1, 2.4, 1.05),
    "linformer": ("rank", 16, 1, 0.6, 1.5),
    "performer": ("features", 16, 1, 0.75, 1.6),
    "h_transformer_1d": ("block_size", 8, 4.5, 1.5, 0.9),
    "yoso": ("hashes", 8, 1, 2.0, 1.35),
    "soft": ("landmarks", 16, 1, 1.0, 2.2),
    "reformer": ("rounds", 1, 128, 1.7, 1.1),
}
MEANT_OTHERWISE = ("yoso", "soft", "reformer")
EXACT_MS = {"softmax": 2.4e-6, "eager": 5.1e-6}


def save(folder: Path, name: str, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as a study does."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, file = list(rows), folder / f"{name}.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    return file


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def values(attn: str, n: int) -> list[int]:
    """A sweep: doubling, up to a quarter of softmax's work."""
    _, first, per_query, _, _ = VARIANTS[attn]
    return [first << i for i in range(12) if not i or (first << i) * per_query <= n / 4]


def approximation(n: int, inputs: str = "generated", **machine: Any) -> list[dict[str, Any]]:
    """The rows of one input; where an attention ran out of memory, mra with its largest budget, there is no number."""
    exact = {name: n * n * slope + 0.3 for name, slope in EXACT_MS.items()}

    def row(attn: str, **more: Any) -> dict[str, Any]:
        step = more.pop("step_ms", None)
        return {
            "inputs": inputs, "inputs_sha256": "f00d", "n": n, "attn": attn, "parameter": "", "value": "",
            "workload": "", "aims": "True", "result": "ok", "error": "", "error_low": "", "error_median": "",
            "error_high": "", "entropy": 3.1, "forward_ms": step and step / 3, "forward_iqr_ms": 0.1, "step_ms": step,
            "step_iqr_ms": 0.1, "rounds": 5, "ratio": step and step / exact["softmax"],
            "ratio_eager": step and step / exact["eager"], "peak_mb": "", "first_s": 0.1, "batch": 1, "heads": 2,
            "head_dim": 64, "dtype": "float32", "reached": "float32", "operators": "", "kernel": "", "samples_ms": "",
        } | more | MACHINE | machine  # fmt: skip

    found = [
        row("softmax", workload=1, error=1e-7, step_ms=exact["softmax"], peak_mb=n / 80),
        row("eager", workload=1, error=1e-7, step_ms=exact["eager"], peak_mb=n * n / 1.2e5),
        row("projections", step_ms=n * 8e-3, peak_mb=n / 100, aims=""),
    ]
    for attn, (parameter, _, per_query, slow, wrong) in VARIANTS.items():
        for value in values(attn, n):
            share = min(value * per_query / n, 1.0)
            step = slow * (n * 2.2e-3 + n * n * share * 6e-6)
            error = wrong * (0.1 + 0.9 * (1 - share) ** 8)
            found.append(
                row(
                    attn, parameter=parameter, value=value, workload=share, aims=str(attn not in MEANT_OTHERWISE),
                    error=error, error_low=0.8 * error, error_median=error, error_high=1.2 * error, step_ms=step,
                    peak_mb=n / 60 + 24 * slow * share * n / 100,
                )
            )  # fmt: skip
    last = max(i for i, made in enumerate(found) if made["attn"] == "mra")
    gone = ("error", "error_low", "error_median", "error_high", "step_ms", "ratio", "ratio_eager", "peak_mb")
    found[last] |= dict.fromkeys(gone, "") | {"result": "out of memory"}
    found.append(row("adamra", aims="False", error=1.2, step_ms=n * 1.5e-3, peak_mb=n / 90))
    return found


def entropy(n: int, inputs: str = "generated", **machine: Any) -> list[dict[str, Any]]:
    """The rows of one input; Scatterbrain has nothing within half the time."""
    found = []
    for against, slope in EXACT_MS.items():
        for budget in (1.0, 0.5):
            time = budget * (n * n * slope + 0.3)
            common = {
                "inputs": inputs,
                "inputs_sha256": "f00d",
                "n": n,
                "against": against,
                "budget": budget,
                "budget_ms": time,
            }
            for attn, (parameter, _, _, _, wrong) in VARIANTS.items():
                if attn in MEANT_OTHERWISE:
                    continue
                none = attn == "scatterbrain" and budget == 0.5
                value = values(attn, n)[-1 if budget == 1 else 0]
                for power in range(-4, 5) if not none else (0,):
                    for head in range(4) if not none else (0,):
                        nats = math.log(n) / (1 + 2.0 ** (power - head / 3))
                        error = (
                            wrong * (0.15 + 0.35 * math.sin(math.pi * nats / math.log(n)) + 0.02 * head) / budget**0.3
                        )
                        point: dict[str, Any] = {
                            "attn": attn, "parameter": parameter, "value": value, "step_ms": 0.9 * time,
                            "temperature": 2.0**power, "instance": "example 0", "head": head, "entropy": nats,
                            "error": error,
                        }  # fmt: skip
                        if none:
                            point = dict.fromkeys(point, "") | {"attn": attn}
                        found.append(common | point | MACHINE | machine)
    return found


LENGTHS = (512, 2048, 4096, 8192)


def efficiency(**machine: Any) -> list[dict[str, Any]]:
    """Core and model at several lengths; eager softmax is out of memory at the longest."""
    found = []
    for of, layers in (("core", 0), ("model", 2)):
        for n in LENGTHS:
            exact = {
                name: n * n * slope + 0.3 for name, slope in {**EXACT_MS, "sdpa math": 5.3e-6, "flex": 3e-6}.items()
            }
            around = 0 if of == "core" else n * 6e-3
            for attn in (*exact, *VARIANTS):
                variant = attn not in exact
                time = around + (VARIANTS[attn][3] * n * 5e-3 if variant else exact[attn])
                peak = n / 12 + (
                    VARIANTS[attn][3] * n / 50 if variant else n * n / 1.5e5 * (attn in ("eager", "sdpa math"))
                )
                eager_peak = n / 12 + n * n / 1.5e5
                row: dict[str, Any] = {
                    "of": of, "attn": attn, "kind": "variant" if variant else "exact", "rule": "32", "batch": 32,
                    "n": n, "layers": layers, "heads": 2, "head_dim": 32, "result": "ok", "forward_ms": time / 3,
                    "forward_iqr_ms": 0.1, "step_ms": time, "step_iqr_ms": 0.1, "train_ms": time if layers else "",
                    "train_iqr_ms": 0.1 if layers else "", "steps_per_s": 1000 / time, "rounds": 5,
                    "ratio": time / (around + exact["softmax"]), "ratio_eager": time / (around + exact["eager"]),
                    "peak_mb": peak, "memory_ratio": peak / (n / 12), "memory_ratio_eager": peak / eager_peak,
                }  # fmt: skip
                if attn == "eager" and n == LENGTHS[-1]:
                    row |= dict.fromkeys(list(row)[10:], "") | {"result": "out of memory"}
                common = {"first_s": 0.1, "dtype": "float32", "reached": "float32", "operators": "", "kernel": "",
                          "samples_ms": ""}  # fmt: skip
                found.append(row | common | MACHINE | machine)
    return found


def crossover(**machine: Any) -> list[dict[str, Any]]:
    """Each variant is ahead from a length on, one always and one never."""
    found = []
    for of in ("core", "model"):
        for measure in ("time", "memory"):
            for i, (attn, rival) in enumerate(product(VARIANTS, ("best", "eager"))):
                i = i // 2 if rival == "best" else i // 4
                behind = LENGTHS[i % (len(LENGTHS) - 1)]
                ahead = LENGTHS[i % (len(LENGTHS) - 1) + 1]
                row: dict[str, Any] = {
                    "of": of, "attn": attn, "measure": measure, "dtype": "float32", "rule": "32",
                    "rival": rival, "against": "sdpa flash" if rival == "best" else rival,
                    "length": math.sqrt(behind * ahead), "ahead_from": ahead,
                    "behind_at": behind, "ahead_before": "512" if attn == "mra" else "",
                    "longest": LENGTHS[-1], "device": MACHINE["device"], "torch": MACHINE["torch"],
                    "source": MACHINE["source"],
                }  # fmt: skip
                if attn == "linformer" or (measure == "memory" and i % 2):
                    row |= {"length": "", "ahead_from": LENGTHS[0], "behind_at": ""}
                if attn == "scatterbrain":
                    row |= {"length": "", "ahead_from": "", "behind_at": LENGTHS[-1]}
                found.append(row | {key: value for key, value in machine.items() if key in row})
    return found


def machine(folder: Path, attentions: Iterable[str] = VARIANTS) -> Path:
    """A machine's folder with the files of all studies, of some variants."""
    others = VARIANTS.keys() - set(attentions)
    makers = {
        "approximation": approximation(4096),
        "entropy": entropy(4096),
        "efficiency": efficiency(),
        "crossover": crossover(),
    }
    for name, made in makers.items():
        save(folder, name, [row for row in made if row["attn"] not in others])
    return folder
