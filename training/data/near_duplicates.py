"""Which pictures are nearly the same: copies in another size, format or quality, and the next frame of a film.

`training.data.photographs.duplicates` compares grey pictures of 8 x 8 by their correlation. That would take all digits
or all parts on one table for the same, so pictures of a user's own classes are compared by the difference of colours.
"""

import numpy as np
import numpy.typing as npt
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
    starts = range(0, len(cells), BLOCK)
    links = []
    for rows in starts:
        for columns in starts[rows // BLOCK :]:
            one, other = slice(rows, rows + BLOCK), slice(columns, columns + BLOCK)
            squares = lengths[one, None] + lengths[None, other] - 2 * cells[one] @ cells[other].T
            links.append(_fewer(torch.nonzero(squares < limit) + torch.tensor([rows, columns])))
    return torch.from_numpy(_components(torch.cat(links).numpy(), len(cells))).long()


def _fewer(pairs: Tensor) -> Tensor:
    """Pairs [M, 2] that connect the same images: a film of n pictures has n² pairs, of which n are enough."""
    if not len(pairs):
        return pairs
    members, places = torch.unique(pairs, return_inverse=True)
    of = _components(places.numpy(), len(members))
    _, first = np.unique(of, return_index=True)
    return torch.stack([members[torch.from_numpy(first[of])], members], 1)


def _components(pairs: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int32]:
    """int32 [count]: the component of each node of the graph with these edges [M, 2]."""
    graph = coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), (count, count))  # type: ignore[no-untyped-call]
    components: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return components


def _cells(images: Tensor) -> Tensor:
    """float32 [N, 3 * CELLS * CELLS]: mean colours, 0 for mid-grey."""
    parts = [
        F.adaptive_avg_pool2d(part.permute(0, 3, 1, 2).float(), CELLS).flatten(1) - 128
        for part in torch.split(images, BLOCK)
    ]
    return torch.cat(parts)
