"""deploy/kubernetes/kserve.yaml has only fields of KServe's own models, with their types: `make kserve-test`.

It runs in an environment of its own, with PyPI's kserve, which asks for an older protobuf than ours.
"""

import datetime
import sys
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client.models
import yaml

MANIFEST = Path(__file__).parents[2] / "deploy/kubernetes/kserve.yaml"
SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": datetime.datetime}


def faults(value: Any, kind: str, place: str) -> list[str]:
    """What in `value` is not of a type of the OpenAPI document, as lines."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            return [f"{place}: it must be a list"]
        return [fault for index, one in enumerate(value) for fault in faults(one, kind[5:-1], f"{place}[{index}]")]
    if kind.startswith("dict("):
        of = kind[5:-1].split(", ")[1]
        return [fault for key, one in value.items() for fault in faults(one, of, f"{place}.{key}")]
    if kind in SIMPLE:
        return [] if isinstance(value, SIMPLE[kind]) else [f"{place}: {value!r} is no {kind}"]
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind, None)
    if model is None:
        return []  # a quantity or an integer that may be a text
    if not isinstance(value, dict):
        return [f"{place}: it must be a {kind}"]
    names = {written: (name, model.openapi_types[name]) for name, written in model.attribute_map.items()}
    found = [f"{place}: a {kind} has no {key}" for key in value.keys() - names.keys()]
    try:
        model(**{names[key][0]: one for key, one in value.items() if key in names})  # refuses what is missing
    except ValueError as error:
        found.append(f"{place}: {error}")
    for key in value.keys() & names.keys():
        found += faults(value[key], names[key][1], f"{place}.{key}")
    return found


def main() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    wrong = faults(manifest, "V1beta1InferenceService", "InferenceService")
    assert faults({"spec": {"predictor": {"replicas": 1}}}, "V1beta1InferenceService", "")  # it does find faults
    for fault in wrong:
        print(fault)
    print(f"{MANIFEST.name}: {len(wrong)} faults")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
