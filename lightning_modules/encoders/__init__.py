"""Frozen encoders behind one adapter: images or texts in, one vector an item out.

What lives here: what an encoder is (`adapter`); encoders whose weights come inside packages (`efficientnet`, `minilm`);
those of a local Hugging Face directory (`hub_images`, `hub_texts`); features that are there already (`arrays`); and the
cache of what was encoded (`cache`). `catalog` opens any of them by the name that a person gives. Nothing is downloaded.

What must not: training, and what is done with the features.
"""

from lightning_modules.encoders.adapter import Encoder, FrozenEncoder, Kind
from lightning_modules.encoders.arrays import ArrayEncoder
from lightning_modules.encoders.cache import cached_features, hash_items
from lightning_modules.encoders.catalog import BUILT_IN, open_encoder
from lightning_modules.encoders.efficientnet import efficientnet_lite0
from lightning_modules.encoders.hub import POOLINGS, check_encoder
from lightning_modules.encoders.hub_images import HubImageEncoder, load_encoder
from lightning_modules.encoders.hub_texts import HubTextEncoder, load_text_encoder
from lightning_modules.encoders.images import ImageEncoder, read_pixels
from lightning_modules.encoders.minilm import SentenceTower, minilm, minilm_tower
from lightning_modules.encoders.texts import TextEncoder
from lightning_modules.encoders.wordpiece import WordPiece
from lightning_modules.errors import InputError

__all__ = [
    "BUILT_IN",
    "POOLINGS",
    "ArrayEncoder",
    "Encoder",
    "FrozenEncoder",
    "HubImageEncoder",
    "HubTextEncoder",
    "ImageEncoder",
    "InputError",
    "Kind",
    "SentenceTower",
    "TextEncoder",
    "WordPiece",
    "cached_features",
    "check_encoder",
    "efficientnet_lite0",
    "hash_items",
    "load_encoder",
    "load_text_encoder",
    "minilm",
    "minilm_tower",
    "open_encoder",
    "read_pixels",
]
