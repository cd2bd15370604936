"""`frevl demo --classify`: images of digits, embedded, classified, and compared with scikit-learn."""

import json

import pytest

from frevl.cli.demo_classify import demo_classify


@pytest.mark.slow
def test_digits_end_to_end(tmp_path):
    said = []
    report = demo_classify(tmp_path, encoder="toy", say=said.append)
    folder = tmp_path / "digits"
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert report.examples + report.held_out == 1797
    right = sum(one["label"] == row["target"] for one, row in zip(labels, truth, strict=True))
    assert report.accuracy == pytest.approx(100 * right / len(truth))
    assert report.difference == pytest.approx(report.accuracy - report.logistic)
    assert report.difference > -1, "within a point of logistic regression"
    assert report.difference_interval[0] < report.difference < report.difference_interval[1]
    assert f"{report.accuracy:.2f}" in report.sentence()
    assert "Embedded 1,797 images" in said[1]
