"""The comparison of runs in W&B's browser, as code: a workspace and a report over what the tracker writes.

W&B draws means over seeds with their standard deviation, and nothing that it has not been sent: the intervals of the
tables, the published numbers and the 10% rule are those of `make compare`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import PanelTypes

from lra.published import SOURCES

# Runs that may be averaged have one `cell`: protocol, task, attention, what deviates from the recipe, the data's hash.
CELL = reports.Config("cell")
TITLE = "Long Range Arena: attentions compared"
INTRODUCTION = (
    "A bar and a line are the mean over the seeds of one cell: protocol, task, attention, deviations from the recipe, "
    "hash of the data. Error bars are one standard deviation over seeds, shaded areas reach from the smallest seed to "
    "the largest. W&B has no 95% interval over seeds, and none for a single seed: `make compare` prints both, beside "
    "the published numbers."
)
COLUMNS = [
    "summary:status",
    "summary:test/accuracy",
    "summary:val/best_accuracy",
    "summary:speed/tokens_per_s",
    "summary:memory/peak_mb",
    "summary:model/params",
    "config:attn.value",
    "config:seed.value",
    "config:kernel.value",
]
# Runs and bars of a panel: enough for every attention, task and a few seeds.
MOST = 500


def workspace(project: str, entity: str = "") -> workspaces.Workspace:
    """All runs of a project, grouped by protocol, task and cell."""
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            section("Accuracy", [*accuracies()]),
            section("Accuracy against speed and memory", [*trades()]),
            section("Learning curves", [*curves()]),
            section("Cost", [*costs()]),
            section("Failures", [failures()]),
            section("What differs between runs", [reports.RunComparer(diff_only=True)]),
        ],
        settings=workspaces.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            groupby=[expr.Config("protocol"), expr.Config("task"), expr.Config("cell")],
            order=[expr.Ordering(expr.Summary("test/accuracy"), ascending=False)],
            pinned_columns=COLUMNS,
        ),
    )
    view._internal_runset_id = pinned("workspace")
    for part in view.sections:
        pin(part.panels, f"workspace {part.name}")
    return view


def report(project: str, entity: str = "", tasks: Iterable[str] = tuple(SOURCES)) -> reports.Report:
    """The same, task by task, for people who read; runs on toy data are left out."""
    blocks: list[Any] = [reports.P(INTRODUCTION), reports.TableOfContents()]
    for task in tasks:
        real = [expr.Config("task") == task, expr.Config("source") != "synthetic"]
        blocks += [reports.H1(task), grid(task, real, project, entity, [*accuracies(), *trades(), *curves(), *costs()])]
    failed = [expr.Summary("run/failed") == 1]
    blocks += [
        reports.H1("Failures"),
        reports.P("Runs that diverged or found no memory. A run that was killed has no summary and is not counted."),
        grid("failures", failed, project, entity, [failures(), reports.RunComparer(diff_only=True)]),
    ]
    return reports.Report(project=project, entity=entity, title=TITLE, blocks=blocks, width="fluid")


def specification(view: workspaces.Workspace | reports.Report) -> dict[str, Any]:
    """What W&B is sent, as JSON; of a report that has an entity, W&B is asked for the project's id first."""
    spec: dict[str, Any] = view._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def accuracies() -> Iterable[PanelTypes]:
    yield bars("Test accuracy", "test/accuracy")
    yield bars("Best validation accuracy", "val/best_accuracy")


def trades() -> Iterable[PanelTypes]:
    yield points("Test accuracy against tokens per second", "speed/tokens_per_s")
    yield points("Test accuracy against peak memory (MiB)", "memory/peak_mb")


def curves() -> Iterable[PanelTypes]:
    yield lines("Validation accuracy", "val/accuracy")
    yield lines("Validation loss (nats)", "val/loss")
    yield lines("Training loss (nats)", "train/loss")


def costs() -> Iterable[PanelTypes]:
    yield bars("Tokens per second", "speed/tokens_per_s")
    yield bars("Peak memory (MiB)", "memory/peak_mb")
    yield bars("Parameters", "model/params")


def failures() -> PanelTypes:
    return reports.BarPlot(
        title="Runs that diverged or found no memory",
        metrics=["run/failed"],
        groupby=CELL,
        groupby_aggfunc="sum",
        max_runs_to_show=MOST,
        max_bars_to_show=MOST,
    )


def bars(title: str, metric: str) -> PanelTypes:
    """A bar for each cell: the mean over its seeds, and one standard deviation."""
    return reports.BarPlot(
        title=title,
        metrics=[metric],
        groupby=CELL,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=MOST,
        max_bars_to_show=MOST,
    )


def points(title: str, metric: str) -> PanelTypes:
    """A point for each run, the metric on a logarithmic axis."""
    accuracy = reports.SummaryMetric("test/accuracy")
    return reports.ScatterPlot(title=title, x=reports.SummaryMetric(metric), y=accuracy, log_x=True)


def lines(title: str, metric: str) -> PanelTypes:
    """A line for each cell: the mean over its seeds, between the smallest and the largest."""
    return reports.LinePlot(
        title=title,
        x="step",
        y=[metric],
        groupby=CELL,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=MOST,
    )


def section(name: str, panels: Sequence[PanelTypes]) -> workspaces.Section:
    return workspaces.Section(name=name, panels=list(panels), is_open=True)


def grid(
    name: str, filters: Sequence[Any], project: str, entity: str, panels: Sequence[PanelTypes]
) -> reports.PanelGrid:
    """Panels over the runs that pass all filters."""
    runs = reports.Runset(
        entity=entity, project=project, name=name, filters=list(filters), groupby=["config.protocol", "config.cell"]
    )
    made = reports.PanelGrid(runsets=[runs], panels=list(panels))
    pin([runs, *made.panels], f"report {name}")
    return made


def pin(parts: Iterable[Any], place: str) -> None:
    for number, part in enumerate(parts):
        part._id = pinned(f"{place} {number}")


def pinned(place: str) -> str:
    """The id of what stands in a place; the library draws random ones, and no two specifications would be equal."""
    return hashlib.sha256(place.encode()).hexdigest()[:11]
