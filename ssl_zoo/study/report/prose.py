"""What a report says below its table."""

from ssl_zoo.study import costs
from ssl_zoo.study.grid import title
from ssl_zoo.study.report import standing, verdicts
from ssl_zoo.study.report.results import Table
from ssl_zoo.study.report.verdicts import Section


def below_table(table: Table) -> list[Section]:
    """Beside which kept study the runs stand, verdicts, and what a step costs."""
    return [*filter(None, [standing.section(table)]), *verdicts.in_words(table), *_costs(table)]


def _costs(table: Table) -> list[Section]:
    if not table.costs:
        return []
    lines = [
        f"{title(cost.point)}: {cost.ms:.1f} ms, {cost.peak_memory_gb:.2f} GB"
        for cost in table.costs
    ]
    for arm, at in costs.extrapolated(table.costs).items():
        meets = f"{costs.LIMIT_GB:g} GB at {table.study.x} {at:,.0f}"
        lines.append(f"{arm} would meet {meets}: extrapolated, by its two largest points")
    threads = ", ".join(sorted({str(cost.threads) for cost in table.costs}))
    note = "the median of a run's first steps, with the making of their batches, by a process that"
    note += f" has the machine to itself; threads: {threads}; peak memory of training alone"
    return [Section("What a step costs", lines, note)]
