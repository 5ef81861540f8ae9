"""Several processes that serve as one (WORKERS): one port, one set of limits and metrics, one graceful stop.

supervisor  starts the workers, replaces the dead, passes signals on, and keeps the models that new workers begin with
board       memory that all of them share: what each holds, has counted and has answered
post        messages between them
models      what the supervisor asks of those models
membership  what a worker gets of processes that all of them use, and what the supervisor asks of them
worker      what one worker knows of the others

With one process nothing of this is in use.
"""
