"""Logits once, every metric from saved logits."""

import torch
from torch import Tensor, nn


def predict_logits(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """float32 logits [N, classes] of uint8 images [N, H, W, 3], in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    model.train(was_training)
    return logits.clone()
