"""What the page shows of an answer, as HTML: facts, paths, one card per head with its bars. No text becomes markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polyhead_client.explanation import Explanation, Reason
from polyhead_client.highlight import blocks_html, escape_text, notes_html
from polyhead_client.schema import HeadKind, HeadSchema
from polyhead_client.ui.asking import SideAnswer, capitalized, tolerance_of
from polyhead_client.ui.decided import Bar, Bounds, DecidedHead, difference, in_words, paths

OPEN_BARS = 8  # the bars that are not folded away
MOST_BARS = 200  # of one head
SPREADS = 3  # a regression's scale goes so many spreads below and above the center of its training values
SHOWN_WORDS = 5
ROUNDED = 1e-6  # smaller effects are none
KIND_TITLES = {
    HeadKind.SINGLE_LABEL: "one label",
    HeadKind.MULTI_LABEL: "any number of labels",
    HeadKind.REGRESSION: "a number",
}

Decided = Mapping[str, DecidedHead]


def error_html(sentence: str) -> str:
    """An error, which a screen reader says at once."""
    return f'<p class="ph-error" role="alert">{escape_text(sentence)}</p>'


def summary_html(answers: Sequence[SideAnswer], bounds: Bounds) -> str:
    """Per side: time, tokens and what was cut off; the paths; and what differs between the sides."""
    decided = [answer.decided(bounds) for answer in answers]
    sides = "".join(_side_html(answer, heads) for answer, heads in zip(answers, decided, strict=True))
    asked = max((answer.asked_ns for answer in answers), default=0)  # a screen reader then says also an equal answer
    html = f'<div class="ph-sides" role="status" data-asked="{asked}">{sides}</div>'
    return f"{html}{_differences_html(answers, decided)}{_legend_html(decided)}"


def _side_html(answer: SideAnswer, decided: Decided) -> str:
    title = f"<h3>{escape_text(answer.title)}</h3>"
    if answer.error is not None or answer.schema is None or answer.prediction is None:
        return f"<div>{title}{error_html(answer.error or '')}</div>"
    tokens, most = answer.prediction.token_count, answer.schema.max_length
    read = f"The model read <b>{tokens:,}</b> {'token' if tokens == 1 else 'tokens'}; it reads at most {most:,}."
    if answer.prediction.truncated:
        read += (
            ' <span class="ph-warning">The text is longer: its end was cut off and counts for nothing.</span> '
            "<b>Explain</b> shows which words were not read."
        )
    time = f"Answered in <b>{answer.latency_ms:.0f} ms</b>, measured here, with the way to the server and back."
    html = f'<div>{title}<p class="ph-line">{time} {read}</p>'
    for path in paths(answer.schema, decided):
        steps = '<span aria-hidden="true"> › </span>'.join(
            f'<span title="{escape_text(head)}">{"no label" if label is None else escape_text(label)}</span>'
            for head, label in path
        )
        html += f'<p class="ph-path"><span class="ph-faint">Path</span> {steps}</p>'
    return f"{html}</div>"


def _differences_html(answers: Sequence[SideAnswer], decided: Sequence[Decided]) -> str:
    if len(answers) < 2 or not all(decided):
        return ""
    tolerance = tolerance_of([answer.schema for answer in answers])
    names = dict.fromkeys(name for heads in decided for name in heads)
    found = {name: difference(decided[0].get(name), decided[1].get(name), tolerance) for name in names}
    rows = "".join(
        f"<li><b>{escape_text(name)}</b>: {escape_text(said)}</li>" for name, said in found.items() if said is not None
    )
    if not rows:
        return '<p class="ph-same">Both answer the same.</p>'
    count = sum(said is not None for said in found.values())
    said = f"<b>{count} of {len(found)} heads answer differently</b> (first → second)"
    return f'<div class="ph-differs">{said}<ul>{rows}</ul></div>'


def _legend_html(decided: Sequence[Decided]) -> str:
    kinds = {head.head.kind for heads in decided for head in heads.values()}
    if not kinds:
        return ""
    said = []
    if kinds != {HeadKind.REGRESSION}:
        said.append("Bars are scores from 0 to 1; ✓ and a full colour mark the answer.")
    if HeadKind.MULTI_LABEL in kinds:
        said.append("A line in a bar is the label's threshold: from there on the label is part of the answer.")
    return f'<p class="ph-faint">{" ".join(said)}</p>'


def head_html(name: str, answers: Sequence[SideAnswer], bounds: Bounds) -> str:
    """The card of a head, with one part per side that has it."""
    decided = [answer.decided(bounds).get(name) for answer in answers]
    first = next((head for head in decided if head is not None), None)
    if first is None:
        return ""
    head = first.head
    kind = KIND_TITLES[head.kind] + (f", below {escape_text(head.parent)}" if head.parent is not None else "")
    title = f'{escape_text(name)} <span class="ph-faint">{kind}</span>'
    tolerance = tolerance_of([answer.schema for answer in answers])
    if len(answers) > 1 and all(decided) and difference(decided[0], decided[1], tolerance) is not None:
        title += ' <span class="ph-badge">differs</span>'
    html = f"<h3>{title}</h3>"
    parts = ""
    for answer, one in zip(answers, decided, strict=True):
        title = f'<p class="ph-faint">{escape_text(answer.title)}</p>' if len(answers) > 1 else ""
        parts += f"<div>{title}{_answer_html(one) if one is not None else '<p>—</p>'}</div>"
    shape = "ph-sides ph-pair" if len(answers) > 1 else "ph-sides"
    return f'<section class="ph-head">{html}<div class="{shape}">{parts}</div></section>'


def _answer_html(decided: DecidedHead) -> str:
    said = f'<p class="ph-answer">{escape_text(in_words(decided))}</p>{_why_html(decided)}'
    if decided.value is not None:
        return said + _scale_html(decided.head, decided.value)
    bars = [_bar_html(bar) for bar in decided.bars[:MOST_BARS]]
    shown = max(OPEN_BARS, sum(bar.chosen for bar in decided.bars[:MOST_BARS]) if len(bars) <= 4 * OPEN_BARS else 0)
    html = f'{said}<ol class="ph-bars">{"".join(bars[:shown])}</ol>'
    if rest := bars[shown:]:
        left_out = len(decided.bars) - len(bars)
        more = f"{len(rest)} more labels" + (f"; {left_out:,} with lower scores are left out" if left_out else "")
        html += f'<details><summary>{more}</summary><ol class="ph-bars">{"".join(rest)}</ol></details>'
    return html


def _why_html(decided: DecidedHead) -> str:
    """Why there is no label, and what bound holds."""
    said = ""
    own = "" if decided.moved else ", the model's own bound"
    if decided.above is not None:
        said = f"Rejected, because {decided.above} has no label. The best label would be {decided.best}."
    elif decided.rejected and decided.confidence is not None and decided.bound is not None:
        what = "score" if decided.head.reject_by == "score" else "certainty"
        said = (
            f"Rejected: the best label is {decided.best}, and its {what} {decided.confidence:.3g} is below "
            f"{decided.bound:.3g}{own}."
        )
    elif decided.head.kind == HeadKind.MULTI_LABEL and not decided.labels:
        said = "No score reaches its threshold."
    elif decided.bound and decided.confidence is not None and decided.head.reject_by != "score":
        said = f"Certainty {decided.confidence:.3g}; below {decided.bound:.3g} the answer would be no label."
    return f'<p class="ph-line">{escape_text(said)}</p>' if said else ""


def _bar_html(bar: Bar) -> str:
    mark = (
        "" if bar.threshold is None else f'<span class="ph-mark" style="left:{100 * _part(bar.threshold):.1f}%"></span>'
    )
    spoken = "" if bar.threshold is None else f'<span class="ph-hidden">, threshold {bar.threshold:.3g}</span>'
    tick = '<span aria-hidden="true">✓ </span><span class="ph-hidden">answered: </span>' if bar.chosen else ""
    return (
        f'<li class="{"ph-chosen" if bar.chosen else ""}"><bdi class="ph-label">{tick}{escape_text(bar.label)}</bdi>'
        f'<span class="ph-track"><span class="ph-fill" style="width:{100 * _part(bar.score):.1f}%"></span>{mark}</span>'
        f'<span class="ph-score">{_score(bar.score)}{spoken}</span></li>'
    )


def _part(score: float) -> float:
    return min(max(score, 0.0), 1.0)


def _score(score: float) -> str:
    """Three decimals; a score that is not 0 or 1 is not shown as 0 or 1."""
    if 0 < score < 0.001:
        return "&lt;0.001"
    return "&gt;0.999" if 0.999 < score < 1 else f"{score:.3f}"


def _scale_html(head: HeadSchema, value: float) -> str:
    """Where the number is among those that the head was trained on."""
    if head.target_scale is None or head.target_scale[1] <= 0:
        return ""
    center, spread = head.target_scale
    place = _part(0.5 + (value - center) / (2 * SPREADS * spread))
    low, high = center - spread, center + spread
    band = f"left:{100 * (0.5 - 0.5 / SPREADS):.1f}%;width:{100 / SPREADS:.1f}%"
    return (
        f'<div class="ph-track ph-scale"><span class="ph-band" style="{band}"></span>'
        f'<span class="ph-point" style="left:{100 * place:.1f}%"></span></div>'
        f'<p class="ph-faint">The grey part is {low:.3g} to {high:.3g}, where most of its training values were '
        f"(mean {center:.3g}).</p>"
    )


def explanation_cards(title: str, explanation: Explanation) -> str:
    """Per reason, the text with its words marked and the strongest words in sentences. A head's first is unfolded."""
    html, heads = "", set()
    for reason in explanation:
        html += _reason_html(reason, is_open=reason.head not in heads)
        heads.add(reason.head)
    notes = notes_html(explanation.notes())
    return f'<section class="ph-head ph-why"><h3>{escape_text(title)}</h3>{notes}{html}</section>'


def _reason_html(reason: Reason, is_open: bool) -> str:
    words = [word for word in reason.strongest(SHOWN_WORDS) if word.strength > ROUNDED]
    rows = "".join(f"<li>{escape_text(capitalized(word.sentence))}.</li>" for word in words)
    listed = f'<ul class="ph-words">{rows}</ul>' if rows else '<p class="ph-line">No single word moves the score.</p>'
    title = f"<summary><bdi>{escape_text(reason.title)}</bdi></summary>"
    state = " open" if is_open else ""
    return f'<details class="ph-reason"{state}>{title}{blocks_html(reason.blocks())}{listed}</details>'
