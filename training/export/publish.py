"""Write a bundle to a repository of the Hugging Face Hub, or of another hub that HF_ENDPOINT names."""

from pathlib import Path
from typing import NamedTuple

from app.bundle.manifest import Manifest
from app.bundle.names import MANIFEST
from app.bundle.reader import Bundle, BundleError
from training.errors import TrainingError
from training.fit.run_folder import BUNDLE

LONGEST_REASON = 300  # characters that are shown of the hub's answer


class Published(NamedTuple):
    """`address`: the commit's, for MODEL_DIR."""

    manifest: Manifest
    page: str
    address: str


def publish(source: Path, repository: str, *, private: bool) -> Published:
    """Commit the files of a bundle, or of a run's, to `repository` (owner/name), which is made if need be.

    Other files of the repository stay. `private`: if it is made. Raises TrainingError.
    """
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise TrainingError(f"{repository} names no repository: it must be an owner and a name, as me/pets")
    folder = source if (source / MANIFEST).exists() else source / BUNDLE
    try:
        bundle = Bundle.load(folder)
    except BundleError as error:
        raise TrainingError(str(error)) from None
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError as error:
        raise TrainingError(f"publish needs the extra 'remote' ({error})") from None
    manifest = bundle.manifest
    contents = {name: bundle.read(name) for name in manifest.files} | {MANIFEST: (folder / MANIFEST).read_bytes()}
    files = [CommitOperationAdd(name, content) for name, content in contents.items()]
    try:
        api = HfApi(library_name="cifar10-classifier")
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, files, commit_message=f"{manifest.name} {manifest.version}")
    except Exception as error:  # the hub's answers, the network's and the library's errors share no class
        raise TrainingError(f"{repository}: {_reason(error)}") from None
    return Published(manifest, f"{api.endpoint}/{repository}", f"hf://{repository}@{commit.oid}")


def _reason(error: BaseException) -> str:
    error = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # that of an upload
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return "the hub allows no writing there: set HF_TOKEN to a token that may write, or use `hf auth login`"
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
