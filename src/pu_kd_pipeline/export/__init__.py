"""The student as files that are deployed without this project: ONNX, torch.export, safetensors."""
