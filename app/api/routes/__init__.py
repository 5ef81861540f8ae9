"""One module a resource; each is a few lines around the classifier, the bundle or the telemetry."""

from ..open_inference import routes as inference_protocol
from . import explain, health, metrics, model, page, predict, report

# In the order in which a request is compared with them.
routers = [module.router for module in (predict, explain, report, metrics, model, health, inference_protocol, page)]
