"""One self-contained HTML file: the table, the plot, a tri-planar comparison per exam, what was skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.tables import Row, summary_cells
from deepatlas.files import write_text
from deepatlas.pictures.figures import data_uri


@dataclass
class ExamFigure:
    """An exam of the report: its rows of metrics and the bytes of its picture (PNG)."""

    exam: str
    rows: list[Row]
    png: bytes | None = None
    note: str = ""


@dataclass
class Report:
    title: str
    summary: dict
    exams: list[ExamFigure] = field(default_factory=list)
    plot: bytes | None = None


STYLE = """ :root { color-scheme: light dark; --line: #8884; --soft: #888; }
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
 h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
 .soft { color: var(--soft); font-size: .9rem }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
 th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
 th:first-child, td:first-child { text-align: left } tr.total td { font-weight: 600 }
 .headline { display: flex; gap: 2.5rem; flex-wrap: wrap; margin: 1rem 0 }
 .headline b { display: block; font-size: 1.9rem; line-height: 1.1 }
 img { max-width: 100%; height: auto; border-radius: 6px; background: #101014 }
 details { margin: .5rem 0 } .wide { overflow-x: auto }
 nav a { margin-right: .8rem }"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style|safe }}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<div class="soft">{{ summary.created }} · deepatlas {{ summary.versions.deepatlas }} · model {{
summary.model }}
 · data {{ summary.data }}</div>
<div class="headline">
 <div><b>{{ number(o.dice_mean_of_structures, 3) }}</b>Dice, mean over {{ o.structures }} structures</div>
 <div><b>{{ number(o.dice_mean_of_rows, 3) }}</b>Dice, mean over {{ o.rows }} rows</div>
 <div><b>{{ number(o.hd95_mm_mean_of_structures, 1) }} mm</b>HD95, mean over structures</div>
 <div><b>{{ o.exams }}</b>exams · {{ number(summary.seconds.mean, 1) }} s each</div>
</div>
<div class="wide"><table>
<tr>{% for h in header %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in cells %}<tr{% if loop.index > cells|length - 2 %} class="total"{% endif %}>
{%- for c in row %}<td>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<div class="soft">HD95: {{ summary.conventions.hd95 }}. Surface: {{ summary.conventions.surface }}.
 {{ summary.conventions.rows }}.</div>
{% if plot %}<p><img src="{{ plot }}" alt="Dice of every exam by structure"></p>{% endif %}
{% if summary.skipped or summary.unlabelled %}
<h2>Not evaluated</h2>
{% if summary.skipped %}<ul>{% for id, why in summary.skipped.items() %}<li><b>{{ id }}</b>: {{ why
}}</li>{% endfor %}</ul>{% endif %} {% if summary.unlabelled %}<p>No reference drawn: {{
summary.unlabelled|join(", ") }}.</p>{% endif %} {% endif %} <h2>Exams</h2> <nav>{% for e in exams %}<a
href="#e{{ loop.index }}">{{ e.exam }}</a>{% endfor %}</nav> {% for e in exams %} <h2 id="e{{ loop.index
}}">{{ e.exam }}</h2> {% if e.note %}<div class="soft">{{ e.note }}</div>{% endif %} {% if e.png %}<img
src="{{ e.png }}" alt="{{ e.exam }}: exam, warped atlas, prediction and reference in three planes"
 loading="lazy">{% endif %}
<details><summary>metrics</summary><div class="wide"><table>
<tr><th>structure</th><th>Dice</th><th>HD95 mm</th><th>predicted ml</th><th>reference ml</th></tr>
{% for r in e.rows %}<tr><td>{{ r.structure }}</td><td>{{ number(r.dice, 3) }}</td><td>{{ number(r.hd95_mm,
2) }}</td> <td>{{ number(r.predicted_ml, 2) }}</td><td>{{ number(r.reference_ml, 2) }}</td></tr>{% endfor %}
</table></div></details> {% endfor %} </body> </html>
"""


def _number(value: float | None, digits: int) -> str:
    if value is None or value != value:
        return "–"
    return "∞ (missed)" if value == float("inf") else f"{value:.{digits}f}"


def write_report(path: str | Path, report: Report) -> None:
    """Write the report; it needs no other file and no network. DeepAtlasError without jinja2."""
    try:
        import jinja2
    except ImportError as error:
        raise DeepAtlasError("the HTML report needs jinja2; pip install jinja2") from error
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE)
    header, cells = summary_cells(report.summary)
    exams = [
        {"exam": e.exam, "rows": e.rows, "note": e.note, "png": data_uri(e.png) if e.png else None}
        for e in report.exams
    ]
    text = page.render(
        title=report.title, summary=report.summary, o=report.summary["overall"], header=header, cells=cells,
        exams=exams, plot=data_uri(report.plot) if report.plot else None, number=_number, style=STYLE,
    )  # fmt: skip
    write_text(path, text)
