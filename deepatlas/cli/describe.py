"""What ``deepatlas info FILE`` tells about a file or a folder: a few facts in plain JSON values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError, DeepAtlasError

# What a split names.
PARTS = ("train", "validation", "test", "labelled")
# The parts of a run folder of which one at least is there.
_RUN = ("config.json", "checkpoint.pt", "model.pt")


def is_model(name: str) -> bool:
    """Whether a name is that of a model to load: a shipped one, a finished run, or a file that is nothing else."""
    from deepatlas.pretrained import MODEL, shipped

    path = Path(name)
    return (
        (name in shipped() and not _is_run(path))
        or (path / MODEL).is_file()
        or path.suffix in (".pt", ".pth")
    )


def model_facts(model: Any, path: str) -> dict[str, Any]:
    """The facts about a loaded model."""
    return {
        "path": path,
        "fingerprint": model.fingerprint,
        "input_size": model.size,
        **(
            {"structures": model.structures.labels}
            if model.structures
            else {"atlas_size": model.atlas.shape[-1]}
        ),
        "crop": model.crop,
        "intensity": model.intensity,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "card": model.card,
    }


def run_facts(path: Path) -> dict[str, Any]:
    """The facts about a run folder: what it trains on, how far it is, and its result.

    Raises :class:`~deepatlas.errors.DeepAtlasError` for a damaged file.
    """
    from deepatlas import checkpoint

    facts: dict[str, Any] = {"run": str(path)}
    saved = _json(path / "config.json")
    if saved:
        config, request = saved.get("config", {}), saved.get("request", {})
        facts |= {"preset": config.get("preset"), "data": request.get("data") or "phantoms"}
        facts |= {"from": request["init"]} if request.get("init") else {}
        if request.get("model"):
            how = "from_scratch_like" if request.get("from_scratch") else "fine_tuned_from"
            facts[how] = request["model"]
    state = checkpoint.load(path / checkpoint.NAME) if (path / checkpoint.NAME).is_file() else None
    if state:
        pending = (state.get("pending") or {}).get("phase")
        now = f"in {pending}" if pending and pending not in state["done"] else "between phases"
        facts |= {
            "steps": state["overall"],
            "phases done": state["done"],
            "seconds": round(state["seconds"], 1),
        }
    else:
        now = "before its first checkpoint"
    facts["finished"] = (
        "yes" if (path / "model.pt").is_file() else f"no ({now}); continue it with --resume {path}"
    )
    if result := _json(path / "result.json"):
        kept = ("dice", "hd95_mm", "structures", "exams", "seed_exam", "template_exams", "held_out")
        facts["result"] = {key: result[key] for key in kept if key in result}
    return facts


def describe(name: str) -> dict[str, Any]:
    """The facts about anything but a model: a run that has not ended, dataset, data directory, template, store, exam.

    Raises :class:`~deepatlas.errors.DataError` if there is no such file, or if it is none of these.
    """
    from deepatlas.exams.joined import find_cohort
    from deepatlas.exams.kind import Kind, kind_of
    from deepatlas.store.hdf5 import begins_like_hdf5
    from deepatlas.store.store import is_dataset

    path = Path(name)
    if not path.exists():
        raise DataError(f"{name}: no such file or folder; check the path")
    if is_dataset(path):
        return _dataset(path)
    if _is_run(path):
        return run_facts(path)
    if path.is_file() and begins_like_hdf5(path):
        return _hdf5(path)
    if path.is_dir() and not _holds_one_exam(path) and kind_of(path) is Kind.FOLDER:
        cohort = find_cohort(path)
        parts = cohort.parts
        counts = (
            {} if parts is None else {k: len(ids) for k in PARTS if (ids := getattr(parts, k)) is not None}
        )
        return {
            "data directory": name,
            "exams": len(cohort),
            "labelled": sum(exam.seg is not None for exam in cohort.exams),
            "structures": list(cohort.labels),
            **({"split": counts} if counts else {}),
            "skipped": cohort.skipped,
        }
    return _image(path)


def _is_run(path: Path) -> bool:
    return any((path / part).is_file() for part in _RUN)


def _holds_one_exam(path: Path) -> bool:
    from deepatlas.exams.cohort import exam_images

    return bool(exam_images(path))


def _dataset(path: Path) -> dict[str, Any]:
    from deepatlas.intake.dataset.folder import Dataset

    dataset = Dataset(path)
    with dataset.store as store:
        labelled = int(store.has_label.any(1).sum())
        fingerprint = store.fingerprint
    return {
        "dataset": str(path),
        "exams": len(dataset),
        "labelled": labelled,
        "structures": list(dataset.labels),
        "crop": dataset.crop,
        "fingerprint": fingerprint[:12],
    }


def _hdf5(path: Path) -> dict[str, Any]:
    import h5py

    from deepatlas.exams import exam_file
    from deepatlas.localize.template import file as template_file
    from deepatlas.store import store as store_file

    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("format")
    except OSError as error:
        raise DataError(f"{path}: damaged HDF5 file ({error}); make it again") from error
    if kind == template_file.FORMAT:
        template = template_file.Template.load(path)
        meta = template.meta
        return {
            "template": str(path),
            "structures": {
                n: {"id": i, "threshold": round(t, 3)}
                for n, i, t in zip(template.names, template.ids, template.thresholds, strict=True)
            },
            "points": [point.name for point in template.marks.points],
            "lines": [line.name for line in template.marks.lines],
            "boxes": [box.name for box in template.marks.boxes],
            "voxels": list(template.masks.shape[:0:-1]) if template.names else None,
            # In voxels of this size it knows what its structures look like.
            "looks_mm": None if template.appearance is None else round(template.appearance.scale_mm, 2),
            "model": meta.get("model"),
            "intensity": meta.get("intensity", "hu"),
            "refine": meta.get("refine", 0),
            "exams": meta.get("exams", []),
        }
    if kind == store_file.FORMAT:
        with store_file.Store(path) as store:
            return {
                "store": str(path),
                "exams": len(store),
                "labelled": int(store.has_label.any(1).sum()),
                "structures": list(store.labels),
                "crop": store.crop,
                "intensity": store.intensity,
                "skipped": store.skipped,
                "fingerprint": store.fingerprint[:12],
            }
    if kind == exam_file.FORMAT:
        with exam_file.ExamFile(path) as exam:
            facts = {"exam of a dataset": str(path), "id": exam.id} | _grid(exam.grid)
            return facts | {"structures": exam.present, "facts": exam.facts, "warnings": exam.warnings}
    raise DataError(f"{path}: an HDF5 file of another program; deepatlas has not written it")


def _image(path: Path) -> dict[str, Any]:
    import numpy as np

    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.read import read_volume

    (exam,) = named_exams([path]).values()
    notes: list[str] = []
    volume = read_volume(exam.ct, notes=notes, kind=exam.kind)
    return {
        "image": str(exam.ct),
        **_grid(volume.grid),
        **({"modality": volume.modality} if volume.modality else {}),
        "values": [float(v) for v in np.percentile(volume.array, [0, 50, 100])],
        "notes": notes,
    }


def _grid(grid: Any) -> dict[str, Any]:
    return {
        "voxels": list(grid.shape[::-1]),
        "spacing_mm": [round(s, 4) for s in grid.spacing],
        "extent_mm": [round(e, 1) for e in grid.extent],
        "axes": grid.axes,
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DeepAtlasError(f"{path}: damaged ({error}); restore it") from None
    return value if isinstance(value, dict) else {}
