"""Data that every study reads: which examples make a step, where they come from, and their names.

A source holds `num_examples` numbered examples and hands out batches by number (`Source`). Batches
are dicts of arrays and always carry "index", int32. Classification: "image" [b, height, width,
channels] and "label" int32 [b]; language: "tokens" [b, length + 1]; regression: "inputs" and
"targets".
"""

from shared.data._digits import digits as digits
from shared.data._index import batch_index as batch_index
from shared.data._index import padded_rows as padded_rows
from shared.data._index import steps_per_epoch as steps_per_epoch
from shared.data._source import Arrays as Arrays
from shared.data._source import Augmented as Augmented
from shared.data._source import Source as Source
from shared.data._source import on_device as on_device
