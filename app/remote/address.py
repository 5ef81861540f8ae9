"""The address of a bundle: a folder or an archive, at any place that fsspec knows."""

import re
from urllib.parse import quote, urlsplit

COMMIT = re.compile(r"hf://[^@]+@[0-9a-f]{40}(/.*)?")
REPOSITORY = re.compile(r"hf://[^/@]+/[^/@]+(@[^/@]+)?(/.*)?")
ARCHIVES = (".zip", ".tar")  # a compressed tar could unfold without an end


class Address:
    """`str(address)` is for messages: it has no password and no query, which may hold a signature."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.scheme = text.partition("://")[0]
        self._path = text.partition("?")[0]

    def __str__(self) -> str:
        scheme, _, rest = self._path.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    @property
    def web(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def pinned(self) -> bool:
        """Whether it names a commit, so that what is there never changes."""
        return COMMIT.fullmatch(self.text) is not None

    @property
    def fault(self) -> str | None:
        """What is wrong with it, if that can be seen without asking for it."""
        if self.scheme == "hf" and not REPOSITORY.fullmatch(self.text):
            return (
                "an address at the Hugging Face Hub is hf://OWNER/NAME or hf://OWNER/NAME@REVISION, and maybe a folder"
            )
        if not self._path.partition("://")[2].strip("/"):
            return "nothing follows the scheme: a place is missing"
        return None

    @property
    def archive(self) -> str | None:
        """The suffix of an archive; None for a folder."""
        return next((suffix for suffix in ARCHIVES if self._path.lower().endswith(suffix)), None)

    def file(self, name: str) -> str:
        """The address of a file in the folder."""
        if not self.web:
            return f"{self.text.rstrip('/')}/{name}"
        parts = urlsplit(self.text)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()
