"""Which pictures are nearly the same: copies in another size, format or quality, and the next frame of a film.

`training.data.photographs.duplicates` compares grey pictures of 8 x 8 by their correlation. That would take all digits
or all parts on one table for the same, so pictures of a user's own classes are compared by the difference of colours.
"""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

CELLS = 16  # of each side
# Root of the mean squared difference of cells, of 255. A photo and its JPEG of quality 30 differ by less than 7.4, two
# of a thousand photos by 22 at least.
DIFFERENCE = 8.0
BLOCK = 1000  # images


def groups(images: Tensor) -> Tensor:
    """int64 [N]: the group of each of the uint8 images [N, H, W, 3]; near-duplicates are in one group."""
    cells = _cells(images)
    lengths = cells.square().sum(1)
    limit = DIFFERENCE**2 * cells.shape[1]
    pairs = []
    for first in range(0, len(cells), BLOCK):
        part = slice(first, first + BLOCK)
        squares = lengths[part, None] + lengths[None, first:] - 2 * cells[part] @ cells[first:].T
        pairs.append((squares < limit).nonzero() + first)
    one, other = torch.cat(pairs).T.numpy()
    graph = coo_array((np.ones(len(one), bool), (one, other)), (len(cells), len(cells)))  # type: ignore[no-untyped-call]
    _, found = connected_components(graph, directed=False)
    return torch.from_numpy(found).long()


def _cells(images: Tensor) -> Tensor:
    """float32 [N, 3 * CELLS * CELLS]: mean colours, 0 for mid-grey."""
    parts = [
        F.adaptive_avg_pool2d(part.permute(0, 3, 1, 2).float(), CELLS).flatten(1) - 128
        for part in torch.split(images, BLOCK)
    ]
    return torch.cat(parts)
