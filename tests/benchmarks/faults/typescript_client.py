"""Generate a TypeScript client from the OpenAPI document of a running service, and call the service with it.

    npm install --prefix /tmp/typescript openapi-typescript@7 openapi-fetch@0.17 typescript@5 @types/node@20
    python -m tests.benchmarks.faults.typescript_client --modules /tmp/typescript/node_modules

Goal: the compiler, in its strict mode, finds no fault, and every call is answered. generated_client does it for Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.app.server import serve
from tests.conftest import DATA

# OpenAPI's binary strings are strings for the generator, so an image is cast.
CALLS = """
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, path] = process.argv.slice(2) as [string, string];
const service = createClient<paths>({ baseUrl: url });
const image = new Blob([await readFile(path)], { type: "image/png" }) as unknown as string;
const form = (body: object | string) => {
  const data = new FormData();
  for (const [name, value] of Object.entries(body)) {
    for (const part of [value].flat()) data.append(name, part as Blob, "cat.png");
  }
  return data;
};
const query = { coverage: 0.95, top_k: 2 };

const predicted = await service.POST("/predict", { params: { query }, body: { file: image }, bodySerializer: form });
assert(predicted.data);
assert.equal(predicted.data.predictions[0]?.label, "cat");
assert.equal(predicted.data.prediction_set?.coverage, 0.95);
const refused = await service.POST("/predict", { body: { file: "no image" }, bodySerializer: () => "no image" });
assert(refused.error);
const problem: components["schemas"]["ProblemDocument"] = refused.error;
assert.equal(problem.code, "unsupported_media_type");
const batch = await service.POST("/predict/batch", { body: { files: [image, image] }, bodySerializer: form });
assert.equal(batch.data?.results.length, 2);
const explained = await service.POST("/explain", { body: { file: image }, bodySerializer: form, parseAs: "blob" });
assert.equal(explained.response.headers.get("X-Class-Label"), "cat");
assert.equal((await service.GET("/model")).data?.name, predicted.data.model.name);
assert((await service.GET("/metrics/report")).data);
assert.equal((await service.GET("/livez")).data?.status, "alive");
assert.deepEqual((await service.GET("/v2/models")).data?.models, ["cifar10", "cifar10_image"]);
const tensor = { name: "images", shape: [1, 32, 32, 3], datatype: "UINT8" as const, data: new Array(3072).fill(0) };
const params = { path: { model: "cifar10" as const } };
const inferred = await service.POST("/v2/models/{model}/infer", { params, body: { inputs: [tensor] } });
assert(typeof inferred.data === "object");  // else binary
assert.equal(inferred.data.outputs[0]?.data?.length, 10);
console.log("every call was answered");
"""
OPTIONS = {
    "strict": True,
    "noUncheckedIndexedAccess": True,
    "module": "nodenext",
    "target": "es2022",
    "types": ["node"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=Path, required=True)
    options = parser.parse_args()
    modules = options.modules.absolute()
    with serve(LOG_LEVEL="error") as (_, client), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "node_modules").symlink_to(modules)
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["calls.ts"]}))
        (folder / "calls.ts").write_text(CALLS)
        for command in (
            [modules / ".bin/openapi-typescript", client.base_url.join("/openapi.json"), "--output", "schema.d.ts"],
            [modules / ".bin/tsc"],
            ["node", "calls.js", client.base_url, DATA / "cat.png"],
        ):
            code = subprocess.run([str(part) for part in command], cwd=folder).returncode
            if code:
                sys.exit(code)


if __name__ == "__main__":
    main()
