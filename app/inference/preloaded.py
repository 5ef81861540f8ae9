"""The models that are loaded before several workers are forked from this process, and that later ones begin with.

    models = Preloaded(settings, processes=3)      # BundleError, SessionError
    models.give()                                  # in a worker: what Repository takes

A session of ONNX Runtime with one thread survives a fork; its weights stay shared as long as nobody writes to them.
"""

from ..bundle.reader import Bundle, BundleError
from ..errors import Internal, LoadFailed
from ..settings import Settings
from .repository import Loaded, at, folder_of, load_beside, not_loaded
from .sessions import Session, SessionError, load_session


class Preloaded:
    """`processes`: in how many a model is in memory, of its own, once it has been loaded anew."""

    def __init__(self, settings: Settings, processes: int) -> None:
        self._settings = settings
        self._processes = processes
        self._models: Loaded = {name: load_session(at(settings, folder)) for name, folder in settings.folders.items()}
        self._prepared: dict[str, tuple[Bundle, Session]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._settings.folders)

    def give(self) -> Loaded:
        """All models; this object keeps none."""
        given, self._models, self._prepared = self._models, {}, {}
        return given

    def prepare(self, name: str) -> str:
        """Load what a model's folder holds now. Returns the bundle's digest. Raises LoadFailed or Internal."""
        folder = folder_of(self._settings, name)
        try:
            loaded = load_beside(self._settings, folder, self._processes)
        except LoadFailed:
            raise
        except (BundleError, SessionError, MemoryError) as error:
            raise not_loaded(error, folder) from None
        except Exception:
            raise Internal("the service met a bug; the model that was there goes on") from None
        self._prepared = {name: loaded}
        return loaded[0].manifest.digest

    def take_over(self) -> None:
        """From now on give what was prepared."""
        self._models |= self._prepared
        self._prepared = {}

    def drop(self) -> None:
        """Forget what was prepared."""
        self._prepared = {}
