"""The tensors that a model takes and gives, as far as reading a request needs to know them."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Tensor:
    """`shape` is that of a request: its first dimension, the number of images, is -1."""

    name: str
    datatype: Literal["UINT8", "BYTES", "FP32"]
    shape: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def config(self) -> dict[str, Any]:
        """Triton's configuration of the tensor: with its names of types, without the dimension of the images."""
        kind = "STRING" if self.datatype == "BYTES" else self.datatype
        return {"name": self.name, "data_type": f"TYPE_{kind}", "dims": list(self.shape[1:])}


@dataclass(frozen=True)
class Signature:
    """A request has from 1 to `max_batch_size` images."""

    input: Tensor
    output: Tensor
    max_batch_size: int
