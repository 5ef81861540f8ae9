# The service, without torch, pip and root. Build: `docker build -t cifar10-classifier .`; run: see docker-compose.yml.
# EXTRAS=torch adds PyTorch, for ENGINE=torch; EXTRAS=otel adds OpenTelemetry, for OTEL_*; EXTRAS=grpc adds gRPC, for
# GRPC_PORT; EXTRAS=remote adds what addresses in MODEL_DIR need.

FROM python:3.13-slim AS build
COPY deploy/requirements.lock deploy/requirements-torch.txt deploy/requirements-otel.txt deploy/requirements-grpc.txt /tmp/
COPY deploy/requirements-remote.txt /tmp/
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes -r /tmp/requirements.lock
ARG EXTRAS=""
ARG TORCH_INDEX_URL="https://download.pytorch.org/whl/cpu"
RUN case "$EXTRAS" in \
    "") ;; \
    torch) pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r /tmp/requirements-torch.txt ;; \
    otel|grpc|remote) pip --python /opt/venv/bin/python install --no-cache-dir --no-compile -r "/tmp/requirements-$EXTRAS.txt" ;; \
    *) echo "EXTRAS is empty, torch, otel, grpc or remote, not $EXTRAS" >&2; exit 1 ;; \
    esac
# Removes what the service does not need: the tests of packages, and the tools that prepare models for ONNX Runtime.
# Bytecode is compiled here because the container's root is read-only. Its hashes are unchecked because copying may change
# modification times.
RUN find /opt/venv/lib -type d \( -name tests -o -regex '.*/onnxruntime/\(transformers\|quantization\|tools\)' \) \
    -prune -exec rm -r {} + \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib
COPY app /srv/app
COPY models /srv/models
# Readable for all users, whatever umask the repository was cloned with.
RUN python -m compileall -q --invalidation-mode unchecked-hash /srv/app \
 && chmod -R a+rX /srv

FROM python:3.13-slim
LABEL org.opencontainers.image.title="CIFAR-10 classifier" \
      org.opencontainers.image.description="Classifies images into the ten CIFAR-10 classes over HTTP." \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv /srv
WORKDIR /srv
# Switches off the telemetry that ONNX Runtime's official builds send to Microsoft.
ENV PATH=/opt/venv/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000
# A number, so that Kubernetes can verify runAsNonRoot.
USER 10001:10001
EXPOSE 8000
# The check uses http.client: the image has no curl, and urllib would use a proxy even for 127.0.0.1.
HEALTHCHECK --start-period=10s --interval=5s --timeout=3s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=2); \
probe.request('GET', '/readyz'); \
sys.exit(probe.getresponse().status != 200)"]
# In exec form the service is process 1 and receives SIGTERM directly.
CMD ["python", "-m", "app", "serve"]
