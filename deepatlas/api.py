"""The object that users hold: a trained model that segments and locates, and the function that loads one."""

from __future__ import annotations

import os
import warnings

from numpy.typing import ArrayLike

from deepatlas.localize.points import Located, locate
from deepatlas.localize.segment import Segmentation, segment, what_to_find
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine, Exam, read_exam
from deepatlas.model.fit import Fit, UnknownExamWarning
from deepatlas.model.structures import Structures


class Model(Engine):
    """A trained model, which :func:`deepatlas.load` loads.

    It gives the :meth:`coordinates` of exams, carries the masks of a template onto them with :meth:`segment`, and
    finds points of one exam in another with :meth:`locate`.

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
    """

    def segment(
        self, exam: Exam, template: Template | Structures | None = None, threshold: float | None = None
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
        labels = segment(self, volume, what, threshold=threshold)
        _warn(labels.fit, volume.name)
        return labels

    def locate(self, points_mm: ArrayLike, source: Exam, target: Exam) -> Located:
        """Find points of one exam in another (section 2.2).

        Args:
            points_mm: ``[N, 3]`` in RAS millimetres of ``source``.
            source: the exam that the points are in.
            target: the exam in which they are to be found.

        Returns:
            The points in RAS millimetres of ``target``, which of them were found, and why the others were not.

        Warns:
            UnknownExamWarning: the model does not know an exam such as ``target``; no point of it counts as found.

        Raises:
            DeepAtlasError: the points are not ``[N, 3]`` or not finite.
            DataError: an exam cannot be read, or shows no patient.
        """
        volume = read_exam(target)
        found = locate(self, points_mm, read_exam(source), volume)
        _warn(found.fit, volume.name)
        return found


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
