"""The object that users hold: a trained model that segments and locates, and the function that loads one."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

from numpy.typing import ArrayLike
from torch import Tensor

from deepatlas.errors import DeepAtlasError
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.kind import exam_name, kind_of
from deepatlas.io.export.markups import read_markups
from deepatlas.localize.crop import Crop, CropView, box_of, crop
from deepatlas.localize.follow import FollowUp, follow
from deepatlas.localize.found import Found, carry_template, find, from_exam, from_template
from deepatlas.localize.points import Located, checked_points, coordinates_of, look_for
from deepatlas.localize.register import Registration, register
from deepatlas.localize.segment import Segmentation, segment, what_to_find
from deepatlas.localize.template.drawn import read_drawn
from deepatlas.localize.template.edit import Around
from deepatlas.localize.template.examples import Example, template_of
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.soften import seen
from deepatlas.model.engine import Engine, Exam, read_exam
from deepatlas.model.features import features
from deepatlas.model.fit import Fit, UnknownExamWarning
from deepatlas.model.known import KnownExam, known_exam
from deepatlas.model.map_cache import MapCache
from deepatlas.model.structures import Structures
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid
from deepatlas.space.markup import Markups
from deepatlas.space.volume import Volume


class Model(Engine):
    """A trained model, which :func:`deepatlas.load` loads.

    It gives the :meth:`coordinates` and the :meth:`features` of exams. :meth:`template` defines masks, points, lines
    and boxes from examples; :meth:`segment` carries masks onto an exam, :meth:`locate` finds points, lines and boxes,
    and :meth:`propagate` does both straight from one exam to others. :meth:`register` aligns two exams, :meth:`follow`
    tells what changed between two of one patient, and :meth:`crop_exam` cuts a standard view out of any exam.

    An exam is a path (see :func:`deepatlas.read_volume`), a :class:`~deepatlas.space.volume.Volume`, an image of
    nibabel, SimpleITK or MONAI, or a pair of an array ``[X, Y, Z]`` and its affine to RAS+ millimetres (see
    :func:`~deepatlas.exams.in_memory.as_volume`), in Hounsfield units; orientation, spacing and field of view are free.

    Attributes:
        config: the settings of the run that trained the model.
        card: facts about the model, such as its data and the commit that trained it.
        refine: refinement steps for every exam.
        average: views of every exam whose coordinates are averaged.
        depth: how many levels of the cascade are used; None uses all of them.
        structures: the structures of a model that was trained on labels; None for a model of coordinates.
        cache: a :class:`~deepatlas.model.map_cache.MapCache`, in which :meth:`template`, :meth:`locate` and
            :meth:`propagate` keep the coordinates of exams that are files; None keeps none.
    """

    cache: MapCache | None = None

    def segment(
        self,
        exam: Exam,
        template: Template | Structures | None = None,
        threshold: float | None = None,
        *,
        trust: bool = False,
        least_trust: float | None = None,
    ) -> Segmentation:
        """Carry the masks of a template onto an exam (sections 3.2.1 and 5.2.7).

        A model that was trained on labels (``deepatlas finetune``, sections 3.3.3 and 3.3.4) finds its structures
        without a template.

        Args:
            exam: a CT in Hounsfield units: a path, a volume, or an image of another library.
            template: a template made for this model. A model that was trained on labels takes none, but some of its
                structures (``model.structures.select(["liver"])``); None takes all of them.
            threshold: the mask value that counts for all structures, in (0, 1]; None takes the template's own
                values, which preserve volumes, or a probability of 0.5.
            trust: also predict the Dice of every mask, from a few more passes of the network and the calibration of the
                template (``deepatlas calibrate``); it is in the result's ``trust``, by structure.
            least_trust: leave out masks whose predicted Dice is lower, or whose Dice nobody can predict.

        Returns:
            A label image on the exam's own grid: uint8, or uint16 for ids above 255. 0 is the background. Its ``fit``
            says how well the model knows the exam.

        Warns:
            UnknownExamWarning: the model does not know such an exam; its labels mean nothing.

        Raises:
            DeepAtlasError: the template belongs to another model, the model needs a template or takes none, or the
                threshold is out of range.
            DataError: the exam cannot be read, or shows no patient.
        """
        what = what_to_find(self, template)
        volume = read_exam(exam)
        labels = segment(self, volume, what, threshold=threshold, trust=trust, least_trust=least_trust)
        _warn(labels.fit, volume.name)
        return labels

    def template(
        self,
        examples: Example | Sequence[Example],
        labels: Mapping[str, int] | None = None,
        *,
        boxes: Sequence[str] = (),
        size: int | None = None,
        **solver: Any,
    ) -> Template:
        """Define masks, points, lines and boxes once, from one exam in which they were drawn or from several (eq. 14).

        Args:
            examples: the exams, each with its masks and its points, lines and boxes.
            labels: ``{name: id}`` of the masks; None takes a ``labels.json`` beside them, or the names that they have.
            boxes: boxes to be put around structures, such as ``"chest=heart,aorta+10"`` (with a margin of 10 mm) or
                ``"chest=heart,aorta+10%"`` (of the edges).
            size: voxels of the masks along each axis; None takes 128, or the size of the atlas if that is larger.
            **solver: as for :func:`deepatlas.build_template`.

        Warns:
            UnknownExamWarning: the model does not know an exam; what was drawn there means nothing elsewhere.
            DataWarning: a point lies outside the body, a mask does not explain its labels, or an example is given
                twice, which counts once.

        Raises:
            DataError: an exam or a file cannot be read, masks are on another grid or empty, a point or a box lies
                outside its exam, two things of one exam have one name, or nothing was drawn.
        """
        around = [Around.parse(text) for text in boxes]
        made = template_of(
            self,
            examples,
            labels,
            boxes=around,
            size=size,
            know=lambda e: self._known(e.exam, e.name, keep_image=True),
            **solver,
        )
        for name, about in made.meta["fit"].items():
            value = math.nan if about["fit"] is None else about["fit"]
            _warn(Fit(value, self.fit_threshold), name)
        return made

    @overload
    def locate(self, points_mm: Template, *, target: Exam) -> Found: ...

    @overload
    def locate(  # type: ignore[overload-overlap]
        self, points_mm: Markups | str | os.PathLike[str], source: Exam, target: Exam
    ) -> Found: ...

    @overload
    def locate(self, points_mm: ArrayLike, source: Exam, target: Exam) -> Located: ...

    def locate(
        self, points_mm: Any, source: Exam | None = None, target: Exam | None = None
    ) -> Located | Found:
        """Find points, lines and boxes of one exam, or those of a template, in another exam (section 2.2).

        Args:
            points_mm: ``[N, 3]`` in RAS millimetres of ``source``; or points, lines and boxes of ``source``
                (:class:`~deepatlas.space.markup.Markups`, or a file of them); or a template, which has no source.
            source: the exam that the points are in.
            target: the exam in which they are to be found.

        Returns:
            The points in RAS millimetres of ``target``, which of them were found, and why the others were not. For
            markups and templates a :class:`~deepatlas.localize.found.Found`, which holds lines and boxes as well.

        Warns:
            UnknownExamWarning: the model does not know an exam such as ``target``; no point of it counts as found.

        Raises:
            DeepAtlasError: the points are not ``[N, 3]`` or not finite, or the template belongs to another model.
            DataError: an exam or a file cannot be read, or shows no patient.
        """
        if target is None or (source is None) != isinstance(points_mm, Template):
            raise DeepAtlasError(
                "locate: needs a target, and a source unless a template is given: locate(points, source, target) or "
                "locate(template, target=…)"
            )
        found: Located | Found
        if isinstance(points_mm, Template):
            points_mm.check_model(self.fingerprint)
            goal = self._known(target)
            found = find(goal, from_template(points_mm))
        elif isinstance(points_mm, Markups | str | os.PathLike):
            marks = points_mm if isinstance(points_mm, Markups) else read_markups(points_mm)
            origin, goal = self._known(source), self._known(target)
            found = find(goal, from_exam(origin, marks))
        else:
            points = checked_points(points_mm)
            origin, goal = self._known(source), self._known(target)
            found = look_for(goal, coordinates_of(origin, points))
        _warn(found.fit, goal.name)
        return found

    def propagate(
        self,
        examples: Example | Sequence[Example],
        *targets: Exam,
        labels: Mapping[str, int] | None = None,
        threshold: float | None = None,
    ) -> list[Found]:
        """Carry what was drawn in one exam, or in several, straight onto others.

        It is :meth:`template`, whose masks, points, lines and boxes are then found in every target.

        Args:
            examples: as in :meth:`template`.
            *targets: the exams.
            labels: as in :meth:`template`.
            threshold: as in :meth:`segment`.

        Returns:
            What was found in each target: ``labels`` on its own grid, with the names and ids of the examples, and
            points, lines and boxes in RAS millimetres.

        Warns:
            UnknownExamWarning: the model does not know an exam.

        Raises:
            DataError: as :meth:`template`, or a target cannot be read.
        """
        template = self.template(examples, labels)
        found = []
        for target in targets:
            look = partial(self._image, target)
            known = self._known(target, keep_image=True)
            found.append(carry_template(known, template, threshold, look))
            _warn(found[-1].fit, found[-1].exam)
        return found

    def register(self, fixed: Exam, moving: Exam, kind: str = "deformable") -> Registration:
        """Align two exams through their coordinates, in both directions (section 4).

        Args:
            fixed: an exam.
            moving: the exam that is moved onto the grid of ``fixed``, and ``fixed`` onto its grid.
            kind: ``"deformable"``, ``"linear"`` (an affine map) or ``"rigid"``; see
                :func:`deepatlas.localize.register.register`.

        Returns:
            Both moved exams, with their transforms, the overlap, and how well the model knows the exams.

        Warns:
            UnknownExamWarning: the model does not know an exam; then the alignment means nothing.

        Raises:
            DeepAtlasError: ``kind`` is another word, or the model was trained on labels.
            DataError: an exam cannot be read, shows no patient, or the exams have no anatomy in common.
        """
        volumes = read_exam(fixed), read_exam(moving)
        found = register(self, *volumes, kind=kind)
        for fit, volume in zip((found.fixed_fit, found.moving_fit), volumes, strict=True):
            _warn(fit, volume.name)
        return found

    def follow(
        self,
        before: Exam,
        after: Exam,
        template: Template,
        kind: str = "rigid",
        *,
        threshold: float | None = None,
        expected_mm: Mapping[str, float] | None = None,
    ) -> FollowUp:
        """What changed from one exam of a patient to a later one (section 4).

        Args:
            before: the exam A.
            after: the exam B.
            template: the structures.
            kind: how B is aligned for the difference image, as in :meth:`register`.
            threshold: as in :meth:`segment`.
            expected_mm: the error of a structure's shift, by its name, where it is better known than by the alignment.

        Returns:
            The volume and the shift of every structure, and the difference image on the grid of A.

        Warns:
            UnknownExamWarning: the model does not know an exam.

        Raises:
            DeepAtlasError: the template belongs to another model, or the model was trained on labels.
            DataError: an exam cannot be read, shows no patient, or the exams have no anatomy in common.
        """
        volumes = read_exam(before), read_exam(after)
        found = follow(self, template, *volumes, kind, threshold=threshold, expected_mm=expected_mm)
        fits = found.registration.fixed_fit, found.registration.moving_fit
        for fit, volume in zip(fits, volumes, strict=True):
            _warn(fit, volume.name)
        return found

    def crop_exam(
        self,
        exam: Exam,
        box: Box | Template,
        name: str | Sequence[str] | None = None,
        *,
        shape: int | Sequence[int] | None = 64,
        spacing: float | Sequence[float] | None = None,
        margin: float = 0.0,
        labels: Exam | None = None,
    ) -> Crop:
        """Cut a box of the atlas out of an exam, turned to a standard view (sections 4 and 5.2.4, Fig. 8).

        Args:
            exam: an exam; its full resolution is resampled.
            box: a box in coordinates of the atlas, or a template.
            name: with a template, the name of one of its boxes, or of one or several structures to put a box around.
            shape: the voxels of the view, one number or (z, y, x); None takes as many as ``spacing`` needs.
            spacing: the size of a voxel in mm, one number or (x, y, z); None fits ``shape`` into the box.
            margin: added to the box on every side, in mm.
            labels: a label image on the grid of the exam, of which the view is cut as well.

        Returns:
            The view with its place in the exam, and the share of it that lies inside the scan.

        Warns:
            UnknownExamWarning: the model does not know the exam.

        Raises:
            DeepAtlasError: the template belongs to another model, or the model was trained on labels.
            DataError: the exam cannot be read or shows nothing of the box, or a number is out of range.
        """
        view = CropView(shape, spacing, margin)
        if isinstance(box, Template):
            if name is None:
                raise DeepAtlasError("crop: a template needs the name of a box or of structures")
            box.check_model(self.fingerprint)
            box = box_of(box, name)
        volume = read_exam(exam)
        drawn = None
        if labels is not None:
            path = exam if isinstance(exam, str | os.PathLike) else None
            drawn = read_drawn(labels, volume.grid, volume.name or "exam", source=path)[0]
        found = crop(known_exam(self, volume), volume, box, view, drawn, self.intensity)
        _warn(found.fit, volume.name)
        return found

    def features(self, exam: Exam, grid: Grid | None = None) -> Tensor:
        """The network's features of an exam, as further channels of the input of other networks (section 4).

        Args:
            exam: a path, a volume, or an image of another library.
            grid: where to sample them; None takes the exam's own grid.

        Returns:
            ``[K, D, H, W]`` float32 on the model's device; see :func:`deepatlas.model.features.features`.

        Raises:
            DeepAtlasError: the model was trained on labels.
            DataError: the exam cannot be read, or shows no patient.
        """
        return features(self, exam, grid)

    def _image(self, exam: Exam) -> Volume:
        """An exam with values as the network takes them."""
        return seen(read_exam(exam), self.intensity)

    def _known(self, exam: Exam, name: str = "", *, keep_image: bool = False) -> KnownExam:
        """The coordinates of an exam, from :attr:`cache` where it is a path and there is one."""
        if self.cache is not None and isinstance(exam, str | os.PathLike):
            path = Path(exam)
            files = ExamFiles(name or exam_name(path.absolute()), path, kind=kind_of(path, is_exam=True))
            return self.cache.exam(self, files, keep_image=keep_image)
        return known_exam(self, exam, keep_image=keep_image)


def _warn(fit: Fit, exam: str) -> None:
    if message := fit.warning(exam or "exam"):
        # The caller of the method is two frames up.
        warnings.warn(message, UnknownExamWarning, stacklevel=3)


def load(
    name: str | os.PathLike[str],
    device: str | None = None,
    *,
    refine: int | None = None,
    average: int = 1,
    depth: int | None = None,
) -> Model:
    """Load a trained model.

    Args:
        name: the name of a shipped model (``"headneck"``), a run folder, or a model file.
        device: ``"cpu"``, ``"cuda"`` or another device of PyTorch; by default a GPU if there is one.
        refine: the number of registration steps that refine the coordinates of every exam after the pass of the
            network. Use the same for the template. None takes what served the model best when it was made, which is 20
            for ``"headneck"`` (half a second an exam); 0 leaves it at one pass.
        average: the number of slightly moved views of every exam whose coordinates are averaged. Each view takes one
            pass of the network.
        depth: how many levels of the cascade are used (section 5.2.4): 0 for the network of the whole exam alone, 1
            with its regions, 2 with the regions within them; None uses all that the model has.

    Raises:
        DeepAtlasError: there is no such model, the file is damaged or of another format version, the device cannot be
            used, or ``refine``, ``average`` or ``depth`` is out of range.
    """
    return Model.load(name, device=device, refine=refine, average=average, depth=depth)
