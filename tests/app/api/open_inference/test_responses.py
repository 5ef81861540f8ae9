import json
from types import SimpleNamespace

import numpy as np
import pytest

from app.api.open_inference.models import ServedModel
from app.api.open_inference.requests import InferenceRequest
from app.api.open_inference.responses import output_of, render, trust_of
from app.inference.answers import ImageResult, PredictionSet
from tests.app.api.open_inference.test_requests import elements


class TestTrust:
    def of(self, *answers: ImageResult) -> dict[str, str]:
        return trust_of([SimpleNamespace(answer=lambda top_k, answer=answer: answer) for answer in answers])

    def test_each_parameter_has_an_element_for_each_image(self) -> None:
        sure = ImageResult(
            predictions=[],
            views=1,
            prediction_set=PredictionSet(coverage=0.9, labels=["cat"]),
            abstain=False,
            ood_score=0.5,
            measured_on="photographs",
        )
        assert self.of(sure, ImageResult(predictions=[], views=1)) == {
            "prediction_set": '[{"coverage":0.9,"labels":["cat"]},null]',
            "abstain": "[false,null]",
            "ood_score": "[0.5,null]",
            "measured_on": '["photographs",null]',
        }

    def test_what_the_bundle_does_not_provide_is_left_out(self, pixels: ServedModel) -> None:
        assert self.of(ImageResult(predictions=[], views=1)) == {}
        request = InferenceRequest(None, [], 0, False)
        content, _ = render(request, output_of(request, [[0.1] * 10], pixels), {}, pixels, "")
        assert "parameters" not in json.loads(content)


class TestRender:
    PROBABILITIES = [np.array([0.05, 0.5, 0.25, 0.05, 0.05, 0.02, 0.03, 0.01, 0.02, 0.02]), np.full(10, 0.1)]

    def answer(self, model: ServedModel, classes: int = 0, binary: bool = False, id: str | None = "42") -> tuple:
        request = InferenceRequest(id, [], classes, binary)
        output = output_of(request, self.PROBABILITIES, model)
        content, length = render(request, output, {}, model, "from-the-request")
        assert (length is None) is not binary
        return json.loads(content[:length]), content[length:] if binary else None

    def test_an_answer_is_rendered_as_json(self, pixels: ServedModel) -> None:
        document, _ = self.answer(pixels)
        (output,) = document.pop("outputs")
        assert document == {"model_name": "cifar10", "model_version": "1", "id": "42"}
        data = output.pop("data")
        assert output == {"name": "probabilities", "datatype": "FP32", "shape": [2, 10]}
        assert data == np.float32(self.PROBABILITIES).ravel().tolist()

    def test_an_answer_is_rendered_as_binary(self, pixels: ServedModel) -> None:
        document, tail = self.answer(pixels, binary=True)
        (output,) = document["outputs"]
        assert output["parameters"] == {"binary_data_size": len(tail)}
        assert "data" not in output
        np.testing.assert_array_equal(np.frombuffer(tail, "<f4").reshape(2, 10), np.float32(self.PROBABILITIES))

    def test_an_answer_is_rendered_as_classification(self, pixels: ServedModel) -> None:
        document, _ = self.answer(pixels, classes=2)
        (output,) = document["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
        names = pixels.labels
        assert output["data"] == [
            f"0.500000:1:{names[1]}",
            f"0.250000:2:{names[2]}",
            f"0.100000:0:{names[0]}",
            f"0.100000:1:{names[1]}",
        ]
        packed, tail = self.answer(pixels, classes=2, binary=True)
        assert tail == elements(*(text.encode() for text in output["data"]))
        assert packed["outputs"][0]["parameters"] == {"binary_data_size": len(tail)}

    def test_at_most_all_classes_are_rendered(self, pixels: ServedModel) -> None:
        document, _ = self.answer(pixels, classes=1000)
        assert document["outputs"][0]["shape"] == [2, 10]
        assert len(document["outputs"][0]["data"]) == 20

    @pytest.mark.parametrize(
        ("id", "echoed"), [("", ""), ("a", "a"), ("\u732b\n", "\u732b\n"), (None, "from-the-request")]
    )
    def test_the_id_is_given_back(self, pixels: ServedModel, id: str | None, echoed: str) -> None:
        assert self.answer(pixels, id=id)[0]["id"] == echoed
