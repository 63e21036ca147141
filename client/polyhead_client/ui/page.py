"""The page: what stands where, and what a click does. It is built at each visit, from the schema of that moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from polyhead_client.errors import PolyheadClientError, UsageError
from polyhead_client.explain import MOST_TEXTS
from polyhead_client.highlight import escape_text
from polyhead_client.schema import HeadKind, HeadSchema, ModelSchema
from polyhead_client.ui.asking import Side, SideAnswer, TextOrFields, as_sentence, ask
from polyhead_client.ui.cards import error_html, explanation_cards, head_html, summary_html
from polyhead_client.ui.table import Answered, build_columns, table_html
from polyhead_client.ui.texts import KINDS, LIMIT, example_title, read_file, read_lines

MOST_SLIDERS = 20  # heads with a slider of their own; the others stand below these
ALL_HEADS = "all heads"
KEPT_S = 3600  # an uploaded file, and the answer that is shown
CSS = Path(__file__).with_name("style.css")
# What needs no server is answered at once, not through Gradio's queue.
LOCAL: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
CHANGED = "The server has another model now, with other heads or fields. Reload this page."
THEME = gr.themes.Default(  # no font is loaded
    font=["system-ui", "sans-serif"],
    text_size="md",
    font_mono=["ui-monospace", "monospace"],
    primary_hue="blue",
    secondary_hue="blue",
)

Updates = list[Any]


def build_page(sides: Sequence[Side], examples: Sequence[TextOrFields]) -> gr.Blocks:
    """The page for one model, or for two side by side."""
    title = f"Try {sides[0].client.model}"
    page = gr.Blocks(analytics_enabled=False, title=title, fill_width=True, delete_cache=(600, KEPT_S))
    with page:
        asked = " and ".join(side.title for side in sides)
        gr.HTML(f"<h1>{escape_text(title)}</h1><p class='ph-faint'>Asks {escape_text(asked)}.</p>", padding=False)

        @gr.render(triggers=[page.load], concurrency_limit=8)  # type: ignore[untyped-decorator]
        def body() -> None:
            try:
                schemas = [side.client.schema() for side in sides]
            except PolyheadClientError as error:
                gr.HTML(error_html(f"{as_sentence(error)} Reload this page to try again."), padding=False)
                return
            with gr.Tab("One text"):
                OneText(sides, schemas, examples)
            with gr.Tab("Several texts"):
                SeveralTexts(sides, schemas)

    page.queue(default_concurrency_limit=8)
    return page


def _safely(function: Callable[..., Any], failed: Callable[[str], Any], *values: Any) -> Any:
    """Runs it; an error becomes what `failed` makes of its sentence, so the page goes on."""
    try:
        return function(*values)
    except (PolyheadClientError, OSError) as error:
        return failed(as_sentence(error))


class OneText:
    """The part for one text: its fields, the answer of each head, thresholds to move, and reasons."""

    def __init__(self, sides: Sequence[Side], schemas: Sequence[ModelSchema], examples: Sequence[TextOrFields]) -> None:
        self.sides, self.schemas, self.examples = sides, schemas, examples
        self.fields = tuple(dict.fromkeys(name for schema in schemas for name in schema.fields))
        self.heads = list({head.name: head for schema in schemas for head in schema.heads}.values())
        self.titles = [example_title(number, text) for number, text in enumerate(examples, start=1)]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300, scale=2):
                self._build_inputs()
            with gr.Column(min_width=300, scale=3):
                self._build_answers()
        self._connect()

    def _build_inputs(self) -> None:
        if self.titles:
            self.example = gr.Dropdown(
                self.titles,
                value=None,
                interactive=True,
                label="Example",
                elem_id="ph-example",
                info="Texts that the model was checked with (golden rows).",
            )
        self.inputs = [
            gr.Textbox(interactive=True, label=name, lines=2, max_lines=12, elem_id=f"ph-field-{number}")
            for number, name in enumerate(self.fields)
        ] or [
            gr.Textbox(
                interactive=True,
                label="Text",
                lines=5,
                max_lines=20,
                placeholder="Write or paste a text",
                elem_id="ph-field-0",
            )
        ]
        with gr.Row():
            self.classify = gr.Button("Classify", variant="primary", elem_id="ph-classify", min_width=120)
            self.explain = gr.Button("Explain", elem_id="ph-explain", min_width=120)
        self.explained = gr.Dropdown(
            [ALL_HEADS, *(head.name for head in self.heads)],
            value=ALL_HEADS if len(self.heads) <= MOST_SLIDERS else self.heads[0].name,
            interactive=True,
            label="What to explain",
            info=f"Explain leaves words out, one by one, and has the server score up to {MOST_TEXTS} shorter texts.",
        )
        self.reasons = gr.HTML("", padding=False, elem_id="ph-reasons")

    def _build_answers(self) -> None:
        self.answers = gr.State([], time_to_live=KEPT_S)
        self.bounds = gr.State({}, time_to_live=KEPT_S)
        empty = '<p class="ph-faint">The answer of each head appears here.</p>'
        self.summary = gr.HTML(empty, padding=False, elem_id="ph-summary")
        self.cards: list[gr.HTML] = []
        self.sliders: dict[str, gr.Slider] = {}
        self.starts = {head.name: _start(head) for head in self.heads}
        self.groups: list[gr.Column] = []
        for number, head in enumerate(self.heads[:MOST_SLIDERS]):
            with gr.Column(visible=False, elem_classes="ph-group") as group:
                self.cards.append(gr.HTML("", padding=False, elem_id=f"ph-head-{number}"))
                if head.kind != HeadKind.REGRESSION:
                    self.sliders[head.name] = _slider(head, number)
            self.groups.append(group)
        self.rest = gr.HTML("", padding=False)
        self.reset = gr.Button("Thresholds as the model has them", visible=False, size="sm", elem_id="ph-reset")

    def _connect(self) -> None:
        shown = [self.summary, *self.cards, self.rest]
        answered = [*shown, self.reasons, self.answers, self.bounds, *self.sliders.values(), self.reset, *self.groups]
        gr.on(
            [self.classify.click, *(one.submit for one in self.inputs)], self._classify, self.inputs, answered, **QUIET
        )
        gr.on([self.explain.click], self._explain, [self.explained, *self.inputs], [self.reasons], **QUIET)
        if self.titles:
            self.example.input(self._take_example, [self.example], self.inputs, **LOCAL)
        if self.sliders:
            moved = [slider.input for slider in self.sliders.values()]
            values = [self.answers, self.bounds, *self.sliders.values()]
            gr.on(moved, self._move, values, [*shown, self.bounds], trigger_mode="always_last", **LOCAL)
        self.reset.click(self._reset, [self.answers], [*shown, self.bounds, *self.sliders.values()], **LOCAL)

    def _text(self, values: Sequence[str]) -> TextOrFields:
        return dict(zip(self.fields, values, strict=True)) if self.fields else values[0]

    def _classify(self, *values: str) -> Updates:
        text = self._text(values)
        answers = [ask(side, _for_side(text, schema)) for side, schema in zip(self.sides, self.schemas, strict=True)]
        for number, (answer, schema) in enumerate(zip(answers, self.schemas, strict=True)):
            if answer.schema is not None and _shape(answer.schema) != _shape(schema):
                answers[number] = SideAnswer(answer.title, error=CHANGED)
        shown = any(answer.error is None for answer in answers)
        return [
            *self._show(answers, {}),
            "",
            answers,
            {},
            *self._sliders_back(),
            gr.update(visible=shown and bool(self.sliders)),
            *(gr.update(visible=shown) for _ in self.groups),
        ]

    def _show(self, answers: Sequence[SideAnswer], bounds: dict[str, float]) -> Updates:
        cards = [head_html(head.name, answers, bounds) for head in self.heads]
        return [summary_html(answers, bounds), *cards[:MOST_SLIDERS], "".join(cards[MOST_SLIDERS:])]

    def _move(self, answers: list[SideAnswer], bounds: dict[str, float], *values: float) -> Updates:
        """A slider is moved once it has left its place, and stays moved if it comes back."""
        for head, value in zip(self.sliders, values, strict=True):
            if head in bounds or value != self.starts[head]:
                bounds = {**bounds, head: value}
        return [*self._show(answers, bounds), bounds]

    def _sliders_back(self) -> Updates:
        return [gr.update(value=self.starts[head]) for head in self.sliders]

    def _reset(self, answers: list[SideAnswer]) -> Updates:
        return [*self._show(answers, {}), {}, *self._sliders_back()]

    def _take_example(self, title: str | None) -> Any:
        if title not in self.titles:
            return [gr.update() for _ in self.inputs] if len(self.inputs) > 1 else gr.update()
        text = self.examples[self.titles.index(title)]
        if not self.fields:
            return text if isinstance(text, str) else " ".join(text.values())
        values = {self.fields[0]: text} if isinstance(text, str) else text
        found = [values.get(name, "") for name in self.fields]
        return found if len(found) > 1 else found[0]

    def _explain(self, head: str, *values: str) -> str:
        text = self._text(values)
        wanted = None if head == ALL_HEADS else head
        return "".join(
            _safely(partial(_explanation, side, _for_side(text, schema), wanted), error_html)
            for side, schema in zip(self.sides, self.schemas, strict=True)
        )


def _explanation(side: Side, text: TextOrFields, head: str | None) -> str:
    return explanation_cards(f"Why: {side.title}", side.client.explain(text, head))


def _for_side(text: TextOrFields, schema: ModelSchema) -> TextOrFields:
    """The text as this model takes it: only its own fields, or all values in one text if it has none."""
    if isinstance(text, str):
        return text
    if schema.fields:
        return {name: value for name, value in text.items() if name in schema.fields}
    return "\n".join(value for value in text.values() if value)


def _shape(schema: ModelSchema) -> object:
    """What the page is built from; thresholds may change."""
    return schema.fields, [(head.name, head.kind) for head in schema.heads]


def _start(head: HeadSchema) -> float:
    """Where the head's slider stands before somebody moves it."""
    if head.kind == HeadKind.SINGLE_LABEL:
        return head.reject_below or 0.0
    thresholds = sorted(head.thresholds or (0.5,))
    return round(thresholds[len(thresholds) // 2], 3)


def _slider(head: HeadSchema, number: int) -> gr.Slider:
    if head.kind == HeadKind.SINGLE_LABEL:
        what = "score" if head.reject_by == "score" else "certainty"
        label = f"What if: no label below this {what}"
        own = (
            "The model itself rejects nothing."
            if head.reject_below is None
            else f"The model has {head.reject_below:.3g}."
        )
    else:
        label = "What if: one threshold for all labels"
        low, high = min(head.thresholds or (0.5,)), max(head.thresholds or (0.5,))
        own = f"The model has {low:.3g}." if low == high else f"The model has one per label, {low:.3g} to {high:.3g}."
    return gr.Slider(
        0,
        1,
        _start(head),
        interactive=True,
        step=0.005,
        label=label,
        info=own,
        elem_id=f"ph-slider-{number}",
        buttons=[],
    )


class SeveralTexts:
    """The part for pasted lines or a file, with a table to save."""

    def __init__(self, sides: Sequence[Side], schemas: Sequence[ModelSchema]) -> None:
        self.sides, self.fields = sides, tuple(dict.fromkeys(name for one in schemas for name in one.fields))
        gr.HTML(f'<p class="ph-faint">One text per line, or a file: {escape_text(LIMIT)}.</p>', padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                pasted = gr.Textbox(
                    interactive=True, label="Texts, one per line", lines=6, max_lines=20, elem_id="ph-lines"
                )
            with gr.Column(min_width=300):
                file = gr.File(
                    interactive=True,
                    label=f"or a file ({', '.join(KINDS)}; UTF-8)",
                    file_types=list(KINDS),
                    elem_id="ph-file",
                    height=140,
                )
                column = gr.Textbox(
                    "text", interactive=True, label="Column with the texts", elem_id="ph-column",
                    info="For CSV, TSV and JSON lines. " + (
                        f"Not needed if the file has the model's fields ({', '.join(self.fields)})."
                        if self.fields else "Not needed if the file has one column."
                    ),
                )  # fmt: skip
        run = gr.Button("Classify all", variant="primary", elem_id="ph-classify-all")
        table = gr.HTML("", padding=False, elem_id="ph-table")
        run.click(self._answer, [pasted, file, column], [table], **QUIET)

    def _answer(self, pasted: str, file: str | None, column: str) -> str:
        found: str = _safely(self._table, error_html, pasted, file, column)
        return found

    def _table(self, pasted: str, file: str | None, column: str) -> str:
        if file is not None and pasted.strip():
            raise UsageError("there are pasted texts and a file: remove one of them")
        texts = read_lines(pasted) if file is None else read_file(Path(file), self.fields, column)
        models = []
        for side in self.sides:
            schema = side.client.schema()
            rows = [_for_side(text, schema) for text in texts]
            models.append(Answered(schema, list(side.client.stream(rows))))
        return table_html(build_columns(texts, models))
