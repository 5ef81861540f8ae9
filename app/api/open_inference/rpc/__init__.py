"""The Open Inference Protocol over gRPC (extra `grpc`), at GRPC_PORT.

    rpc = await start(app, settings)     # server.py; it listens from then on
    await rpc.stop(seconds)

A call becomes a request to the ASGI application: its path is the call's name, its body is the message (bridge.py). So
keys, limits, shares, deadlines, errors, log and metrics are those of HTTP, written once. The routes (routes.py) parse
the message; the checks of tensors, the inference and the forming of outputs are those of /v2.
"""
