"""Where images, regions and captions come from, up to a Batch."""

from itm_lib.data.captions import Tokenizer, Vocabulary, WordPieces
from itm_lib.data.dataset import Batch, ImageCaptionDataset, open_split
from itm_lib.data.regions import RegionStore

__all__ = ["Batch", "ImageCaptionDataset", "RegionStore", "Tokenizer", "Vocabulary", "WordPieces", "open_split"]
