"""The papers of a run: claims beside what was measured, and the papers' central figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.claims import Results, load_paper, number, paper_names, reference
from jobs.report.plots import Plot, inline_figure


@dataclass(frozen=True)
class PaperSection:
    """What the page shows of a paper at one scale.

    Args:
        title: of the paper.
        source: authors, venue, arXiv number.
        scale: "small" or "paper".
        claims: rows of the table `claims`, with `reference_text` and `measured_text`.
        figures: each with its caption.
        note: what a reader must know; may be empty.
    """

    title: str
    source: str
    scale: str
    claims: list[dict[str, Any]]
    figures: list[tuple[Plot, str]]
    note: str = ""

    @property
    def holding(self) -> int:
        """How many claims hold."""
        return sum(bool(claim["holds"]) for claim in self.claims)


def of_papers(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Say for each trial whether it is a cell of a paper: its dataset is called PAPER/EXPERIMENT."""
    papers = pc.list_element(pc.split_pattern(table["dataset"], "/", max_splits=1), 0)
    return pc.and_(pc.match_substring(table["dataset"], "/"), pc.is_in(papers, pa.array(paper_names(), pa.string())))


def paper_sections(claims: pa.Table, trials: pa.Table, metrics: pa.Table) -> list[PaperSection]:
    """Collect a run's papers; of several rows for a claim the latest counts."""
    latest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in claims.sort_by([("measured_at", "ascending")]).to_pylist():
        latest.pop(key := (row["paper"], row["scale"], row["claim"]), None)
        latest[key] = row
    sections = []
    for name, scale in dict.fromkeys((paper, scale) for paper, scale, _ in latest):
        if name not in paper_names():
            continue
        paper = load_paper(name)
        results = Results(trials, metrics, paper.plan(scale))
        rows = [row for (p, s, _), row in latest.items() if (p, s) == (name, scale)]
        for row in rows:
            row["reference_text"] = reference(row["reference"], row["tolerance"], row["relation"])
            row["measured_text"] = number(row["measured"])
        figures = inline_figure(lambda paper=paper, results=results: paper.figures(results))  # type: ignore[misc]
        sections.append(PaperSection(paper.TITLE, paper.SOURCE, scale, rows, figures, getattr(paper, "NOTE", "")))
    return sections
