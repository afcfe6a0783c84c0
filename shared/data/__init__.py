"""Data that every study reads: which examples make a step, where they come from, and their names.

A source holds `num_examples` numbered examples and hands out batches by number (`Source`). Batches
are dicts of arrays and always carry "index", int32. Classification: "image" [b, height, width,
channels] and "label" int32 [b]; language: "tokens" [b, length + 1]; regression: "inputs" and
"targets".
"""

from shared.data._augment import random_crop as random_crop
from shared.data._augment import random_flip as random_flip
from shared.data._bpe import BytePairs as BytePairs
from shared.data._change import subset as subset
from shared.data._change import with_label_noise as with_label_noise
from shared.data._digits import digits as digits
from shared.data._error import DataError as DataError
from shared.data._idx import fashion_mnist as fashion_mnist
from shared.data._idx import find_fashion_mnist as find_fashion_mnist
from shared.data._idx import idx as idx
from shared.data._idx import idx_folder as idx_folder
from shared.data._idx import read_idx as read_idx
from shared.data._index import Order as Order
from shared.data._index import batch_index as batch_index
from shared.data._index import padded_rows as padded_rows
from shared.data._index import shuffled as shuffled
from shared.data._index import steps_per_epoch as steps_per_epoch
from shared.data._prefetch import Prefetch as Prefetch
from shared.data._records import RandomAccess as RandomAccess
from shared.data._records import array_record as array_record
from shared.data._records import grain_batches as grain_batches
from shared.data._records import tfds as tfds
from shared.data._source import Arrays as Arrays
from shared.data._source import Augmented as Augmented
from shared.data._source import Source as Source
from shared.data._source import on_device as on_device
from shared.data._synthetic import Generated as Generated
from shared.data._synthetic import gaussian_classes as gaussian_classes
from shared.data._synthetic import gaussian_regression as gaussian_regression
from shared.data._synthetic import teacher_student as teacher_student
from shared.data._tables import csv as csv
from shared.data._tables import npz as npz
from shared.data._text import Tokens as Tokens
from shared.data._text import text as text
