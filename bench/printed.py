"""The figures of a run as a table for people. What did not happen has no row, except errors: that there were none is
worth saying."""

from __future__ import annotations

from bench.figures import Report

_MIB = 1 << 20


def _milliseconds(figures: dict[str, float]) -> str:
    return "   ".join(f"{name} {value / 1e3:.2f} ms" for name, value in figures.items()) or "-"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _ms(value_us: float | None) -> str:
    return "-" if value_us is None else f"{value_us / 1e3:,.2f}"


def _process_lines(report: Report) -> list[str]:
    if not report.processes:
        return []
    wide = max(24, *(len(row.label) + len(row.state) + 3 for row in report.processes))
    lines = ["", f"{'process':<{wide}} {'pid':>8} {'µs CPU/enrolment':>17} {'CPU s':>8} {'RSS MiB':>8} {'peak MiB':>9}"]
    for row in report.processes:
        label = f"{row.label} ({row.state})" if row.state else row.label
        lines.append(
            f"{label:<{wide}} {row.pid:>8} {_us(row.cpu_us_per_enrolment):>17} {row.cpu_seconds:>8.2f}"
            f" {row.rss_bytes / _MIB:>8.1f} {row.peak_rss_bytes / _MIB:>9.1f}"
        )
    total_seconds = sum(row.cpu_seconds for row in report.processes)
    total = _us(report.server_cpu_us_per_enrolment)
    return [*lines, f"{'server in all':<{wide}} {'':>8} {total:>17} {total_seconds:>8.2f}"]


def _step_lines(report: Report) -> list[str]:
    if not report.steps:
        return []
    lines = [
        "",
        f"{'offered/s':>10} {'good/s':>10} {'p50 ms':>9} {'p99 ms':>9} {'shed':>8} {'errors':>8} {'µs CPU':>8}  goals",
    ]
    for row in report.steps:
        verdict = "held" if row.held else "missed"
        lines.append(
            f"{row.rate_per_second:>10,.0f} {row.good_per_second:>10,.0f} {_ms(row.p50_us):>9} {_ms(row.p99_us):>9}"
            f" {row.shed:>8,} {row.errors:>8,} {_us(row.server_cpu_us_per_enrolment):>8}  {verdict}"
        )
    best = max((row.rate_per_second for row in report.steps if row.held), default=None)
    return [*lines, "no rate held the goals" if best is None else f"the highest rate that held: {best:,.0f}/s"]


def _mix_lines(report: Report) -> list[str]:
    if not report.mix:
        return []
    wide = max(map(len, report.mix))
    lines = ["", f"{'request':<{wide}} {'sent':>8} {'expected':>9} {'shed':>8} {'unexpected':>11} {'p99 ms':>9}"]
    lines += [
        f"{name:<{wide}} {row.sent:>8,} {row.expected:>9,} {row.shed:>8,} {row.unexpected:>11,} {_ms(row.p99_us):>9}"
        for name, row in report.mix.items()
    ]
    return lines


def _generator_line(report: Report) -> str:
    line = (
        f"generator    {_us(report.generator_cpu_us_per_enrolment)} µs CPU/enrolment, the busiest used"
        f" {report.generator_share:.0%} of a core"
    )
    return f"{line}: IT WAS A LIMIT ITSELF, more --generators tell more" if report.generator_was_limit else line


def as_table(report: Report) -> str:
    """All that `--json` has, but for what only makes pictures."""
    name = f"{report.scenario}: " if report.scenario else ""
    lines = [f"{name}{report.what}"]
    if report.capacity is not None:
        lines.append(f"capacity     {report.capacity.rate_per_second:,.1f}/s in a closed loop")
    lines += [
        f"enrolments   {report.enrolments:,} in {report.seconds:.2f} s = {report.rate_per_second:,.1f}/s",
        f"latency      {_milliseconds(report.latency_us)}",
    ]
    if report.late_us:
        lines.append(f"sent late    {_milliseconds(report.late_us)}  (the generator's own fault, within the latency)")
    if report.shed:
        lines.append(f"shed         {report.shed:,}")
    tolerated = "  (within the goal)" if report.errors and report.errors_tolerated else ""
    lines.append(f"errors       {sum(report.errors.values()):,}{tolerated}")
    for failure, count in report.errors.items():
        example = report.examples.get(failure, "")
        lines.append(f"  {failure:<20} {count:>8,}   {example.splitlines()[0] if example else ''}".rstrip())
    if report.events:
        lines.append("events       " + ", ".join(f"{count:,} {event}" for event, count in report.events.items()))
    lines.append(f"verified     {report.verified:,} certificates have the key of their CSR")
    lines.append(_generator_line(report))
    lines.append(
        f"machine      {report.machine_idle_percent:.0f} % idle, {report.machine_steal_percent:.1f} % stolen by others"
    )
    lines += _process_lines(report) + _mix_lines(report) + _step_lines(report)
    lines += [f"MISSED       {missed}" for missed in report.missed]
    return "\n".join(lines)
