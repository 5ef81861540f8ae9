"""From CIFAR-10 to a bundle: `python -m training all`."""
