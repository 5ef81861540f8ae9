"""The options that several training commands share, and those that are made from the fields of Config."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from app.cores import available_cores
from training.config import FIELDS, Config, allowed
from training.fit.distributed import Device, processes_here

Own = Annotated[
    Path | None,
    typer.Option("--data", help="Your own images instead of CIFAR-10's: a folder a class (docs/own-classes.md)."),
]
DataDir = Annotated[Path, typer.Option(envvar="CIFAR10_DIR", help="The folder of cifar-10-batches-py.")]
Download = Annotated[bool, typer.Option(help="Fetch CIFAR-10 when it is missing.")]
RunDir = Annotated[
    Path, typer.Option(help="The run's folder; the same folder resumes the run. With --data, the default has its name.")
]
Init = Annotated[str, typer.Option(help="imagenet, random, or a safetensors file with torchvision's names.")]
Teacher = Annotated[
    list[Path] | None, typer.Option(help="A bundle or finished run to learn from, or several; needs --views.")
]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Threads in each process; the bits depend on it.")]
ComputeOn = Annotated[Device, typer.Option(help="auto uses GPUs if there are any.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Write figures and mistakes for TensorBoard, too.")]
TestReads = Annotated[
    Path,
    typer.Option(
        help="The log of the readings of the test set, which is appended to. With --data, the default is in --run-dir."
    ),
]
Near = Annotated[Path, typer.Option(help="The result of leave-two-out, which becomes part of the report.")]
Fashion = Annotated[Path | None, typer.Option(help="Folder with Fashion-MNIST's t10k-images-idx3-ubyte.gz.")]
Photos = Annotated[
    Path | None,
    typer.Option(help="Folder of photographs: a folder a class, and other/. A part is for training, a part held out."),
]
People = Annotated[
    Path | None,
    typer.Option("--labels", help="Folder of CIFAR-10H's, ciFAIR's and cleanlab's files, which `labels` fetches."),
]
BundleDir = Annotated[
    Path | None, typer.Option("--bundle", help="The folder to write; by default `bundle` in --run-dir.")
]
Force = Annotated[bool, typer.Option(help="Replace an existing bundle.")]


def default_threads() -> int:
    """This process's share of the cores that are available to all processes of the run on this machine, at least 1."""
    return max(1, available_cores() // processes_here())


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for every field of Config in place of its parameter `config`."""
    signature = inspect.signature(command)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "config"]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[field.annotation, typer.Option(help=_help(field))],
        )
        for name, field in FIELDS.items()
    ]

    def called(**values: Any) -> None:
        config = Config(**{option.name: values.pop(option.name) for option in options})
        command(**values, config=config)

    # Typer reads the parameters from here.
    called.__signature__ = signature.replace(parameters=kept + options)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in kept + options}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def given(context: typer.Context) -> set[str]:
    """The parameters that the user has set, and not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _help(field: FieldInfo) -> str:
    # Config refuses values out of range, with exit code 1; Typer's own min and max would do so with 2.
    bounds = allowed(field)
    return f"{field.description} {bounds.capitalize()}." if bounds.startswith("from") else str(field.description)
