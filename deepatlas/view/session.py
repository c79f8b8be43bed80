"""What the server of the page answers from: a model, the exams that were given, and what the user marked."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.errors import DataError
from deepatlas.version import __version__
from deepatlas.view.gallery import Gallery
from deepatlas.view.heard import heard
from deepatlas.view.marks import Mark, Marks

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.estimate import ExamTrust
    from deepatlas.view.shown import Mapped, ShownAtlas, ShownExam
    from deepatlas.view.structures import OwnStructures

# The exams whose parts are kept; each takes some tens of megabytes.
KEPT = 12
# The most exams at the first look.
OPEN_AT_FIRST = 3
ATLAS = "atlas"

Loaded = tuple["Model", "Template | None"]


class Session:
    """The model is loaded in a thread of its own, so that the page can be shown meanwhile."""

    def __init__(
        self,
        gallery: Gallery,
        load: Callable[[], Loaded],
        *,
        title: str,
        opened: Sequence[str] = (),
        marks: Path | None = None,
        threshold: float | None = None,
    ) -> None:
        """Begin, and load the model.

        Args:
            gallery: the exams that the page may show.
            load: loads the model and the template, if there is one.
            title: what the page calls the model.
            opened: the ids of the exams that are shown at first; empty takes the first few.
            marks: a file that keeps what is marked.
            threshold: the mask value that counts for all structures of the template; None takes its own.

        Raises:
            DataError: the file of marks cannot be read.
        """
        self.gallery, self.title, self.threshold = gallery, title, threshold
        self.opened = list(opened) or [exam.id for exam in gallery][:OPEN_AT_FIRST]
        # An exam that is called as the atlas is keeps another name in files.
        named = {exam.id: exam.name if exam.name != ATLAS else f"{ATLAS} (exam)" for exam in gallery}
        self._names = {ATLAS: ATLAS} | named
        self.marks = Marks(marks, self._names)
        self._exams: OrderedDict[str, ShownExam] = OrderedDict()
        self._lock = threading.RLock()
        # Held while the network or the solver of templates works, both of which use all cores.
        self._working = threading.Lock()
        self._atlas: ShownAtlas | None = None
        self._templates: dict[tuple[str, int], Template] = {}
        self._loaded: Future[Loaded] = Future()
        self._loader = threading.Thread(target=self._load, args=(load,), daemon=True)
        self._loader.start()

    def _load(self, load: Callable[[], Loaded]) -> None:
        try:
            self._loaded.set_result(load())
        except BaseException as error:
            self._loaded.set_exception(error)

    def failure(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the model is loaded, and return why it could not be."""
        return self._loaded.exception(timeout)

    @property
    def model(self) -> Model:
        return self._loaded.result()[0]

    @property
    def template(self) -> Template | None:
        return self._loaded.result()[1]

    # -- what the page reads -------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """The exams, before any model is loaded."""
        return {
            "title": self.title,
            "version": __version__,
            "exams": [{"id": exam.id, "name": exam.name} for exam in self.gallery],
            "open": self.opened,
            "skipped": self.gallery.skipped,
        }

    def about_model(self) -> dict[str, Any]:
        """The model and the structures of the template."""
        from deepatlas.pictures.draw import colour
        from deepatlas.space.constants import HU_RANGE

        model, template = self.model, self.template
        structures = [] if template is None else list(template.labels.items())
        return {
            "fingerprint": model.fingerprint,
            "intensity": model.intensity,
            "window": HU_RANGE,
            "refine": model.refine,
            "structures": [{"id": i, "name": name, "colour": colour(i)} for name, i in structures],
            # Whether trust can be told; it takes a few more passes for each exam.
            "calibrated": template is not None and _calibrated(template),
            "colours": [colour(i) for i in range(1, 31)],
        }

    def shown(self, identity: str) -> ShownExam | ShownAtlas:
        """An exam by its id, or the atlas.

        Raises :class:`KeyError` for an id that was not given out.
        """
        from deepatlas.view.shown import ShownAtlas, ShownExam

        if identity == ATLAS:
            model = self.model
            with self._lock:
                self._atlas = self._atlas or ShownAtlas(model)
                return self._atlas
        given = self.gallery.exams[identity]
        with self._lock:
            exam = self._exams.setdefault(identity, ShownExam(given, self._working))
            self._exams.move_to_end(identity)
            while len(self._exams) > KEPT:
                self._exams.popitem(last=False)
            return exam

    def picture(self, identity: str) -> bytes:
        """The picture of an exam or of the atlas, for ``static/net.js``."""
        shown = self.shown(identity)
        return shown.picture() if identity == ATLAS else shown.picture(self.model.intensity)  # type: ignore

    def coordinates(self, identity: str) -> bytes:
        """The coordinates of an exam; those of the atlas are itself."""
        if identity == ATLAS:
            raise KeyError(identity)
        return self.shown(identity).coordinates(self.model)  # type: ignore[union-attr]

    def masks(self, identity: str) -> bytes:
        """The structures of the template in an exam or in the atlas."""
        return self.shown(identity).masks(self.model, self.a_template(), self.threshold)

    def structures(self, identity: str) -> OwnStructures:
        """The structures of the template in an exam, on its own grid."""
        return self.shown(identity).structures(self.model, self.a_template(), self.threshold)  # type: ignore[union-attr]

    def a_template(self) -> Template:
        """The template. Raises :class:`~deepatlas.errors.DataError` where none was given."""
        if self.template is None:
            raise DataError("no template was given; start with --template T to see structures")
        return self.template

    def trust(self, identity: str) -> bytes:
        """What to believe of the structures and of places of an exam."""
        if self.template is None or identity == ATLAS:
            raise KeyError(identity)
        return self.shown(identity).trust(self.model, self.template, self.threshold)  # type: ignore[union-attr]

    def believed(self, identity: str) -> ExamTrust | None:
        """The trust of an exam; None for the atlas, and where the template is not calibrated."""
        template = self.template
        if template is None or identity == ATLAS or not _calibrated(template):
            return None
        return self.shown(identity).believed(self.model, template, self.threshold)  # type: ignore[union-attr]

    def mapped(self, identity: str) -> Mapped:
        """An exam after its pass through the network."""
        return self.shown(identity).mapped(self.model)

    # -- what the page sends -------------------------------------------------------------------------------------

    def change_marks(self, data: dict[str, Any]) -> dict[str, Any]:
        """Add, replace and delete marks: ``{"put": [mark …], "delete": [id …]}``."""
        put, delete = data.get("put", []), data.get("delete", [])
        if not isinstance(put, list) or not isinstance(delete, list):
            raise DataError("put and delete must be lists")
        self.marks.change([Mark.of(mark) for mark in put], [str(i) for i in delete])
        return self.all_marks({})

    def all_marks(self, data: dict[str, Any]) -> dict[str, Any]:
        """All marks, or their number alone where the page has them: ``{"since": number}``."""
        marks = self.marks
        if data.get("since") == marks.revision:
            return {"revision": marks.revision}
        return {"revision": marks.revision, "marks": [mark.to_dict() for mark in marks.all()]}

    def carry(self, data: dict[str, Any]) -> dict[str, Any]:
        """Where a mark is in exams: ``{"mark": id, "to": [exam …]}``; and what was odd about it, when that is new."""
        from deepatlas.view.carry import carry_mask, place_of

        mark, targets = self.marks.get(str(data.get("mark"))), self._ids(data.get("to"))
        source = self.mapped(mark.exam)
        places: dict[str, Any] = {}
        notes: list[str] = []
        for identity in targets:
            if identity == mark.exam:
                continue
            target = self.mapped(identity)
            unknown = [
                i for i, it in ((mark.exam, source), (identity, target)) if it.known.fit.known is False
            ]
            if unknown:
                places[identity] = {
                    "found": False,
                    "reason": f"the model does not know the exam {self._names[unknown[0]]}",
                }
            elif mark.mask is None:
                places[identity] = place_of(mark, source.known, target.known)
            else:
                try:
                    with heard() as lines:
                        carried = self._template_of(mark)
                    notes += lines
                    places[identity] = carry_mask(carried, target)
                except DataError as error:
                    places[identity] = {"found": False, "reason": str(error)}
        return {"mark": mark.id, "places": places, "notes": notes}

    def _template_of(self, mark: Mark) -> Template:
        """The template of one painted mask, which is solved for once."""
        from deepatlas.view.carry import template_from

        assert mark.mask is not None
        key = mark.id, hash((mark.mask.start, mark.mask.shape, mark.mask.packed.tobytes()))
        # Before the lock, as an exam that is passed through the network takes it as well.
        exams = {mark.exam: self.mapped(mark.exam)}
        with self._working:
            if key not in self._templates:
                self._templates = {k: v for k, v in self._templates.items() if k[0] != mark.id}
                self._templates[key] = template_from([mark], exams, self.model, self._names)
        return self._templates[key]

    def name_of(self, identity: str) -> str:
        """The name of an exam, or ``"atlas"``."""
        return self._names[identity]

    def _ids(self, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(i, str) and i in self._names for i in value):
            raise DataError("there is no such exam on this page")
        return value

    def exams_of(self, data: dict[str, Any]) -> list[str]:
        """The exams that a request names in ``to``."""
        return self._ids(data.get("to"))

    def exam_of(self, data: dict[str, Any]) -> str:
        """The exam that a request names in ``exam``."""
        return self._ids([data.get("exam")])[0]


def _calibrated(template: Template) -> bool:
    return bool(template.meta.get("trust"))


def to_json(value: Any) -> bytes:
    """A value as the bytes of JSON."""
    return json.dumps(value, allow_nan=False).encode()
