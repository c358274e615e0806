"""fmcnet: visible-infrared person re-identification (FMCNet, CVPR 2022).

Public names are imported on first use, so `import fmcnet` takes milliseconds and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "Modality": "fmcnet.types",
    "Embeddings": "fmcnet.types",
    "Table": "fmcnet.data.table",
    "Record": "fmcnet.data.table",
    "read_dataset": "fmcnet.data.readers",
    "register_reader": "fmcnet.data.readers",
    "generate": "fmcnet.synthetic",
    "Config": "fmcnet.config",
    "load_config": "fmcnet.config",
    "FMCNet": "fmcnet.models.fmcnet",
    "build_model": "fmcnet.models.build",
    "Backbone": "fmcnet.models.backbones",
    "register_backbone": "fmcnet.models.backbones",
    "train": "fmcnet.training.trainer",
    "Encoder": "fmcnet.inference.encoder",
    "load": "fmcnet.inference.encoder",
    "Crops": "fmcnet.inference.adapt",
    "adapt_model": "fmcnet.inference.adapt",
    "Gallery": "fmcnet.retrieval.gallery",
    "Where": "fmcnet.retrieval.records",
    "Searcher": "fmcnet.retrieval.searcher",
    "evaluate": "fmcnet.evaluation.evaluate",
    "protocols": "fmcnet.evaluation.protocols",
    "FmcnetError": "fmcnet.errors",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:  # "as" tells type checkers that a name is exported
    from fmcnet.config import Config as Config
    from fmcnet.config import load_config as load_config
    from fmcnet.data.readers import read_dataset as read_dataset
    from fmcnet.data.readers import register_reader as register_reader
    from fmcnet.data.table import Record as Record
    from fmcnet.data.table import Table as Table
    from fmcnet.errors import FmcnetError as FmcnetError
    from fmcnet.evaluation import protocols as protocols
    from fmcnet.evaluation.evaluate import evaluate as evaluate
    from fmcnet.inference.adapt import Crops as Crops
    from fmcnet.inference.adapt import adapt_model as adapt_model
    from fmcnet.inference.encoder import Encoder as Encoder
    from fmcnet.inference.encoder import load as load
    from fmcnet.models.backbones import Backbone as Backbone
    from fmcnet.models.backbones import register_backbone as register_backbone
    from fmcnet.models.build import build_model as build_model
    from fmcnet.models.fmcnet import FMCNet as FMCNet
    from fmcnet.retrieval.gallery import Gallery as Gallery
    from fmcnet.retrieval.records import Where as Where
    from fmcnet.retrieval.searcher import Searcher as Searcher
    from fmcnet.synthetic import generate as generate
    from fmcnet.training.trainer import train as train
    from fmcnet.types import Embeddings as Embeddings
    from fmcnet.types import Modality as Modality


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fmcnet' has no attribute '{name}'")
    module = importlib.import_module(_PUBLIC[name])
    return module if name == "protocols" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
