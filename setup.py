"""Package description. Imports no torch and lists no extension: kernels are built on first use (deepatlas_ops)."""

from pathlib import Path

from setuptools import find_packages, setup

# Sources travel inside the package, so that a wheel can build its kernels too.
SOURCES = "deepatlas_ops._csrc"

setup(
    name="deepatlas",
    version="0.1.0",
    description="One-shot localisation in CT: anatomical coordinates for every voxel, learned without labels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["deepatlas", "deepatlas.*", "deepatlas_ops", "deepatlas_ops.*"]),
        SOURCES,
    ],
    package_dir={SOURCES: "csrc"},
    package_data={
        SOURCES: ["*.h", "*.cuh", "*.cu", "*.cpp"],
        "deepatlas_ops": ["py.typed"],
        "deepatlas": [
            "pretrained/*/*",
            "pretrained/*/regions/*/*",
            "model/trees/*.toml",
            "intake/dataset/*.jinja",
            "evaluate/*.jinja",
            "compare/*.jinja",
            "report/*.jinja",
            "view/static/*",
            "experiments/plans/*.toml",
            "names/*.json",
            "py.typed",
        ],
    },
    install_requires=[
        "torch>=2.11,<2.16",
        "numpy>=1.26",
        "scipy>=1.11",
        "h5py>=3.10",
        "ninja>=1.11",
        # Headers for the kernels of deepatlas_ops.array.
        "pybind11>=2.12",
        "SimpleITK>=2.3",
        "pydicom>=3.0",
        "matplotlib>=3.8",
        "contourpy>=1.2",
        "Pillow>=10",
        "jinja2>=3.1",
        "tqdm>=4.66",
        "tensorboard>=2.15",
        # torch.utils.cpp_extension, which builds the kernels, imports it.
        "setuptools",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "nibabel>=5.2",
            "pynrrd>=1.0",
            # Writes and reads DICOM-SEG.
            "highdicom>=0.26",
            "monai>=1.3",
            "surface-distance>=0.1",
            "joblib>=1.4",
            "distributed>=2024.8",
            "ruff>=0.6",
            "mypy>=1.11",
        ],
        # deepatlas segment --format dicom-seg: writes DICOM Segmentations.
        "dicom": ["highdicom>=0.26"],
        # deepatlas prepare --engine dask: the same work on many machines.
        "dask": ["joblib>=1.4", "dask>=2024.8", "distributed>=2024.8"],
        # The pages of docs/, with the API page made from the docstrings: mkdocs build --strict
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings-python>=2.0", "ruff>=0.6"],
        # The peers that benchmarks/ measures against, where they are installed.
        "bench": [
            "pytest>=8",
            "monai>=1.3",
            "SimpleITK>=2.3",
            "volresample>=0.6",
            "deformation-inversion-layer>=1.1",
            "antspyx>=0.6",
        ],
    },
    entry_points={"console_scripts": ["deepatlas=deepatlas.cli.main:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Intended Audience :: Healthcare Industry",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: C++",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
