"""Credentials in addresses reach neither the log nor MLflow."""

from __future__ import annotations

import sys

import pytest

from pu_kd_pipeline.tracking.worker import Worker

SECRET = "geheim42"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://user:{SECRET}@127.0.0.1:9",
        f"http://127.0.0.1:9/?token={SECRET}",
        f"postgresql://user:{SECRET}@127.0.0.1:9/db",
    ],
)
def test_an_address_is_shown_without_credentials(uri, new_tracker, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = new_tracker(worker=Worker())
    tracker.end("FINISHED")
    assert "WARNING" in caplog.text
    assert SECRET not in caplog.text
    assert "***" in caplog.text


def test_the_log_and_the_summary_of_a_run_have_no_credentials(kedro, tmp_path):
    process = kedro(
        "run",
        f"--params=data={tmp_path},training.diary={tmp_path / 'diary'}",
        MLFLOW_TRACKING_URI=f"http://user:{SECRET}@127.0.0.1:9",
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert SECRET not in out + err
    assert "MLflow: http://***@127.0.0.1:9" in out


def test_mlflow_gets_no_credentials(new_tracker, folder, monkeypatch):
    address = f"https://user:{SECRET}@host/images"
    monkeypatch.setattr(sys, "argv", ["kedro", "run", f"--params=a={address}?token={SECRET}"])
    parameters = {
        "sources": [{"path": address}, {"path": "s3://bucket", "secret": SECRET}],
        "token": SECRET,
        "urls": [address],
    }
    tracker = new_tracker(**parameters)
    tracker.log_child(f"cell of {address}", parameters, {"accuracy": 1.0})
    tracker.end("FAILED", f"**Failed:** {address} cannot be read")
    for file in (folder / "mlflow").iterdir():
        assert SECRET.encode() not in file.read_bytes()
