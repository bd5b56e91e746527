"""The student as files that are deployed without this project: ONNX, torch.export, safetensors."""

import os

# Read when ONNX Runtime is imported: from 1.32 on, it sends usage data otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
